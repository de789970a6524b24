"""The client of the embedder for asyncio."""

from __future__ import annotations

from collections.abc import Sequence

from lookalike import types as t
from lookalike._convert import embedder as convert
from lookalike.connection import AsyncConnection
from lookalike.embedder.v1 import embedder_pb2 as pb
from lookalike.embedder.v1.embedder_pb2_grpc import EmbedderServiceStub
from lookalike.errors import LookalikeError


class AsyncEmbedderClient(AsyncConnection):
    """`EmbedderClient` for asyncio: the same methods, arguments, results and errors. Belongs to one event loop.

    >>> async with AsyncEmbedderClient("127.0.0.1:50051") as embedder:
    ...     embedding = await embedder.embed(Path("cat.jpg").read_bytes())
    """

    def __init__(self, target: str = "127.0.0.1:50051", *, timeout: float = 30.0) -> None:
        super().__init__(target, timeout)
        self._stub = EmbedderServiceStub(self._channel)

    async def get_model(self) -> t.ModelDescription:
        """Describes the model that is served, and the limits on requests."""
        return convert.model_description(await self._call(self._stub.GetModel, pb.GetModelRequest()))

    async def embed(self, image: bytes, *, expected_fingerprint: str = "") -> t.Embedding:
        """Embeds one image: returns its vector, float32 [D], of length 1."""
        request = convert.embed_request(image, expected_fingerprint)
        return convert.embedding(await self._call(self._stub.Embed, request))

    async def embed_batch(
        self, images: Sequence[bytes], *, expected_fingerprint: str = ""
    ) -> list[t.Embedding | LookalikeError]:
        """Embeds several images, at most `EmbedderLimits.max_batch_images`; returns a vector, or an error, for each."""
        request = convert.embed_batch_request(images, expected_fingerprint)
        return convert.embedding_batch(await self._call(self._stub.EmbedBatch, request))
