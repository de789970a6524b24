"""A small real bundle: EfficientNet-Lite0 with its ImageNet weights, PCA fitted on scikit-image's photographs."""

import shutil
from pathlib import Path

import pytest
import skimage.data
from PIL import Image, ImageOps

from embedder_service.model import bundle as bundles
from embedder_service.model.build import build
from embedder_service.model.gate import Gate

DIMS = 16
# A mirrored copy counts for much among 24 images: nothing but the figures of the gate is meant to depend on it.
GATE = Gate(max_accuracy_loss=5.0, min_cosine=0.9)
NAMES = ("astronaut.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "horse.png", "rocket.jpg", "moon.png")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Keeps compiled models out of the cache directory of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def photographs():
    """The folder of scikit-image's photographs."""
    return Path(skimage.data.__file__).parent


@pytest.fixture(scope="session")
def image_paths(photographs, tmp_path_factory):
    """24 image files: each photograph as it is, mirrored and cropped."""
    folder = tmp_path_factory.mktemp("images")
    for name in NAMES:
        image = Image.open(photographs / name).convert("RGB")
        image.save(folder / f"{name}-0.png")
        ImageOps.mirror(image).save(folder / f"{name}-1.png")
        image.crop((0, 0, image.width * 2 // 3, image.height * 2 // 3)).save(folder / f"{name}-2.png")
    return sorted(folder.iterdir())


@pytest.fixture(scope="session")
def lite0(image_paths, tmp_path_factory):
    """The bundle, every photograph a class. Not to be changed; see `lite0_copy`."""
    out = tmp_path_factory.mktemp("bundles") / "lite0"
    classes = [path.name.rsplit("-", 1)[0] for path in image_paths]
    quiet = lambda stage, done, total: None  # noqa: E731
    return build("efficientnet_lite0", "imagenet", image_paths, DIMS, out, quiet, classes=classes, gate=GATE).bundle


@pytest.fixture
def lite0_copy(lite0, tmp_path):
    """A copy to tamper with."""
    return bundles.load(shutil.copytree(lite0.path, tmp_path / "copy"))
