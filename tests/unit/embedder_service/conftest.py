"""A small real bundle: EfficientNet-Lite0 with its ImageNet weights, PCA fitted on scikit-image's photographs."""

import shutil
from pathlib import Path

import pytest
import skimage.data
from PIL import Image, ImageOps

from embedder_service.model import bundle as bundles
from embedder_service.model.build import build

DIMS = 16
NAMES = ("astronaut.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "horse.png", "rocket.jpg", "moon.png")


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
    """The bundle. Not to be changed; see `lite0_copy`."""
    out = tmp_path_factory.mktemp("bundles") / "lite0"
    return build("efficientnet_lite0", "imagenet", image_paths, DIMS, out, lambda stage, done, total: None).bundle


@pytest.fixture
def lite0_copy(lite0, tmp_path):
    """A copy to tamper with."""
    return bundles.load(shutil.copytree(lite0.path, tmp_path / "copy"))
