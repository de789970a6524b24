"""Image bytes -> pixels. The only place where a picture is decoded: building a model and serving it both use it.

Time and memory are bounded by the pixels. A decode takes up to 2 seconds of a core at 50 megapixels, and up to 4.4
bytes for each pixel, 9 in TIFF, 10 in progressive JPEG, 12 in WEBP and in progressive JPEG of four channels; next to
nothing in a JPEG that is decoded at a fraction of its size. 20 MB come on top when there is transparency.

A large image is reduced by cheaper means first, so its vector is not quite that of the whole image resized at once.
With EfficientNet-Lite0, their cosine was 0.996 at worst and 0.9998 in the mean, over 222 photographs, most of them
enlarged 4 to 8 times; `tests/integration/test_scaled_decode.py` holds it above 0.99.

Colours are those of the file: colour profiles (ICC) are not applied.
"""

from __future__ import annotations

from functools import cache
from io import BytesIO
from typing import TYPE_CHECKING

from PIL import Image, ImageFile
from PIL.JpegImagePlugin import JpegImageFile

from embedder_service import container, resizing
from embedder_service.readers import MIN_IS_WHITE, READERS
from service_kit.errors import InvalidArgument

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Raise this when a change below changes pixels by more than rounding does: it is part of a bundle's fingerprint.
REVISION = 2

DEFAULT_MAX_PIXELS = 50_000_000
# Of WEBP and TIFF, Pillow itself refuses more than twice its `MAX_IMAGE_PIXELS`.
_PILLOW_MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or DEFAULT_MAX_PIXELS)

_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# How far above the wanted size the cheap reductions stop, so that the filter makes the picture.
_JPEG_GAP = 2
_BOX_GAP = 3  # Pillow calls this indistinguishable, see `reducing_gap` of `PIL.Image.Image.resize`
# As in JPEG. Pillow needs 8 bytes more for each row, and the time of a row for the shortest one.
_MAX_SIDE = 65_535
# Pixels of a tile's side: what is turned into RGB at a time is a megapixel, whatever the image has.
_TILE = 1024


def decode(
    data: bytes, *, height: int, width: int, resize: str, max_pixels: int = DEFAULT_MAX_PIXELS
) -> NDArray[np.uint8]:
    """As `picture`, as an array: uint8 [height, width, 3], RGB; read-only."""
    import numpy as np  # a process that only decodes does without it: it would double its memory and its start

    return np.asarray(picture(data, height=height, width=width, resize=resize, max_pixels=max_pixels))


def picture(data: bytes, *, height: int, width: int, resize: str, max_pixels: int = DEFAULT_MAX_PIXELS) -> Image.Image:
    """Decode an image and squash it to a fixed size.

    The dimensions are read from the header and checked before any pixel is decoded. EXIF orientation is applied,
    transparency is put on white, an animation gives its first frame, several pages the first. Thread-safe; the long
    parts release the GIL.

    Args:
        data: a JPEG, PNG, WEBP, GIF, BMP or TIFF file.
        height: pixels of the result.
        width: pixels of the result.
        resize: the antialiased filter, a key of `resizing.FILTERS`.
        max_pixels: the largest width times height accepted; above 178,956,970, WEBP and TIFF stay at that. No side may
            have more than 65,535.

    Returns:
        of mode RGB.

    Raises:
        InvalidArgument: the bytes are not such a file, are damaged, exceed `max_pixels`, or take more memory than there
            is.
        ValueError: `resize` is not a key of `resizing.FILTERS`.
    """
    if resize not in resizing.FILTERS:
        raise ValueError(f"unknown resize filter {resize!r}; choose one of {', '.join(resizing.FILTERS)}")
    name = container.sniff(data)
    try:
        found = container.picture(name, data)
        turn = _TRANSPOSE.get(found.orientation)
        image = READERS[name](BytesIO(found.data))
        _check_size(name, image.size, max_pixels)
        _load(image, max(height, width))
        small = _shrink(image, max(height, width))
        upright = small if turn is None else small.transpose(turn)
        resized = resizing.resize(upright, (width, height), resize)
        return resized if resized.mode == "RGB" else resized.convert("RGB")
    except InvalidArgument:
        raise
    except MemoryError as error:
        raise InvalidArgument(
            f"decoding the {name} image takes more memory than there is for one; send it scaled down"
        ) from error
    except Image.DecompressionBombError as error:
        raise InvalidArgument(
            f"the {name} image has more pixels than the limit of {min(max_pixels, _PILLOW_MAX_PIXELS)}; "
            "send it scaled down"
        ) from error
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged input.
        raise InvalidArgument(
            f"the {name} image cannot be decoded: {_reason(error)}; send a complete, undamaged file"
        ) from error


def _check_size(name: str, size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise InvalidArgument(f"the {name} image is {width}x{height} pixels; send one with at least 1x1")
    if max(width, height) > _MAX_SIDE:
        raise InvalidArgument(
            f"the {name} image is {width}x{height} pixels, above the limit of {_MAX_SIDE} for each side; "
            "send it scaled down or in parts"
        )
    if width * height > max_pixels:
        raise InvalidArgument(
            f"the {name} image is {width}x{height} = {width * height} pixels, above the limit of {max_pixels}; "
            "send it scaled down"
        )


def _load(image: ImageFile.ImageFile, side: int) -> None:
    if isinstance(image, JpegImageFile):
        # libjpeg can decode at 1/2, 1/4 or 1/8 for a fraction of the time; at twice the wanted size or more, the result
        # stays next to the one from full size. https://pillow.readthedocs.io/en/stable/reference/Image.html (`draft`)
        image.draft(None, (_JPEG_GAP * side, _JPEG_GAP * side))
    image.load()


def _shrink(image: Image.Image, side: int) -> Image.Image:
    """RGB (or grey, which is the same for less) on white, reduced to some `_BOX_GAP` times the wanted size.

    An image that is much larger is turned into RGB tile by tile, so that it is never in memory a second time.
    """
    factor = max(1, image.width // (_BOX_GAP * side)), max(1, image.height // (_BOX_GAP * side))
    if image.mode in ("RGB", "L") and not image.has_transparency_data:
        return image if factor == (1, 1) else image.reduce(factor)
    if factor == (1, 1):
        return _on_white(image)
    across, down = factor
    result = Image.new("RGB", (-(-image.width // across), -(-image.height // down)))
    columns, rows = across * max(1, _TILE // across), down * max(1, _TILE // down)
    for top in range(0, image.height, rows):
        for left in range(0, image.width, columns):
            box = left, top, min(left + columns, image.width), min(top + rows, image.height)
            result.paste(_on_white(image.crop(box)).reduce(factor), (left // across, top // down))
    return result


def _on_white(image: Image.Image) -> Image.Image:
    """RGB, what is transparent being white."""
    if image.mode in ("I", "F"):
        raise InvalidArgument(
            f"the image has 32-bit pixels (mode {image.mode}), which have no agreed white; "
            "send it with 8 or 16 bits per channel"
        )
    if image.mode.startswith("I;16"):
        greys = _greys()
        if MIN_IS_WHITE in image.info:
            greys = [255 - grey for grey in greys]
        if "transparency" in image.info:
            greys = [*greys]
            greys[image.info["transparency"]] = 255
        return image.convert("I").point(greys, "L").convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


@cache
def _greys() -> list[int]:
    """What each sample of 16 bits is in 8: divided by 257 and rounded. Pillow's own conversion would clip it at 255."""
    return [(sample * 255 + 32895) >> 16 for sample in range(1 << 16)]


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    # A message with an object's address says nothing to a caller.
    return type(error).__name__ if not text or " object at 0x" in text else text.rstrip(".")
