"""The client of the embedder for asyncio."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Sequence
from contextlib import aclosing

from lookalike import types as t
from lookalike._convert import embedder as convert
from lookalike.connection import AsyncConnection, aiter_any
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

    async def embed(
        self, image: bytes, *, priority: t.Priority = t.Priority.UNSPECIFIED, expected_fingerprint: str = ""
    ) -> t.Embedding:
        """Embeds one image: returns its vector, float32 [D], of length 1."""
        request = convert.embed_request(image, priority, expected_fingerprint)
        return convert.embedding(await self._call(self._stub.Embed, request))

    async def embed_batch(
        self,
        images: Sequence[bytes],
        *,
        priority: t.Priority = t.Priority.UNSPECIFIED,
        expected_fingerprint: str = "",
    ) -> list[t.Embedding | LookalikeError]:
        """Embeds several images, at most `EmbedderLimits.max_batch_images`; returns a vector, or an error, for each."""
        request = convert.embed_batch_request(images, priority, expected_fingerprint)
        return convert.embedding_batch(await self._call(self._stub.EmbedBatch, request))

    async def embed_stream(
        self,
        images: Iterable[tuple[str, bytes]] | AsyncIterable[tuple[str, bytes]],
        *,
        priority: t.Priority = t.Priority.UNSPECIFIED,
        expected_fingerprint: str = "",
    ) -> AsyncIterator[tuple[str, t.Embedding | LookalikeError]]:
        """Embeds any number of images, as `EmbedderClient.embed_stream` does; reading the images should not block.

        >>> async for path, embedding in embedder.embed_stream((path, Path(path).read_bytes()) for path in paths):
        ...     print(path, embedding)
        """

        async def requests() -> AsyncIterator[pb.EmbedStreamRequest]:
            async for item in aiter_any(images):
                yield convert.embed_stream_request(item, priority, self._timeout, expected_fingerprint)

        # Closed with this generator, and not whenever it is collected.
        async with aclosing(self._stream(self._stub.EmbedStream, requests())) as responses:
            async for response in responses:
                yield convert.stream_result(response)
