"""The client of the embedder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing

from lookalike import types as t
from lookalike._convert import embedder as calls
from lookalike.batches import Batches
from lookalike.connection import Connection
from lookalike.embedder.v1.embedder_pb2_grpc import EmbedderServiceStub
from lookalike.errors import LookalikeError
from lookalike.security import Security


class EmbedderClient(Connection):
    """Turns images into vectors. Safe to share between threads.

    Images are the bytes of JPEG, PNG, WebP, GIF, BMP or TIFF files. Every method raises `LookalikeError` if the call
    failed. `priority` says whether somebody waits for the vectors (INTERACTIVE) or not (BULK).
    `expected_fingerprint`, if given, makes calls fail as FAILED_PRECONDITION unless the model has it.

    Args:
        target: the embedder, a gRPC name such as "127.0.0.1:50051" or "dns:///lookalike-embedder:50051".
        timeout: deadline of every call in seconds, for all its attempts together; see `with_timeout`.
        retry: whether calls are tried again, as those of `Client` are.
        security: TLS and a token, as for `Client`.

    >>> with EmbedderClient("127.0.0.1:50051") as embedder:
    ...     model = embedder.get_model().model
    ...     embedding = embedder.embed(Path("cat.jpg").read_bytes(), priority=Priority.INTERACTIVE)
    >>> embedding.vector.shape == (model.dimension,), embedding.fingerprint == model.fingerprint
    (True, True)
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

    def get_model(self) -> t.ModelDescription:
        """Describes the model that is served, and the limits on requests."""
        return self._call(calls.get_model())

    def embed(
        self, image: bytes, *, priority: t.Priority = t.Priority.UNSPECIFIED, expected_fingerprint: str = ""
    ) -> t.Embedding:
        """Embeds one image: returns its vector, float32 [D], of length 1."""
        return self._call(calls.embed(image, priority, expected_fingerprint))

    def embed_batch(
        self,
        images: Sequence[bytes],
        *,
        priority: t.Priority = t.Priority.UNSPECIFIED,
        expected_fingerprint: str = "",
    ) -> list[t.Embedding | LookalikeError]:
        """Embeds several images, at most `EmbedderLimits.max_batch_images`; returns a vector, or an error, for each.

        >>> cat, text = embedder.embed_batch([Path("cat.jpg").read_bytes(), b"not an image"])
        >>> round(float(cat.vector @ cat.vector), 3), text.code.name
        (1.0, 'INVALID_ARGUMENT')
        """
        return self._call(calls.embed_batch(images, priority, expected_fingerprint))

    def embed_stream(
        self,
        images: Iterable[tuple[str, bytes]],
        *,
        priority: t.Priority = t.Priority.UNSPECIFIED,
        expected_fingerprint: str = "",
    ) -> Iterator[tuple[str, t.Embedding | LookalikeError]]:
        """Embeds any number of images, given with ids of the caller's choice; yields id and vector, or error, of each.

        Results come as they are done, not in the order of the images. Images are asked for, in a thread, only as fast
        as the server takes them. The client's timeout holds for each image, from its arrival at the server. To stop
        early, close the generator.

        >>> images = ((path.name, path.read_bytes()) for path in Path().glob("*.jpg"))
        >>> vectors = dict(embedder.embed_stream(images))
        >>> sorted(vectors)
        ['cat.jpg', 'mirrored.jpg', 'query.jpg', 'rocket.jpg']
        """
        requests = (calls.embed_stream_request(item, priority, self._timeout, expected_fingerprint) for item in images)
        # Closed with this generator, and not whenever it is collected.
        with closing(self._stream(self._stub.EmbedStream, requests)) as responses:
            yield from map(calls.stream_result, responses)

    def embed_many(
        self,
        images: Iterable[bytes],
        *,
        priority: t.Priority = t.Priority.UNSPECIFIED,
        expected_fingerprint: str = "",
    ) -> Iterator[t.Embedding | LookalikeError]:
        """Embeds any number of images; yields the vector, or the error, of each, in their order.

        They are sent in batches that the embedder takes, two at a time; no more than three are in memory. Each batch
        has the client's timeout. An error of a whole batch ends it; what was embedded before has been yielded. To stop
        early, close the generator.

        >>> names = ["cat.jpg", "rocket.jpg", "mirrored.jpg"]
        >>> vectors = to_numpy(embedder.embed_many(Path(name).read_bytes() for name in names))
        >>> similarities = vectors @ vectors.T
        >>> bool(similarities[0, 2] > similarities[0, 1])
        True
        """

        def send(part: list[bytes]) -> list[t.Embedding | LookalikeError]:
            return self.embed_batch(part, priority=priority, expected_fingerprint=expected_fingerprint)

        limits = self.get_model().limits
        batches = Batches[bytes](limits.max_batch_images, limits.max_message_bytes, limits.max_image_bytes)
        with closing(self._in_batches(images, len, batches, send)) as results:
            yield from results
