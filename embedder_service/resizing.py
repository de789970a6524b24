"""Resizes pictures with Pillow's antialiased filters.

Bilinear resizing, which is in the path of every request, is done by a library with SIMD code in a fraction of the time.
It has no wheels for ARM under Linux, where Pillow does it. No sample of one differs from the other's by more than 2 of
255 (tests/unit/embedder_service/test_resizing.py).
"""

from __future__ import annotations

from PIL import Image

try:
    import cykooz_resizer as simd
except ImportError:
    simd = None

FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def resize(image: Image.Image, size: tuple[int, int], name: str) -> Image.Image:
    """Return the image at another size.

    Args:
        image: loaded; of mode RGB or L.
        size: width and height.
        name: of the filter, a key of `FILTERS`.
    """
    if name == "bilinear" and simd is not None:
        return bilinear_with_simd(image, size)
    return image.resize(size, FILTERS[name])


def bilinear_with_simd(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """`resize` where the library is."""
    options = simd.ResizeOptions(resize_alg=simd.ResizeAlg.convolution(simd.FilterType.bilinear))
    result = Image.new(image.mode, size)
    # A resizer keeps the memory that it needed, so it is not kept.
    simd.Resizer().resize_pil(image, result, options)
    return result
