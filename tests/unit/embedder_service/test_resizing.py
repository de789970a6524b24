"""With SIMD code or without, the same picture."""

import numpy as np
import pytest
from PIL import Image

from embedder_service import resizing

SIZE = (224, 160)


def picture(mode, size):
    """Stripes of shades and of noise, with hard edges between them."""
    shades = np.add.outer(np.linspace(0, 127, size[1]), np.linspace(0, 128, size[0]))[..., None].repeat(3, axis=2)
    noise = np.random.default_rng(size[0]).integers(0, 256, shades.shape)
    pixels = np.where((np.arange(size[0]) // 7 % 2)[None, :, None] == 0, shades, noise).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.skipif(resizing.simd is None, reason="cykooz-resizer has no wheel for this machine")
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [(300, 200), (1, 1), (1, 500), (640, 3), (33, 47), (900, 1300), SIZE])
def test_simd_code_and_pillow_agree(mode, size):
    image = picture(mode, size)
    expected = np.asarray(image.resize(SIZE, Image.Resampling.BILINEAR)).astype(int)
    difference = abs(np.asarray(resizing.bilinear_with_simd(image, SIZE)) - expected)
    assert difference.max() <= 2
    assert difference.mean() < 0.2


@pytest.mark.parametrize("name", resizing.FILTERS)
def test_the_filter_is_the_one_asked_for(name, monkeypatch):
    monkeypatch.setattr(resizing, "simd", None)
    image = picture("RGB", (300, 200))
    assert resizing.resize(image, SIZE, name) == image.resize(SIZE, Image.Resampling[name.upper()])
