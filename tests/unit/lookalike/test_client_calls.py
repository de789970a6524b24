"""The clients against a gRPC server: retries, deadlines, errors; both kinds of client alike."""

import asyncio
import pickle
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from lookalike import AsyncClient, Client, Embedding, Item, LookalikeError
from lookalike.search.v1 import search_pb2 as pb
from lookalike.search.v1 import search_pb2_grpc


class _Servicer(search_pb2_grpc.SearchServiceServicer):
    """Fails each method in its own way, and counts the calls."""

    def __init__(self) -> None:
        self.calls = 0

    def Count(self, request, context):  # noqa: N802
        self.calls += 1
        context.set_trailing_metadata((("lookalike-request-id", "a-1"),))
        if request.collection == "wrong":
            context.abort(grpc.StatusCode.NOT_FOUND, "no such collection")
        if request.collection == "flaky" and self.calls <= 2:
            context.abort(grpc.StatusCode.UNAVAILABLE, "starting")
        if request.collection == "slow":
            time.sleep(0.5)
        if request.collection == "busy":
            status = status_pb2.Status(code=grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], message="the queue is full")
            status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=3)))
            details = rpc_status.to_status(status)
            context.set_trailing_metadata((("lookalike-request-id", "a-1"), *details.trailing_metadata))
            context.abort(details.code, details.details)
        return pb.CountResponse(count=7)

    def CreateCollection(self, request, context):  # noqa: N802
        self.calls += 1
        if request.name == "flaky":
            context.abort(grpc.StatusCode.UNAVAILABLE, "starting")
        context.abort(grpc.StatusCode.ALREADY_EXISTS, f"collection {request.name} exists")

    def CreateCollectionVersion(self, request, context):  # noqa: N802
        self.calls += 1
        context.abort(grpc.StatusCode.UNAVAILABLE, "starting")

    def DescribeCollection(self, request, context):  # noqa: N802
        return pb.DescribeCollectionResponse(collection=pb.Collection(name=request.name))

    def Upsert(self, request, context):  # noqa: N802
        self.calls += 1
        if self.calls <= 1:
            context.abort(grpc.StatusCode.UNAVAILABLE, "starting")
        return pb.UpsertResponse(results=[pb.UpsertResult(id=item.id) for item in request.items])

    def UpsertStream(self, requests, context):  # noqa: N802
        for request in requests:
            if request.sequence == 2 and request.collection == "failing":
                context.abort(grpc.StatusCode.INTERNAL, "broken")
            yield pb.UpsertStreamResponse(sequence=request.sequence, result=pb.UpsertResult(id=request.item.id))


@contextmanager
def _serving() -> Iterator[tuple[str, _Servicer]]:
    server = grpc.server(ThreadPoolExecutor(2), options=[("grpc.max_receive_message_length", 64 << 20)])
    servicer = _Servicer()
    search_pb2_grpc.add_SearchServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}", servicer
    finally:
        server.stop(None).wait()


def test_a_call_is_tried_again_while_the_service_is_unavailable():
    with _serving() as (target, servicer), Client(target) as client:
        assert client.count("flaky") == 7
        assert servicer.calls == 3


async def test_a_call_of_asyncio_is_tried_again_too():
    with _serving() as (target, servicer):
        async with AsyncClient(target) as client:
            assert await client.count("flaky") == 7
        assert servicer.calls == 3


def test_a_batch_of_many_bytes_is_tried_again_too():
    with _serving() as (target, servicer), Client(target) as client:
        results = client.upsert("photos", [Item("a", image=bytes(8 << 20))])
        assert [result.id for result in results] == ["a"]
        assert servicer.calls == 2


def test_creating_is_not_tried_again():
    with _serving() as (target, servicer), Client(target) as client:
        with pytest.raises(LookalikeError, match="UNAVAILABLE: starting"):
            client.create_collection("flaky")
        assert servicer.calls == 1


def test_creating_a_version_is_not_tried_again():
    with _serving() as (target, servicer), Client(target) as client:
        with pytest.raises(LookalikeError, match="UNAVAILABLE: starting"):
            client.create_collection_version("flaky")
        assert servicer.calls == 1


def test_an_existing_collection_may_be_what_the_caller_wants():
    with _serving() as (target, _), Client(target) as client:
        assert client.create_collection("photos", if_not_exists=True).name == "photos"
        with pytest.raises(LookalikeError, match="ALREADY_EXISTS: collection photos exists"):
            client.create_collection("photos")


def test_an_error_says_when_to_come_back():
    with _serving() as (target, _), Client(target, retry=False) as client, pytest.raises(LookalikeError) as caught:
        client.count("busy")
    assert (caught.value.code, caught.value.retry_after) == (grpc.StatusCode.RESOURCE_EXHAUSTED, 3.0)


async def test_an_error_of_asyncio_says_when_to_come_back():
    with _serving() as (target, _):
        async with AsyncClient(target, retry=False) as client:
            with pytest.raises(LookalikeError) as caught:
                await client.count("busy")
    assert (caught.value.code, caught.value.retry_after) == (grpc.StatusCode.RESOURCE_EXHAUSTED, 3.0)


@pytest.mark.parametrize("collection", ["wrong", "busy"])
async def test_an_error_carries_the_id_of_the_request(collection):
    with _serving() as (target, _):
        with Client(target, retry=False) as client, pytest.raises(LookalikeError, match=r" \(request a-1\)$") as caught:
            client.count(collection)
        assert caught.value.request_id == "a-1"
        assert "a-1" not in caught.value.message
        async with AsyncClient(target, retry=False) as client:
            with pytest.raises(LookalikeError) as caught:
                await client.count(collection)
        assert caught.value.request_id == "a-1"


def test_an_error_without_an_answer_has_no_id():
    with Client("127.0.0.1:1", timeout=0.2) as client, pytest.raises(LookalikeError) as caught:
        client.count("photos")
    assert caught.value.request_id is None
    assert "request" not in str(caught.value)


def test_an_error_survives_the_way_to_another_process():
    error = LookalikeError(grpc.StatusCode.NOT_FOUND, "no such collection", 1.5, "a-1")
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.code, copy.message, copy.retry_after, copy.request_id) == error.args


def test_a_call_ends_at_its_deadline():
    with _serving() as (target, _), Client(target, timeout=0.1) as client, pytest.raises(LookalikeError) as caught:
        client.count("slow")
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


def test_nobody_listening_is_an_error_of_a_few_seconds():
    begun = time.monotonic()
    with Client("127.0.0.1:1") as client, pytest.raises(LookalikeError) as caught:
        client.count("photos")
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    assert time.monotonic() - begun < 10


def _items(count: int, *, then_fail: bool = False) -> Iterator[Item]:
    for number in range(count):
        yield Item(str(number), vector=Embedding([1, 0], "mine"))
    if then_fail:
        raise FileNotFoundError("cat.jpg")


async def _collect(results):
    return [result.id async for result in results]


async def test_a_stream_of_items_yields_a_result_for_each():
    with _serving() as (target, _):
        with Client(target) as client:
            assert [result.id for result in client.upsert_stream("photos", _items(5))] == ["0", "1", "2", "3", "4"]
            assert list(client.upsert_stream("photos", [])) == []
        async with AsyncClient(target) as client:
            assert await _collect(client.upsert_stream("photos", _items(3))) == ["0", "1", "2"]


async def test_a_stream_that_fails_raises_after_the_results_it_had():
    with _serving() as (target, _):
        with Client(target) as client:
            results = client.upsert_stream("failing", _items(5))
            assert [next(results).id, next(results).id] == ["0", "1"]
            with pytest.raises(LookalikeError, match="INTERNAL: broken"):
                next(results)
        async with AsyncClient(target) as client:
            with pytest.raises(LookalikeError, match="INTERNAL: broken"):
                await _collect(client.upsert_stream("failing", _items(5)))


async def test_a_write_that_meets_the_end_of_a_stream_does_not_hide_its_status():
    async def endless():
        while True:
            yield Item("a", vector=Embedding([1, 0], "mine"))

    with _serving() as (target, _):
        async with AsyncClient(target) as client:
            for _ in range(20):  # of which grpc.aio hides most
                with pytest.raises(LookalikeError, match="INTERNAL: broken"):
                    await _collect(client.upsert_stream("failing", endless()))


async def test_an_error_in_what_a_stream_sends_is_raised_as_it_is():
    async def failing():
        for item in _items(2, then_fail=True):
            yield item

    with _serving() as (target, _):
        with Client(target) as client, pytest.raises(FileNotFoundError, match=r"cat\.jpg"):
            list(client.upsert_stream("photos", _items(2, then_fail=True)))
        async with AsyncClient(target) as client:
            for items in (_items(2, then_fail=True), failing()):
                with pytest.raises(FileNotFoundError, match=r"cat\.jpg"):
                    await _collect(client.upsert_stream("photos", items))


async def test_a_stream_ends_at_its_own_deadline():
    async def endless():
        while True:
            yield Item("a", vector=Embedding([1, 0], "mine"))
            await asyncio.sleep(0.01)

    with _serving() as (target, _):
        async with AsyncClient(target) as client:
            with pytest.raises(LookalikeError) as caught:
                await _collect(client.upsert_stream("photos", endless(), timeout=0.3))
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
