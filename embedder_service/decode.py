"""Image bytes -> pixels. The only place where a picture is decoded: building a model and serving it both use it.

Pillow's plugin classes are opened by the file's signature instead of through `PIL.Image.open`: that restricts the
formats to the list below, and leaves Pillow's process-wide `MAX_IMAGE_PIXELS` out of play, so each caller brings
its own limit.
https://pillow.readthedocs.io/en/stable/handbook/image-file-formats.html
"""

from __future__ import annotations

import warnings
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from service_kit.errors import InvalidArgument

# Raise this when a change below changes pixels: it is part of a bundle's fingerprint.
REVISION = 1

DEFAULT_MAX_PIXELS = 50_000_000
# Of WEBP and TIFF, Pillow itself refuses more than twice its `MAX_IMAGE_PIXELS`.
_PILLOW_MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or DEFAULT_MAX_PIXELS)

# It also remarks on every oddity in a file. Errors are raised; the rest is noise, and no caller should be able to fill
# a log with it.
warnings.filterwarnings("ignore", module=r"PIL\.")

FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

_SIGNATURES: tuple[tuple[bytes, str, type[ImageFile.ImageFile]], ...] = (
    (b"\xff\xd8\xff", "JPEG", JpegImageFile),
    (b"\x89PNG\r\n\x1a\n", "PNG", PngImageFile),
    (b"GIF87a", "GIF", GifImageFile),
    (b"GIF89a", "GIF", GifImageFile),
    (b"BM", "BMP", BmpImageFile),
    (b"II*\0", "TIFF", TiffImageFile),
    (b"MM\0*", "TIFF", TiffImageFile),
    (b"II+\0", "TIFF", TiffImageFile),
    (b"MM\0+", "TIFF", TiffImageFile),
)
_FORMATS = "JPEG, PNG, WEBP, GIF, BMP, TIFF"

_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(
    data: bytes, *, height: int, width: int, resize: str, max_pixels: int = DEFAULT_MAX_PIXELS
) -> NDArray[np.uint8]:
    """Decode an image and squash it to a fixed size.

    The dimensions are read from the header and checked before any pixel is decoded. EXIF orientation is applied,
    transparency is put on white, an animation gives its first frame. Thread-safe; the long parts release the GIL.

    Args:
        data: a JPEG, PNG, WEBP, GIF, BMP or TIFF file.
        height: pixels of the result.
        width: pixels of the result.
        resize: the antialiased filter, a key of `FILTERS`.
        max_pixels: the largest width times height accepted; above 178,956,970, WEBP and TIFF stay at that.

    Returns:
        uint8 [height, width, 3], RGB.

    Raises:
        InvalidArgument: the bytes are not such a file, are damaged, or exceed `max_pixels`.
        ValueError: `resize` is not a key of `FILTERS`.
    """
    if resize not in FILTERS:
        raise ValueError(f"unknown resize filter {resize!r}; choose one of {', '.join(FILTERS)}")
    name, opener = _sniff(data)
    try:
        image = opener(BytesIO(data))
        _check_size(name, image.size, max_pixels)
        pixels = _to_rgb(_upright(_load(image, max(height, width))))
        return np.array(pixels.resize((width, height), FILTERS[resize]), dtype=np.uint8)
    except InvalidArgument:
        raise
    except Image.DecompressionBombError as error:
        raise InvalidArgument(
            f"the {name} image has more pixels than the limit of {min(max_pixels, _PILLOW_MAX_PIXELS)}; "
            "send it scaled down"
        ) from error
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged input.
        raise InvalidArgument(
            f"the {name} image cannot be decoded: {_reason(error)}; send a complete, undamaged file"
        ) from error


def _sniff(data: bytes) -> tuple[str, type[ImageFile.ImageFile]]:
    if not data:
        raise InvalidArgument(f"the image is empty (0 bytes); send the bytes of a {_FORMATS} file")
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP", WebPImageFile
    for signature, name, opener in _SIGNATURES:
        if data.startswith(signature):
            return name, opener
    raise InvalidArgument(
        f"the {len(data)} bytes, which begin with 0x{data[:4].hex()}, are not an image in a known format; "
        f"send one of {_FORMATS}"
    )


def _check_size(name: str, size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise InvalidArgument(f"the {name} image is {width}x{height} pixels; send one with at least 1x1")
    if width * height > max_pixels:
        raise InvalidArgument(
            f"the {name} image is {width}x{height} = {width * height} pixels, above the limit of {max_pixels}; "
            "send it scaled down"
        )


def _load(image: ImageFile.ImageFile, side: int) -> Image.Image:
    if isinstance(image, JpegImageFile):
        # libjpeg can decode at 1/2, 1/4 or 1/8 for a fraction of the time; at twice the wanted size or more, the result
        # stays next to the one from full size. https://pillow.readthedocs.io/en/stable/reference/Image.html (`draft`)
        image.draft(None, (2 * side, 2 * side))
    image.load()
    return image


def _upright(image: Image.Image) -> Image.Image:
    try:
        # Asked after load(): TIFF is turned by Pillow while it loads, and PNG may carry its EXIF after the pixels.
        method = _TRANSPOSE.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # EXIF is a side note: when it is damaged, the pixels still are what they are.
        method = None
    return image if method is None else image.transpose(method)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F"):
        raise InvalidArgument(
            f"the image has 32-bit pixels (mode {image.mode}), which have no agreed white; "
            "send it with 8 or 16 bits per channel"
        )
    if image.mode.startswith("I;16"):
        # 65535 -> 255 exactly; Pillow's own conversion would clip at 255.
        return Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    # A message with an object's address says nothing to a caller.
    return type(error).__name__ if not text or " object at 0x" in text else text.rstrip(".")
