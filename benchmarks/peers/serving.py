"""What the peers share: their flags, their decoding, and a plain gRPC server."""

from __future__ import annotations

import argparse
import io
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from embedder_service import resizing
from embedder_service.model import bundle as bundles
from embedder_service.model.bundle import Bundle
from lookalike.channel import MAX_MESSAGE_BYTES
from lookalike.embedder.v1 import embedder_pb2, embedder_pb2_grpc

_THREADS = 10  # as in gRPC's own examples
_GRACE_SECONDS = 10.0

# uint8 [N, H, W, 3] -> float32 [N, D]; called from several threads.
Model = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


@dataclass(frozen=True)
class Flags:
    """What a peer is told: which model to serve, and where."""

    bundle: Bundle
    address: str


def flags() -> Flags:
    """Reads the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--bundle", type=Path, required=True, metavar="DIR")
    parser.add_argument("--address", required=True, metavar="HOST:PORT")
    args = parser.parse_args()
    return Flags(bundles.load(args.bundle), args.address)


class Decoder:
    """Image bytes -> uint8 [H, W, 3], as Pillow's manual has it."""

    def __init__(self, bundle: Bundle) -> None:
        taken = bundle.manifest.input
        self._size = (taken.width, taken.height)
        self._filter = resizing.FILTERS[taken.resize]

    def __call__(self, data: bytes) -> NDArray[np.uint8]:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB").resize(self._size, self._filter))


class _Servicer(embedder_pb2_grpc.EmbedderServiceServicer):
    """Serves Embed: decodes in the thread of the call, and runs the model there."""

    def __init__(self, decode: Decoder, model: Model) -> None:
        self._decode = decode
        self._model = model

    def Embed(  # noqa: N802 - named as in the contract
        self, request: embedder_pb2.EmbedRequest, context: grpc.ServicerContext
    ) -> embedder_pb2.EmbedResponse:
        try:
            pixels = self._decode(request.image)
        except Exception as error:  # Pillow's decoders raise nearly anything on damaged input.
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"not an image: {error}")
        vector = self._model(pixels[np.newaxis])[0]
        return embedder_pb2.EmbedResponse(embedding=embedder_pb2.Embedding(values=vector.tolist()))


def serve(given: Flags, model: Model) -> None:
    """Serves Embed until SIGTERM or SIGINT, and lets calls finish."""
    server = grpc.server(
        ThreadPoolExecutor(_THREADS),
        options=[("grpc.max_receive_message_length", MAX_MESSAGE_BYTES), ("grpc.so_reuseport", 0)],
    )
    servicer = _Servicer(Decoder(given.bundle), model)  # type: ignore[abstract]  # the other calls are UNIMPLEMENTED
    embedder_pb2_grpc.add_EmbedderServiceServicer_to_server(servicer, server)
    server.add_insecure_port(given.address)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    server.start()
    stopping.wait()
    server.stop(_GRACE_SECONDS).wait()
