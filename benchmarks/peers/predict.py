"""A gRPC server that calls Keras's `model.predict` for each request: how most of them begin."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.serving import flags, serve
from embedder_service.model.bundle import Bundle
from embedder_service.model.tf import keras


class Model:
    """The bundle's graph as a Keras model."""

    def __init__(self, bundle: Bundle) -> None:
        taken = bundle.manifest.input
        self._size = (taken.height, taken.width, 3)
        images = keras.Input(self._size, dtype="uint8")
        layer = keras.layers.TFSMLayer(str(bundle.saved_model), call_endpoint="serving_default")
        self._model = keras.Model(images, layer(images))
        self(np.zeros((1, *self._size), np.uint8))  # compiles it before threads race for that

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 [N, H, W, 3] -> float32 [N, D]."""
        (vectors,) = self._model.predict(images, verbose=0).values()
        return np.asarray(vectors, np.float32)


def main() -> None:
    """Serves until a signal."""
    given = flags()
    serve(given, Model(given.bundle))


if __name__ == "__main__":
    main()
