"""What calls carry: images from a folder or made here, and vectors."""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from workbench.errors import CommandError
from workbench.images import find_images

_MOST_BYTES = 512 << 20
_PER_SIZE = 16
_QUALITY = 85


@dataclass(frozen=True)
class Size:
    """A size of images in pixels, and how often it comes, relative to others."""

    width: int
    height: int
    weight: float


@dataclass(frozen=True)
class Images:
    """Encoded images, how often each is to be sent, relative to the others, and where they come from."""

    files: tuple[bytes, ...]
    weights: tuple[float, ...]
    source: str

    @property
    def mean_bytes(self) -> float:
        """Mean size of the images sent."""
        return float(np.average([len(file) for file in self.files], weights=self.weights))


def from_folder(folder: Path, count: int, seed: int) -> Images:
    """Reads up to `count` images of a folder, chosen by the seed.

    Raises:
        CommandError: there are none, or they are too large to be held in memory.
    """
    found = find_images(folder)
    chosen = np.random.default_rng(seed).permutation(len(found))[:count]
    files, total = [], 0
    for index in sorted(chosen.tolist()):
        files.append(found[index].path.read_bytes())
        total += len(files[-1])
        if total > _MOST_BYTES:
            raise CommandError(
                f"{len(files)} images of {folder} take more than {_MOST_BYTES >> 20} MiB: read fewer with --max-images"
            )
    return Images(tuple(files), (1.0,) * len(files), str(folder))


def parse_sizes(text: str) -> tuple[Size, ...]:
    """Returns the sizes of "320x240=70,1920x1080=30"; without a weight, sizes are equally frequent.

    Raises:
        argparse.ArgumentTypeError: it is not a mix of sizes.
    """
    sizes = []
    for part in text.split(","):
        size, _, weight = part.partition("=")
        width, _, height = size.partition("x")
        try:
            sizes.append(Size(int(width), int(height), float(weight or 1)))
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{part!r} is not a size: write WIDTHxHEIGHT or WIDTHxHEIGHT=WEIGHT"
            ) from None
        if min(sizes[-1].width, sizes[-1].height) < 1 or sizes[-1].weight <= 0:
            raise argparse.ArgumentTypeError(f"{part!r}: width, height and weight must be above 0")
    return tuple(sizes)


def synthetic(sizes: Sequence[Size], seed: int) -> Images:
    """Makes JPEG files of the given sizes, by the seed.

    Smooth shapes with some noise: such files have about as many bytes per pixel as photographs.
    """
    from PIL import Image

    random = np.random.default_rng(seed)
    files, weights = [], []
    for size in sizes:
        for _ in range(_PER_SIZE):
            coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), np.uint8))
            smooth = np.asarray(coarse.resize((size.width, size.height), Image.Resampling.BICUBIC), np.int16)
            noisy = smooth + random.integers(-6, 7, smooth.shape, np.int16)
            buffer = io.BytesIO()
            Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=_QUALITY)
            files.append(buffer.getvalue())
            weights.append(size.weight / _PER_SIZE)
    mix = ", ".join(f"{size.width}x{size.height} ({size.weight:g})" for size in sizes)
    return Images(tuple(files), tuple(weights), f"synthetic, {mix}")


def random_vectors(count: int, dimension: int, seed: int) -> NDArray[np.float32]:
    """Returns vectors of length 1 in random directions, float32 [count, dimension]."""
    vectors = np.random.default_rng(seed).standard_normal((count, dimension), np.float32)
    result: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return result


def read_vectors(path: Path, count: int, dimension: int) -> NDArray[np.float32]:
    """Reads the first vectors of a .npy file, float32 [up to count, dimension].

    Raises:
        CommandError: the file has other things in it.
    """
    try:
        array = np.load(path, allow_pickle=False)
    except ValueError as error:
        raise CommandError(f"{path} is not a .npy file of numbers: {error}") from error
    if array.ndim != 2 or array.shape[1] != dimension or not len(array):
        raise CommandError(f"{path} has an array of shape {list(array.shape)}; the collection needs [N, {dimension}]")
    vectors = np.asarray(array[:count], np.float32)
    if not np.isfinite(vectors).all() or not vectors.any(axis=1).all():
        raise CommandError(f"{path} has vectors that are zero or not finite")
    return vectors
