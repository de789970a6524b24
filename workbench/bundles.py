"""Gets a model bundle that was built from certain images: the one that is there if it is that, else a new one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from embedder_service.model.backbones import DEFAULT
from embedder_service.model.bundle import Bundle, images_digest, load
from embedder_service.model.weights import WeightsUnavailable
from service_kit.errors import FailedPrecondition
from workbench.errors import CommandError
from workbench.images import ImageFile, classes
from workbench.progress import stages

# Its ImageNet weights come as a package, so that it can be built where nothing can be downloaded.
FALLBACK_BACKBONE = "efficientnet_lite0"
_IMAGENET = "imagenet"
_MOST_IMAGES = 10_000
_SEED = 101
_LEAST_IMAGES = 3  # PCA of n images has n - 1 dimensions, and a vector needs two


def ensure_bundle(
    path: Path, files: Sequence[ImageFile], *, backbone: str = DEFAULT, weights: str = _IMAGENET, dims: int = 150
) -> Bundle:
    """Returns the bundle at `path` if it was built from these images in this way, or builds it there.

    ImageNet weights that cannot be had make it say so and use the fallback backbone.

    Args:
        files: the images; fewer than `dims` + 1 lower the number of dimensions.
        weights: "imagenet", or the path of a weights file.

    Raises:
        CommandError: there are too few images.
        ServiceError: the bundle cannot be built.
    """
    if len(files) < _LEAST_IMAGES:
        raise CommandError(f"{len(files)} images are too few to build a model with: give at least {_LEAST_IMAGES}")
    if dims > len(files) - 1:
        print(f"  {len(files)} images allow {len(files) - 1} dimensions instead of {dims}.")
        dims = len(files) - 1
    files = _sample(files)
    existing = _existing(path)
    if existing and weights == _IMAGENET and _fits(existing, files, backbone, dims):
        print(f"  The one in {path} was built from these images with {backbone}: taking it.")
        return existing
    return _build(path, files, backbone, weights, dims)


def _build(path: Path, files: Sequence[ImageFile], backbone: str, weights: str, dims: int) -> Bundle:
    # With TensorFlow: only when there is something to build.
    from embedder_service.model.build import TooFewImages, build

    try:
        with stages() as show:
            paths = [file.path for file in files]
            built = build(backbone, weights, paths, dims, path, show, classes=classes(files))
    except WeightsUnavailable as error:
        if weights != _IMAGENET or backbone == FALLBACK_BACKBONE:
            raise
        print(f"  {error.message}. Taking {FALLBACK_BACKBONE}, whose weights are installed here.", flush=True)
        return ensure_bundle(path, files, backbone=FALLBACK_BACKBONE, dims=dims)
    except TooFewImages as error:
        if error.readable < _LEAST_IMAGES:
            raise
        print(f"  {error.message}. Taking {error.readable - 1}.", flush=True)
        return _build(path, files, backbone, weights, error.readable - 1)
    if built.skipped:
        print(f"  Left out what cannot be read: {len(built.skipped)} of the images, such as {built.skipped[0].path}.")
    for name, reason in built.left_out.items():
        print(f"  Left out the precision {name}: {reason}.")
    return built.bundle


def _sample(files: Sequence[ImageFile]) -> Sequence[ImageFile]:
    """Returns the images that PCA is fitted on: all, or a random sample, the same every time."""
    if len(files) <= _MOST_IMAGES:
        return files
    print(f"  {_MOST_IMAGES:,} of the images, chosen at random, are enough for it.")
    return [files[index] for index in np.random.default_rng(_SEED).choice(len(files), _MOST_IMAGES, replace=False)]


def _existing(path: Path) -> Bundle | None:
    try:
        return load(path)
    except FailedPrecondition:  # none, or one of another version: built anew
        return None


def _fits(bundle: Bundle, files: Sequence[ImageFile], backbone: str, dims: int) -> bool:
    manifest = bundle.manifest
    return (
        manifest.backbone == backbone
        and manifest.weights.source == _IMAGENET
        and manifest.dims == dims
        and manifest.images_digest == images_digest(file.path for file in files)
    )
