"""A service that refuses calls and says when to come back; both kinds of client alike."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from lookalike import AsyncClient, Client, LookalikeError
from lookalike.retries import Attempts
from lookalike.search.v1 import search_pb2 as pb
from lookalike.search.v1 import search_pb2_grpc


class _Busy(search_pb2_grpc.SearchServiceServicer):
    """Refuses so many calls, and notes when each came and what it had left of its deadline."""

    def __init__(self, refusals: int, retry_after: float | None, code: grpc.StatusCode) -> None:
        self.came: list[float] = []
        self.left: list[float] = []
        self._refusals = refusals
        self._code = code
        self._details = []
        if retry_after is not None:
            delay = duration_pb2.Duration()
            delay.FromNanoseconds(round(retry_after * 1e9))
            self._details = [error_details_pb2.RetryInfo(retry_delay=delay)]

    def Count(self, request, context):  # noqa: N802
        self._refuse(context)
        return pb.CountResponse(count=7)

    def CreateCollection(self, request, context):  # noqa: N802
        self._refuse(context)

    def Scan(self, request, context):  # noqa: N802
        if request.filter.expression != "late":
            self._refuse(context)
        yield pb.ScanResponse(records=[pb.Record(id="a"), pb.Record(id="b")])
        if request.filter.expression == "late":
            self._refuse(context)

    def _refuse(self, context):
        self.came.append(time.monotonic())
        self.left.append(context.time_remaining())
        if len(self.came) <= self._refusals:
            status = status_pb2.Status(code=self._code.value[0], message="busy")
            for detail in self._details:
                status.details.add().Pack(detail)
            context.abort_with_status(rpc_status.to_status(status))


@contextmanager
def _busy(
    refusals: int, retry_after: float | None = 0.1, code: grpc.StatusCode = grpc.StatusCode.RESOURCE_EXHAUSTED
) -> Iterator[tuple[str, _Busy]]:
    server = grpc.server(ThreadPoolExecutor(2))
    servicer = _Busy(refusals, retry_after, code)
    search_pb2_grpc.add_SearchServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}", servicer
    finally:
        server.stop(None).wait()


def _assert_came_back_later_each_time(servicer: _Busy) -> None:
    first, second, third = servicer.came
    assert second - first >= 0.1
    assert third - second >= 0.2
    # The deadline given to each attempt is what is left of the whole; gRPC sends it in steps of 10 ms.
    assert servicer.left[0] - servicer.left[2] == pytest.approx(third - first, abs=0.1)


def test_a_refused_call_comes_back_when_it_was_told_to():
    with _busy(refusals=2) as (target, servicer), Client(target, timeout=8) as client:
        assert client.count("photos") == 7
    _assert_came_back_later_each_time(servicer)


async def test_a_refused_call_of_asyncio_comes_back_when_it_was_told_to():
    with _busy(refusals=2) as (target, servicer):
        async with AsyncClient(target, timeout=8) as client:
            assert await client.count("photos") == 7
    _assert_came_back_later_each_time(servicer)


async def test_a_refused_scan_comes_back_before_its_first_row_only():
    with _busy(refusals=1) as (target, servicer), Client(target) as client:
        assert [record.id for record in client.scan("photos")] == ["a", "b"]
    assert len(servicer.came) == 2
    with _busy(refusals=1) as (target, servicer):
        async with AsyncClient(target) as client:
            assert [record.id async for record in client.scan("photos")] == ["a", "b"]
    assert len(servicer.came) == 2
    with _busy(refusals=1) as (target, servicer), Client(target) as client:
        rows = client.scan("photos", filter="late")
        assert [next(rows).id, next(rows).id] == ["a", "b"]
        with pytest.raises(LookalikeError, match="busy"):
            next(rows)
    assert len(servicer.came) == 1


async def test_a_refusal_until_after_the_deadline_is_raised_at_once():
    with _busy(refusals=9, retry_after=60) as (target, servicer):
        with Client(target, timeout=30) as client, pytest.raises(LookalikeError) as caught:
            client.count("photos")
        async with AsyncClient(target, timeout=30) as client:
            with pytest.raises(LookalikeError):
                await client.count("photos")
    assert (caught.value.code, caught.value.retry_after) == (grpc.StatusCode.RESOURCE_EXHAUSTED, 60)
    assert len(servicer.came) == 2
    assert servicer.came[1] - servicer.came[0] < 10


@pytest.mark.parametrize("code", [grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE])
async def test_without_retry_a_call_is_one_attempt(code):
    with _busy(refusals=9, code=code) as (target, servicer):
        with Client(target, retry=False) as client, pytest.raises(LookalikeError):
            client.count("photos")
        async with AsyncClient(target, retry=False) as client:
            with pytest.raises(LookalikeError):
                await client.count("photos")
    assert len(servicer.came) == 2


def test_what_is_unavailable_until_a_time_comes_back_then():
    # One more than the attempts of the channel, which knows nothing of that time.
    with _busy(refusals=4, code=grpc.StatusCode.UNAVAILABLE) as (target, servicer), Client(target) as client:
        assert client.count("photos") == 7
    assert len(servicer.came) == 5


@pytest.mark.parametrize("code", [grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE])
def test_what_may_have_been_done_is_not_done_again(code):
    with _busy(9, code=code) as (target, servicer), Client(target) as client, pytest.raises(LookalikeError):
        client.create_collection("photos")
    assert len(servicer.came) == 1


def test_a_refusal_without_a_time_is_raised():
    with _busy(9, retry_after=None) as (target, servicer), Client(target) as client, pytest.raises(LookalikeError):
        client.count("photos")
    assert len(servicer.came) == 1


def test_the_pause_is_never_shorter_than_asked_for_and_bounded_otherwise():
    soon = LookalikeError(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy", 0.0)
    later = LookalikeError(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy", 40.0)
    attempts = Attempts("Count", 1000, retry=True)
    pauses = [attempts.pause_after(soon) for _ in range(20)]
    assert 0.05 <= pauses[0] <= 0.075
    assert pauses == [pytest.approx(min(15, 0.05 * 2**number) * 1.25, rel=0.21) for number in range(20)]
    assert 40 <= attempts.pause_after(later) <= 60


async def test_one_connection_has_calls_of_different_deadlines():
    with _busy(refusals=0) as (target, servicer):
        with Client(target, timeout=30) as client:
            assert client.with_timeout(5).count("photos") == client.count("photos") == 7
            with pytest.raises(LookalikeError) as caught:
                client.with_timeout(-1).count("photos")
        async with AsyncClient(target, timeout=30) as client:
            assert await client.with_timeout(5).count("photos") == await client.count("photos") == 7
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert [round(left) for left in servicer.left] == pytest.approx([5, 30, 5, 30], abs=2)
