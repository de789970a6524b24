"""What people do to photographs before they upload them again: the same 24 edits for every one of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont, ImageOps


@dataclass(frozen=True)
class Edit:
    """A change of an RGB image, and the file format that the result is kept in."""

    name: str
    change: Callable[[Image.Image], Image.Image]
    suffix: str = ".jpg"
    options: dict[str, Any] = field(default_factory=lambda: {"quality": 88})

    @property
    def file_name(self) -> str:
        """Name of the file that holds an edited copy."""
        return self.name + self.suffix


def _same(image: Image.Image) -> Image.Image:
    return image


def _crop(left: float, top: float, right: float, bottom: float) -> Callable[[Image.Image], Image.Image]:
    """Keeps a part of the image, given in fractions of its size."""
    return lambda image: image.crop(
        (int(left * image.width), int(top * image.height), int(right * image.width), int(bottom * image.height))
    )


def _scale(width: float, height: float) -> Callable[[Image.Image], Image.Image]:
    return lambda image: image.resize((int(width * image.width), int(height * image.height)))


def _rotate(degrees: float) -> Callable[[Image.Image], Image.Image]:
    return lambda image: image.rotate(degrees, resample=Image.Resampling.BICUBIC, expand=True, fillcolor="white")


def _thumbnail(image: Image.Image) -> Image.Image:
    return ImageOps.contain(image, (112, 112))


def _grey(image: Image.Image) -> Image.Image:
    return ImageOps.grayscale(image).convert("RGB")


def _sepia(image: Image.Image) -> Image.Image:
    return ImageOps.colorize(ImageOps.grayscale(image), black="#20140a", mid="#a07850", white="#fff4dc")


def _cold(image: Image.Image) -> Image.Image:
    red, green, blue = image.split()
    return Image.merge("RGB", (red.point(lambda v: v * 0.75), green, blue.point(lambda v: v * 1.25)))


def _caption(image: Image.Image) -> Image.Image:
    image = image.copy()
    size = max(12, image.height // 8)
    position = (image.width // 2, image.height - size)
    font = ImageFont.load_default(size=size)
    ImageDraw.Draw(image).text(
        position, "LOOK AT THIS!", fill="white", stroke_width=2, stroke_fill="black", font=font, anchor="mm"
    )
    return image


def _frame(image: Image.Image) -> Image.Image:
    return ImageOps.expand(image, border=max(image.size) // 12, fill="#30343c")


def _noise(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image, dtype=np.float32)
    grain = np.random.default_rng(101).normal(0.0, 22.0, pixels.shape)
    return Image.fromarray(np.clip(pixels + grain, 0, 255).astype(np.uint8))


EDITS = (
    Edit("bright", lambda image: ImageEnhance.Brightness(image).enhance(1.5)),
    Edit("caption", _caption),
    Edit("cold", _cold),
    Edit("contrast", lambda image: ImageEnhance.Contrast(image).enhance(1.7)),
    Edit("crop-centre", _crop(0.15, 0.15, 0.85, 0.85)),
    Edit("crop-left", _crop(0.0, 0.0, 0.75, 0.9)),
    Edit("crop-right", _crop(0.25, 0.1, 1.0, 1.0)),
    Edit("crop-top", _crop(0.05, 0.0, 0.95, 0.7), ".webp", {"quality": 80}),
    Edit("dark", lambda image: ImageEnhance.Brightness(image).enhance(0.55)),
    Edit("faded", lambda image: ImageEnhance.Contrast(image).enhance(0.6)),
    Edit("frame", _frame),
    Edit("grey", _grey, ".png", {}),
    Edit("half", _scale(0.5, 0.5), ".png", {}),
    Edit("jpeg-12", _same, ".jpg", {"quality": 12}),
    Edit("jpeg-30", _same, ".jpg", {"quality": 30}),
    Edit("mirror", ImageOps.mirror),
    Edit("noise", _noise),
    Edit("sepia", _sepia),
    Edit("sharp", lambda image: image.filter(ImageFilter.UnsharpMask(radius=3, percent=180))),
    Edit("soft", lambda image: image.filter(ImageFilter.GaussianBlur(1.5))),
    Edit("stretched", _scale(1.3, 1.0)),
    Edit("thumbnail", _thumbnail, ".png", {}),
    Edit("tilt-left", _rotate(6)),
    Edit("tilt-right", _rotate(-9), ".webp", {"quality": 80}),
)
