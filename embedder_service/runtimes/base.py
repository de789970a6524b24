"""What the batcher needs to know of whatever runs the model."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Runtime(Protocol):
    """A loaded model, every bucket compiled. `run` may be called from any thread; callers beyond `slots` wait in it."""

    @property
    def name(self) -> str:
        """Which runtime: "openvino" or "tensorflow"."""

    @property
    def device(self) -> str:
        """Where it runs: "CPU" or "GPU"."""

    @property
    def precision(self) -> str:
        """The arithmetic: "f32", "bf16", "f16" or "int8"."""

    @property
    def slots(self) -> int:
        """Batches that can run at once."""

    @property
    def buckets(self) -> tuple[int, ...]:
        """Allowed batch sizes, ascending; the first is always 1."""

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed a batch.

        Args:
            images: uint8 [N, H, W, 3], RGB, with N one of `buckets` and H, W those of the bundle.

        Returns:
            float32 [N, D], rows of L2 norm 1, in memory of its own.

        Raises:
            ValueError: the shape or dtype is another one.
            RuntimeError: the model failed, or the runtime is closed.
        """

    def close(self) -> None:
        """Wait for running batches, then let the model go. Calling it again does nothing."""
