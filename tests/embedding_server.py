"""An embedding service in this process, whose model is plain arithmetic, and which can be held up."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from threading import Thread
from typing import Any

import grpc
import numpy as np

from lookalike.embedder.v1 import embedder_pb2 as pb
from lookalike.embedder.v1 import embedder_pb2_grpc
from search_service.embedder_client import EmbedderClient
from search_service.records import Vector, VectorSpace

BAD = b"not an image"


def vector_of(image: bytes, space: VectorSpace) -> Vector:
    """The vector, of length 1, that the model of a space makes of an image."""
    seed = hashlib.sha256(space.fingerprint.encode() + image).digest()
    vector = np.random.default_rng(list(seed)).standard_normal(space.dimension).astype(np.float32)
    unit: Vector = vector / np.linalg.norm(vector)
    return unit


class EmbeddingServer(embedder_pb2_grpc.EmbedderServiceServicer):
    """Embeds everything but what is `bad`; `space` may be changed, as by a restart with another model."""

    def __init__(self, space: VectorSpace) -> None:
        self.space = space
        self.bad = BAD
        self.asked = 0
        self.embedded: list[bytes] = []
        self.during: Callable[[], Any] | None = None
        self.target = ""

    async def GetModel(self, request: Any, context: Any) -> pb.GetModelResponse:  # noqa: N802
        self.asked += 1
        model = pb.Model(fingerprint=self.space.fingerprint, dimension=self.space.dimension)
        return pb.GetModelResponse(model=model, limits=pb.Limits(max_batch_images=4))

    async def EmbedBatch(self, request: pb.EmbedBatchRequest, context: Any) -> pb.EmbedBatchResponse:  # noqa: N802
        during, self.during = self.during, None
        if during is not None:
            await during()
        self.embedded += request.images
        results = []
        for image in request.images:
            result = pb.EmbedResult()
            if image == self.bad:
                result.error.code, result.error.message = grpc.StatusCode.INVALID_ARGUMENT.value[0], "it is no image"
            else:
                result.embedding.values.extend(vector_of(image, self.space).tolist())
            results.append(result)
        return pb.EmbedBatchResponse(results=results, model_fingerprint=self.space.fingerprint)


@asynccontextmanager
async def serving(*spaces: VectorSpace) -> AsyncIterator[tuple[list[EmbeddingServer], list[EmbedderClient]]]:
    """Runs an embedding service for each space, with a client of each."""
    servicers = [EmbeddingServer(space) for space in spaces]
    servers, clients = [], []
    for servicer in servicers:
        server = grpc.aio.server()
        embedder_pb2_grpc.add_EmbedderServiceServicer_to_server(servicer, server)
        servicer.target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        servers.append(server)
        clients.append(EmbedderClient(servicer.target, 1 << 20))
    try:
        yield servicers, clients
    finally:
        await asyncio.gather(*(client.aclose() for client in clients))
        await asyncio.gather(*(server.stop(None) for server in servers))


@contextmanager
def serving_in_a_thread(*spaces: VectorSpace) -> Iterator[list[str]]:
    """Runs an embedding service for each space, for other processes; gives their addresses."""
    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever, daemon=True)
    thread.start()
    context = serving(*spaces)
    try:
        servicers, _ = asyncio.run_coroutine_threadsafe(context.__aenter__(), loop).result()
        yield [servicer.target for servicer in servicers]
    finally:
        asyncio.run_coroutine_threadsafe(context.__aexit__(None, None, None), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
