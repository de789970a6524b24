"""The client of the embedder for asyncio."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Sequence
from contextlib import aclosing

from lookalike import types as t
from lookalike._convert import embedder as calls
from lookalike.batches import Batches
from lookalike.connection import AsyncConnection, aiter_any
from lookalike.embedder.v1 import embedder_pb2 as pb
from lookalike.embedder.v1.embedder_pb2_grpc import EmbedderServiceStub
from lookalike.errors import LookalikeError
from lookalike.security import Security


class AsyncEmbedderClient(AsyncConnection):
    """`EmbedderClient` for asyncio: the same methods, arguments, results and errors. Belongs to one event loop.

    >>> async with AsyncEmbedderClient("127.0.0.1:50051") as embedder:
    ...     embedding = await embedder.embed(Path("cat.jpg").read_bytes())
    ...     model = (await embedder.get_model()).model
    >>> embedding.vector.shape == (model.dimension,)
    True
    """

    def __init__(
        self,
        target: str = "127.0.0.1:50051",
        *,
        timeout: float = 30.0,
        retry: bool = True,
        security: Security | None = None,
    ) -> None:
        super().__init__(target, timeout, retry, security, EmbedderServiceStub)

    async def get_model(self) -> t.ModelDescription:
        """Describes the model that is served, and the limits on requests."""
        return await self._call(calls.get_model())

    async def embed(
        self, image: bytes, *, priority: t.Priority = t.Priority.UNSPECIFIED, expected_fingerprint: str = ""
    ) -> t.Embedding:
        """Embeds one image: returns its vector, float32 [D], of length 1."""
        return await self._call(calls.embed(image, priority, expected_fingerprint))

    async def embed_batch(
        self,
        images: Sequence[bytes],
        *,
        priority: t.Priority = t.Priority.UNSPECIFIED,
        expected_fingerprint: str = "",
    ) -> list[t.Embedding | LookalikeError]:
        """Embeds several images, at most `EmbedderLimits.max_batch_images`; returns a vector, or an error, for each."""
        return await self._call(calls.embed_batch(images, priority, expected_fingerprint))

    async def embed_stream(
        self,
        images: Iterable[tuple[str, bytes]] | AsyncIterable[tuple[str, bytes]],
        *,
        priority: t.Priority = t.Priority.UNSPECIFIED,
        expected_fingerprint: str = "",
    ) -> AsyncIterator[tuple[str, t.Embedding | LookalikeError]]:
        """Embeds any number of images, as `EmbedderClient.embed_stream` does; reading the images should not block.

        >>> images = ((path.name, path.read_bytes()) for path in Path().glob("*.jpg"))
        >>> sorted([name async for name, embedding in embedder.embed_stream(images)])
        ['cat.jpg', 'mirrored.jpg', 'query.jpg', 'rocket.jpg']
        """

        async def requests() -> AsyncIterator[pb.EmbedStreamRequest]:
            async for item in aiter_any(images):
                yield calls.embed_stream_request(item, priority, self._timeout, expected_fingerprint)

        # Closed with this generator, and not whenever it is collected.
        async with aclosing(self._stream(self._stub.EmbedStream, requests())) as responses:
            async for response in responses:
                yield calls.stream_result(response)

    async def embed_many(
        self,
        images: Iterable[bytes] | AsyncIterable[bytes],
        *,
        priority: t.Priority = t.Priority.UNSPECIFIED,
        expected_fingerprint: str = "",
    ) -> AsyncIterator[t.Embedding | LookalikeError]:
        """Embeds any number of images; yields the vector, or the error, of each, as `EmbedderClient.embed_many` does.

        >>> images = (Path(name).read_bytes() for name in ("cat.jpg", "rocket.jpg"))
        >>> len(to_numpy([embedding async for embedding in embedder.embed_many(images)]))
        2
        """

        async def send(part: list[bytes]) -> list[t.Embedding | LookalikeError]:
            return await self.embed_batch(part, priority=priority, expected_fingerprint=expected_fingerprint)

        limits = (await self.get_model()).limits
        batches = Batches[bytes](limits.max_batch_images, limits.max_message_bytes, limits.max_image_bytes)
        async with aclosing(self._in_batches(images, len, batches, send)) as results:
            async for result in results:
                yield result
