"""Any number of queries and images in calls of the size that a service takes; both kinds of client alike."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager

import grpc
import pytest

from lookalike import (
    AsyncClient,
    AsyncEmbedderClient,
    Client,
    EmbedderClient,
    Embedding,
    Hits,
    LookalikeError,
    Query,
)
from lookalike.embedder.v1 import embedder_pb2, embedder_pb2_grpc
from lookalike.search.v1 import search_pb2 as pb
from lookalike.search.v1 import search_pb2_grpc

_IMAGE_BYTES = 1000
_MESSAGE_BYTES = 8000


class _Service(search_pb2_grpc.SearchServiceServicer, embedder_pb2_grpc.EmbedderServiceServicer):
    """Answers each query by its own id or image, and notes the sizes of the calls."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()

    def DescribeCollection(self, request, context):  # noqa: N802
        limits = pb.Limits(max_batch_queries=10, max_image_bytes=_IMAGE_BYTES, max_message_bytes=_MESSAGE_BYTES)
        return pb.DescribeCollectionResponse(limits=limits)

    def SearchBatch(self, request, context):  # noqa: N802
        with self._working(len(request.queries)):
            if "broken" in [query.id for query in request.queries]:
                context.abort(grpc.StatusCode.INTERNAL, "broken")
            if sum(query.id.startswith("much") for query in request.queries) > 1:
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many hits for a message")
            if "too much" in [query.id for query in request.queries]:
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many hits for a message")
            return pb.SearchBatchResponse(results=[self._result(query) for query in request.queries])

    def GetModel(self, request, context):  # noqa: N802
        limits = embedder_pb2.Limits(
            max_batch_images=10, max_image_bytes=_IMAGE_BYTES, max_message_bytes=_MESSAGE_BYTES
        )
        return embedder_pb2.GetModelResponse(limits=limits)

    def EmbedBatch(self, request, context):  # noqa: N802
        assert request.ByteSize() <= _MESSAGE_BYTES
        with self._working(len(request.images)):
            results = [
                embedder_pb2.EmbedResult(embedding=embedder_pb2.Embedding(values=[float(image[:4]), 1.0]))
                for image in request.images
            ]
            return embedder_pb2.EmbedBatchResponse(results=results, model_fingerprint="mine")

    @staticmethod
    def _result(query):
        row = query.id or query.image[:4].decode()
        return pb.SearchBatchResult(hits=pb.HitList(hits=[pb.Hit(record=pb.Record(id=row), similarity=1.0)]))

    @contextmanager
    def _working(self, items: int) -> Iterator[None]:
        with self._lock:
            self.calls.append(items)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            yield
        finally:
            with self._lock:
                self._at_once -= 1


@contextmanager
def _serving() -> Iterator[tuple[str, _Service]]:
    server = grpc.server(ThreadPoolExecutor(8))
    service = _Service()
    search_pb2_grpc.add_SearchServiceServicer_to_server(service, server)
    embedder_pb2_grpc.add_EmbedderServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}", service
    finally:
        server.stop(None).wait()


def _image(number: int, size: int = 10) -> bytes:
    return f"{number:04}".encode().ljust(size, b".")


def _ids(results) -> list[str]:
    return [",".join(result.ids) if isinstance(result, Hits) else result.code.name for result in results]


async def test_any_number_of_queries_is_answered_in_order():
    queries = [Query(id=str(number)) for number in range(95)]
    expected = [str(number) for number in range(95)]
    with _serving() as (target, service):
        with Client(target) as client:
            assert _ids(client.search_many("photos", iter(queries))) == expected
            assert sorted(service.calls) == [5, *[10] * 9]
            assert list(client.search_many("photos", [])) == []
        async with AsyncClient(target) as client:

            async def coming():
                for query in queries:
                    yield query

            for given in (queries, coming()):
                assert _ids([result async for result in client.search_many("photos", given)]) == expected
    assert sorted(service.calls) == [5] * 3 + [10] * 27
    assert service.most_at_once <= 2


async def test_batches_have_as_many_bytes_as_a_message_may_have():
    images = [_image(number, 900) for number in range(20)]
    with _serving() as (target, service):
        with EmbedderClient(target) as client:
            vectors = [result.vector[0] for result in client.embed_many(images)]
        assert vectors == list(range(20))
        assert service.calls == [4] * 5
        async with AsyncEmbedderClient(target) as client:
            assert [result.vector[0] async for result in client.embed_many(images)] == list(range(20))
    assert service.calls == [4] * 10


async def test_what_is_too_large_has_its_error_in_its_place():
    images = [_image(number, 5000 if number in (0, 3, 4) else 10) for number in range(6)]
    large = LookalikeError(
        grpc.StatusCode.INVALID_ARGUMENT, "the image has 5,000 bytes; the service takes 1,000 at most"
    )

    def check(results):
        assert [None if isinstance(result, Embedding) else result.args for result in results] == [
            large.args if number in (0, 3, 4) else None for number in range(6)
        ]

    with _serving() as (target, service):
        with EmbedderClient(target) as embedder, Client(target) as client:
            check(list(embedder.embed_many(images)))
            assert _ids(client.search_many("photos", [Query(image=image) for image in images])) == [
                "INVALID_ARGUMENT" if number in (0, 3, 4) else f"{number:04}" for number in range(6)
            ]
            nothing_to_send = service.calls.copy()
            assert [result.args for result in embedder.embed_many([images[0]])] == [large.args]
            assert service.calls == nothing_to_send
        async with AsyncEmbedderClient(target) as embedder:
            check([result async for result in embedder.embed_many(images)])


async def test_queries_whose_hits_are_too_many_for_a_message_are_asked_apart():
    ids = ["a", "much 1", "b", "much 2", "too much", "c", "much 3"]
    expected = ["RESOURCE_EXHAUSTED" if row == "too much" else row for row in ids]
    with _serving() as (target, _):
        with Client(target) as client:
            assert _ids(client.search_many("photos", [Query(id=row) for row in ids])) == expected
        async with AsyncClient(target) as client:
            results = client.search_many("photos", [Query(id=row) for row in ids])
            assert _ids([result async for result in results]) == expected


async def test_a_batch_that_fails_is_raised_after_the_results_before_it():
    ids = [*(str(number) for number in range(20)), "broken", *(str(number) for number in range(20))]
    with _serving() as (target, _):
        with Client(target) as client:
            results = client.search_many("photos", [Query(id=row) for row in ids])
            assert _ids(next(results) for _ in range(20)) == ids[:20]
            with pytest.raises(LookalikeError, match="INTERNAL: broken"):
                next(results)
        async with AsyncClient(target) as client:
            results = client.search_many("photos", [Query(id=row) for row in ids])
            assert _ids([await anext(results) for _ in range(20)]) == ids[:20]
            with pytest.raises(LookalikeError, match="INTERNAL: broken"):
                await anext(results)


async def test_items_are_read_only_as_far_as_three_batches_ahead():
    read = 0

    def endless():
        nonlocal read
        while True:
            read += 1
            yield Query(id=str(read))

    with _serving() as (target, _):
        with Client(target) as client:
            results = client.search_many("photos", endless())
            for number in range(1, 201):
                assert next(results).ids == [str(number)]
                assert read <= number + 30
            results.close()
        read = 0
        async with AsyncClient(target) as client, aclosing(client.search_many("photos", endless())) as results:
            for number in range(1, 201):
                assert (await anext(results)).ids == [str(number)]
                assert read <= number + 30


async def test_an_error_of_the_items_themselves_is_raised_as_it_is():
    def failing():
        yield from (_image(number) for number in range(25))
        raise FileNotFoundError("cat.jpg")

    with _serving() as (target, _):
        with EmbedderClient(target) as client, pytest.raises(FileNotFoundError, match=r"cat\.jpg"):
            list(client.embed_many(failing()))
        async with AsyncEmbedderClient(target) as client:
            with pytest.raises(FileNotFoundError, match=r"cat\.jpg"):
                [result async for result in client.embed_many(failing())]
