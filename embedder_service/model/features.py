"""Runs many image files through a model, as fast as the cores allow and with few images in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embedder_service import decode
from embedder_service.model.manifest import Input
from embedder_service.runtimes.base import Runtime
from service_kit.errors import InvalidArgument

# Called with the stage, the steps done and the steps there are.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Skipped:
    """An image that was left out, and why."""

    path: Path
    reason: str


def read(path: Path, taken: Input) -> NDArray[np.uint8]:
    """Decode a file as the service would: uint8 [1, height, width, 3].

    Raises:
        InvalidArgument: it is not a readable image.
        OSError: it cannot be read.
    """
    return decode.decode(path.read_bytes(), height=taken.height, width=taken.width, resize=taken.resize)[np.newaxis]


def extract(
    runtime: Runtime, paths: Sequence[Path], taken: Input, progress: Progress, stage: str = "features"
) -> tuple[NDArray[np.float32], list[Skipped]]:
    """Run every readable image through the model, and tell the progress of it as that of `stage`.

    Returns:
        float32 [N, D], in the order of `paths` less the unreadable ones, and those with the reason.
    """

    def one(path: Path) -> NDArray[np.float32] | Skipped:
        try:
            image = read(path, taken)
        except InvalidArgument as error:
            return Skipped(path, error.message)
        except OSError as error:
            return Skipped(path, str(error.strerror))
        return runtime.run(image)

    rows: list[NDArray[np.float32]] = []
    skipped: list[Skipped] = []
    # One thread more than the model computes with: while it decodes, no slot stands idle.
    with ThreadPoolExecutor(runtime.slots + 1) as pool:
        for done, result in enumerate(pool.map(one, paths), start=1):
            if isinstance(result, Skipped):
                skipped.append(result)
            else:
                rows.append(result)
            progress(stage, done, len(paths))
    return (np.concatenate(rows) if rows else np.empty((0, 0), np.float32)), skipped
