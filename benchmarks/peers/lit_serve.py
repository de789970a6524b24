"""A LitServe server with dynamic batching around the SavedModel: https://lightning.ai/docs/litserve/features/batching.

It takes the image's bytes as the body of a POST, and answers with those of the vector: JSON would only cost it time.
"""

# Annotations are evaluated here: LitServe hands those of `decode_request` and `encode_response` to FastAPI.
import signal
from pathlib import Path
from typing import Annotated

import litserve
import numpy as np
from fastapi import Body, Response
from numpy.typing import NDArray

from benchmarks.peers.serving import Decoder, flags
from embedder_service.model import bundle as bundles

_BATCH = 16
_BATCH_SECONDS = 0.01


class EmbedApi(litserve.LitAPI):  # type: ignore[misc]  # LitServe brings no types
    """Decodes, runs and answers batch by batch, in one worker process that has all cores."""

    def __init__(self, bundle: Path) -> None:
        super().__init__(max_batch_size=_BATCH, batch_timeout=_BATCH_SECONDS)
        self._bundle = bundle

    def setup(self, device: str) -> None:
        """Loads the model, in the worker."""
        from embedder_service.model.tf import tensorflow as tf

        bundle = bundles.load(self._bundle)
        taken = bundle.manifest.input
        self._decode = Decoder(bundle)
        self._constant = tf.constant
        self._model = tf.saved_model.load(str(bundle.saved_model))
        for size in (1, _BATCH):  # the first runs are slow
            self.predict(np.zeros((size, taken.height, taken.width, 3), np.uint8))

    def decode_request(
        self, request: Annotated[bytes, Body(media_type="application/octet-stream")]
    ) -> NDArray[np.uint8]:
        """Image bytes -> uint8 [H, W, 3]."""
        return self._decode(request)

    def predict(self, x: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 [N, H, W, 3] -> float32 [N, D]."""
        return np.asarray(self._model.embed(self._constant(x)), np.float32)

    def encode_response(self, output: NDArray[np.float32]) -> Response:
        """float32 [D] -> its bytes."""
        return Response(output.tobytes(), media_type="application/octet-stream")


def main() -> None:
    """Serves until a signal."""
    given = flags()
    host, _, port = given.address.rpartition(":")
    server = litserve.LitServer(EmbedApi(given.bundle.path), accelerator="cpu", fast_queue=True)
    # LitServe ends in order on a KeyboardInterrupt only.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    server.run(host=host, port=int(port), log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    main()
