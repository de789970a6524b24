"""Pictures inside a page: as data, so that the page needs no other file."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

THUMBNAIL_PIXELS = 160
_QUALITY = 82
_MOSAIC_QUALITY = 70


def read(path: Path, pixels: int) -> Image.Image | None:
    """Returns an image, upright and RGB, of about twice as many pixels at least; or None if it cannot be shown."""
    try:
        with Image.open(path) as opened:
            opened.draft("RGB", (pixels * 2, pixels * 2))
            return ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError):
        return None


def thumbnail(path: Path, description: str, pixels: int = THUMBNAIL_PIXELS) -> str:
    """Returns the image as an element that carries its own data, or says that the file cannot be shown."""
    image = read(path, pixels)
    if image is None:
        return "<p>no picture here</p>"
    image.thumbnail((pixels, pixels))
    return _element(image, "JPEG", _QUALITY, description)


def mosaic(
    paths: Sequence[Path],
    cells: NDArray[np.int64],
    side: int,
    pixels: int,
    description: str,
    on_progress: Callable[[], None],
) -> str:
    """Returns one picture of many images, each cut to a square in a cell of its own.

    Args:
        paths: the images; the cell of one that cannot be shown stays empty.
        cells: int64 [N, 2], the row and the column of each.
        side: cells in a row, and rows.
        pixels: width and height of a cell.
        description: for those who do not see it.
        on_progress: called after each image.
    """
    picture = Image.new("RGBA", (side * pixels, side * pixels))
    for path, (row, column) in zip(paths, cells.tolist(), strict=True):
        image = read(path, pixels)
        if image is not None:
            picture.paste(ImageOps.fit(image, (pixels - 1, pixels - 1)), (column * pixels, row * pixels))
        on_progress()
    return _element(picture, "WEBP", _MOSAIC_QUALITY, description)


def _element(image: Image.Image, kind: str, quality: int, description: str) -> str:
    data = io.BytesIO()
    image.save(data, kind, quality=quality)
    encoded = base64.b64encode(data.getvalue()).decode("ascii")
    return f'<img src="data:image/{kind.lower()};base64,{encoded}" alt="{escape(description)}" loading="lazy">'
