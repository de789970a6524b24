"""The client of the embedder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing

from lookalike import types as t
from lookalike._convert import embedder as convert
from lookalike.connection import Connection
from lookalike.embedder.v1 import embedder_pb2 as pb
from lookalike.embedder.v1.embedder_pb2_grpc import EmbedderServiceStub
from lookalike.errors import LookalikeError


class EmbedderClient(Connection):
    """Turns images into vectors. Safe to share between threads.

    Images are the bytes of JPEG, PNG, WebP, GIF, BMP or TIFF files. Every method raises `LookalikeError` if the call
    failed. `priority` says whether somebody waits for the vectors (INTERACTIVE) or not (BULK).
    `expected_fingerprint`, if given, makes calls fail as FAILED_PRECONDITION unless the model has it.

    Args:
        target: the embedder, a gRPC name such as "127.0.0.1:50051" or "dns:///lookalike-embedder:50051".
        timeout: deadline of every call in seconds.

    >>> with EmbedderClient("127.0.0.1:50051") as embedder:
    ...     embedding = embedder.embed(Path("cat.jpg").read_bytes())
    ...     embedding.vector.shape, embedding.fingerprint
    """

    def __init__(self, target: str = "127.0.0.1:50051", *, timeout: float = 30.0) -> None:
        super().__init__(target, timeout)
        self._stub = EmbedderServiceStub(self._channel)

    def get_model(self) -> t.ModelDescription:
        """Describes the model that is served, and the limits on requests."""
        return convert.model_description(self._call(self._stub.GetModel, pb.GetModelRequest()))

    def embed(
        self, image: bytes, *, priority: t.Priority = t.Priority.UNSPECIFIED, expected_fingerprint: str = ""
    ) -> t.Embedding:
        """Embeds one image: returns its vector, float32 [D], of length 1."""
        request = convert.embed_request(image, priority, expected_fingerprint)
        return convert.embedding(self._call(self._stub.Embed, request))

    def embed_batch(
        self,
        images: Sequence[bytes],
        *,
        priority: t.Priority = t.Priority.UNSPECIFIED,
        expected_fingerprint: str = "",
    ) -> list[t.Embedding | LookalikeError]:
        """Embeds several images, at most `EmbedderLimits.max_batch_images`; returns a vector, or an error, for each."""
        request = convert.embed_batch_request(images, priority, expected_fingerprint)
        return convert.embedding_batch(self._call(self._stub.EmbedBatch, request))

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

        >>> for path, embedding in embedder.embed_stream((path, Path(path).read_bytes()) for path in paths):
        ...     print(path, embedding)
        """
        requests = (
            convert.embed_stream_request(item, priority, self._timeout, expected_fingerprint) for item in images
        )
        # Closed with this generator, and not whenever it is collected.
        with closing(self._stream(self._stub.EmbedStream, requests)) as responses:
            yield from map(convert.stream_result, responses)
