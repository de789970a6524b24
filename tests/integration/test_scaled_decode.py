"""Large images are reduced by cheaper means before they are resized; their vectors stay those of the whole images."""

import io
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

from embedder_service.decode import decode
from embedder_service.model import bundle as bundles
from embedder_service.runtimes import load_runtime

FOLDER = Path(skimage.data.__file__).parent
LARGE = ("retina.jpg", "hubble_deep_field.jpg")
ENLARGED = ("astronaut.png", "brick.png", "chelsea.png", "coffee.png", "grass.png", "ihc.png", "motorcycle_left.png")


@pytest.fixture(scope="module")
def vector(bundle):
    """Pixels (uint8 [224, 224, 3]) -> their vector."""
    runtime = load_runtime(bundles.load(bundle))
    yield lambda pixels: runtime.run(pixels[np.newaxis])[0]
    runtime.close()


def enlarged(name, format, **options):
    image = Image.open(FOLDER / name).convert("RGB")
    file = io.BytesIO()
    image.resize((image.width * 4, image.height * 4), Image.Resampling.BICUBIC).save(file, format, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    "files",
    [
        pytest.param(lambda: [(FOLDER / name).read_bytes() for name in LARGE], id="photographs"),
        pytest.param(lambda: [enlarged(name, "JPEG", quality=90) for name in ENLARGED], id="fractions of a JPEG"),
        pytest.param(lambda: [enlarged(name, "BMP") for name in ENLARGED], id="boxes of pixels"),
    ],
)
def test_the_vector_of_a_large_image_is_that_of_the_whole(vector, files):
    cosines = []
    for data in files():
        whole = Image.open(io.BytesIO(data)).convert("RGB").resize((224, 224), Image.Resampling.BICUBIC)
        reduced = decode(data, height=224, width=224, resize="bicubic")
        cosines.append(float(vector(reduced) @ vector(np.asarray(whole))))
    assert min(cosines) > 0.99
    assert np.mean(cosines) > 0.999
