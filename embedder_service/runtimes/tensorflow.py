"""Runs a bundle's SavedModel with TensorFlow, in buckets: on the first GPU, or else on the CPU."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embedder_service.model.tf import tensorflow as tf
from service_kit.errors import FailedPrecondition, InvalidArgument

DEFAULT_BUCKETS = (1, 2, 4, 8, 16, 32)


class TensorFlowRuntime:
    """A `Runtime` (see base.py). One batch at a time: the device is busy with it as a whole."""

    name = "tensorflow"
    slots = 1

    def __init__(
        self, saved_model: Path, *, precision: str = "f32", buckets: tuple[int, ...] = DEFAULT_BUCKETS
    ) -> None:
        """Load a SavedModel: uint8 [N, H, W, 3] -> float32 [N, D].

        Args:
            saved_model: the directory.
            precision: "f32".
            buckets: the batch sizes to allow, ascending from 1.

        Raises:
            FailedPrecondition: this runtime does not have that precision.
            InvalidArgument: the buckets do not ascend from 1.
        """
        if precision != "f32":
            raise FailedPrecondition(f"the tensorflow runtime has no precision {precision!r}; choose f32")
        if not buckets or buckets[0] != 1 or list(buckets) != sorted(set(buckets)):
            raise InvalidArgument(f"the buckets {buckets} do not ascend from 1; give some like {DEFAULT_BUCKETS}")
        # Ampere and later would otherwise round float32 to TF32's 10 bits of mantissa.
        tf.config.experimental.enable_tensor_float_32_execution(False)
        self.device = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
        self.precision = precision
        self.buckets = tuple(buckets)
        self._lock = threading.Lock()
        self._model = tf.saved_model.load(str(saved_model))
        self._shape = tuple(self._model.embed.input_signature[0].shape[1:])

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `Runtime.run`."""
        if images.shape[1:] != self._shape or len(images) not in self.buckets or images.dtype != np.uint8:
            raise ValueError(
                f"the batch is {images.dtype} {images.shape}, the model takes uint8 (N, *{self._shape}), "
                f"N one of {self.buckets}"
            )
        with self._lock:
            if self._model is None:
                raise RuntimeError("the runtime is closed")
            vectors: NDArray[np.float32] = self._model.embed(tf.constant(images)).numpy()
        return vectors

    def close(self) -> None:
        """See `Runtime.close`."""
        with self._lock:
            self._model = None
