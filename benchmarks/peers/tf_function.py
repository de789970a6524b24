"""A gRPC server that calls the SavedModel's `tf.function` under a lock: what a careful author comes to.

TensorFlow spreads one image over all cores; two at a time would only contend for them.
"""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.serving import flags, serve
from embedder_service.model.bundle import Bundle
from embedder_service.model.tf import tensorflow as tf


class Model:
    """The bundle's graph as a function, one call at a time."""

    def __init__(self, bundle: Bundle) -> None:
        taken = bundle.manifest.input
        self._model = tf.saved_model.load(str(bundle.saved_model))
        self._lock = threading.Lock()
        self(np.zeros((1, taken.height, taken.width, 3), np.uint8))  # the first run is slow

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 [N, H, W, 3] -> float32 [N, D]."""
        with self._lock:
            return np.asarray(self._model.embed(tf.constant(images)), np.float32)


def main() -> None:
    """Serves until a signal."""
    given = flags()
    serve(given, Model(given.bundle))


if __name__ == "__main__":
    main()
