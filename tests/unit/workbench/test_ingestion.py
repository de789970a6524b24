"""Ingestion against a service that is busy, broken or picky: nothing is lost, and everything is counted once."""

import asyncio
from collections import Counter
from contextlib import asynccontextmanager

import grpc
import pytest
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2, status_pb2

from lookalike import AsyncClient, LookalikeError
from lookalike.search.v1 import search_pb2 as pb
from lookalike.search.v1 import search_pb2_grpc
from workbench import retries
from workbench.checkpoint import Checkpoint
from workbench.destinations import StoredCollection
from workbench.errors import CommandError
from workbench.images import find_images
from workbench.ingest import Ingestion, ingest
from workbench.inputs.found import Found

_STORED, _UNCHANGED, _FAILED = pb.UPSERT_OUTCOME_STORED, pb.UPSERT_OUTCOME_UNCHANGED, pb.UPSERT_OUTCOME_FAILED


class _Servicer(search_pb2_grpc.SearchServiceServicer):
    """Takes rows; what it does with one is told by the row's id, and how often it has seen it."""

    def __init__(self, call_error=None):
        self.seen = Counter()
        self.batches = []
        self.items = {}
        self._call_error = call_error

    def come_back(self):
        self._call_error = None

    async def DescribeCollection(self, request, context):  # noqa: N802
        if request.name == "missing":
            await context.abort(grpc.StatusCode.NOT_FOUND, "no collection missing")
        limits = pb.Limits(max_image_bytes=1000, max_batch_items=4, max_message_bytes=4000)
        return pb.DescribeCollectionResponse(collection=pb.Collection(name=request.name), limits=limits)

    async def Upsert(self, request, context):  # noqa: N802
        self.batches.append([item.id for item in request.items])
        if self._call_error:
            await context.abort(self._call_error, "not today")
        assert request.if_content_changed
        return pb.UpsertResponse(results=[self._store(item) for item in request.items])

    def _store(self, item):
        self.seen[item.id] += 1
        self.items[item.id] = item
        if "bad" in item.id:
            return self._failed(item.id, grpc.StatusCode.INVALID_ARGUMENT)
        if "busy" in item.id and self.seen[item.id] < 3:
            return self._failed(item.id, grpc.StatusCode.RESOURCE_EXHAUSTED)
        if "hopeless" in item.id:
            return self._failed(item.id, grpc.StatusCode.UNAVAILABLE)
        return pb.UpsertResult(id=item.id, outcome=_UNCHANGED if "old" in item.id else _STORED)

    def _failed(self, id, code):
        error = status_pb2.Status(code=code.value[0], message=f"no {id}")
        error.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(nanos=1_000_000)))
        return pb.UpsertResult(id=id, outcome=_FAILED, error=error)


class _Narrow(_Servicer):
    """Takes two calls at a time."""

    def __init__(self):
        super().__init__()
        self.refused = self._busy = 0

    async def Upsert(self, request, context):  # noqa: N802
        self._busy += 1
        try:
            if self._busy > 2:
                self.refused += 1
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "two are enough")
            await asyncio.sleep(0.01)  # how long a call takes
            return await super().Upsert(request, context)
        finally:
            self._busy -= 1


@asynccontextmanager
async def _client(servicer):
    server = grpc.aio.server()
    search_pb2_grpc.add_SearchServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with AsyncClient(f"127.0.0.1:{port}") as client:
            yield client
    finally:
        await server.stop(None)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr(retries, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(retries, "PATIENCE", 0.5)


def _files(root, *names, size=10):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(size))
    return find_images(root)


async def test_the_numbers_add_up_and_every_failure_has_a_reason(tmp_path):
    names = [f"cats/{kind}{number}.jpg" for kind in ("new", "old", "bad", "busy", "hopeless") for number in range(3)]
    files = _files(tmp_path, *names)
    shown = []
    servicer = _Servicer()
    async with _client(servicer) as client:
        report = await ingest(client, "photos", files, on_progress=lambda now: shown.append((now.done, now.failed)))
    assert (report.found, report.stored, report.unchanged) == (15, 6, 3)
    assert report.found == report.stored + report.unchanged + report.failed
    assert len(report.failures) == report.failed
    assert {failure.id: failure.reason for failure in report.failures} == {
        **{f"cats/bad{n}.jpg": f"INVALID_ARGUMENT: no cats/bad{n}.jpg" for n in range(3)},
        **{f"cats/hopeless{n}.jpg": f"UNAVAILABLE: no cats/hopeless{n}.jpg" for n in range(3)},
    }
    assert shown[-1] == (15, 6)
    assert servicer.seen["cats/bad0.jpg"] == 1, "what cannot succeed is not tried again"
    assert servicer.seen["cats/busy0.jpg"] == 3
    assert servicer.seen["cats/new0.jpg"] == 1, "what is stored is not sent again"


async def test_rows_say_where_they_come_from(tmp_path):
    servicer = _Servicer()
    async with _client(servicer) as client:
        await ingest(client, "photos", _files(tmp_path, "cats/a.jpg"))
    item = servicer.items["cats/a.jpg"]
    assert item.source == str((tmp_path / "cats/a.jpg").resolve())
    assert item.attributes["class"].string_value == "cats"


async def test_batches_keep_to_the_limits_of_the_service(tmp_path):
    servicer = _Servicer()
    async with _client(servicer) as client:
        await ingest(client, "photos", _files(tmp_path / "small", *(f"{n}.jpg" for n in range(10))), batch=32)
        assert sorted(map(len, servicer.batches), reverse=True)[:2] == [4, 4]
        assert sum(map(len, servicer.batches)) == 10
        servicer.batches.clear()
        await ingest(client, "photos", _files(tmp_path / "large", *(f"{n}.jpg" for n in range(4)), size=900))
        assert sum(map(len, servicer.batches)) == 4
        assert max(map(len, servicer.batches)) <= 2


async def test_files_that_cannot_be_sent_fail_alone(tmp_path):
    files = _files(tmp_path, "a.jpg", "gone.jpg")
    (tmp_path / "gone.jpg").unlink()
    large = _files(tmp_path / "large", "b.jpg", size=1001)
    async with _client(_Servicer()) as client:
        report = await ingest(client, "photos", [*files, *large])
    assert report.stored == 1
    assert {failure.id: failure.reason for failure in report.failures} == {
        "gone.jpg": "cannot be read: No such file or directory",
        "b.jpg": "has more than the 1,000 bytes that the service takes at most",
    }


@pytest.mark.parametrize(
    ("code", "again"), [(grpc.StatusCode.FAILED_PRECONDITION, False), (grpc.StatusCode.RESOURCE_EXHAUSTED, True)]
)
async def test_when_whole_calls_fail_the_rest_is_not_sent_but_counted(tmp_path, code, again):
    files = _files(tmp_path, *(f"{n:02}.jpg" for n in range(20)))
    servicer = _Servicer(call_error=code)
    async with _client(servicer) as client:
        report = await ingest(client, "photos", files, concurrency=1)
    # Pauses of 0.01, 0.02, 0.04 s and so on fill half a second with six attempts, or fewer on a slow machine.
    assert 2 <= len(servicer.batches) <= 6 if again else len(servicer.batches) == 1
    assert servicer.batches == [servicer.batches[0]] * len(servicer.batches)
    assert (report.stored, report.unchanged, len(report.failures)) == (0, 0, 20)
    assert report.stopped_by == f"{code.name}: not today"
    reasons = Counter(failure.reason for failure in report.failures)
    assert reasons == {f"{code.name}: not today": 4, f"not sent after {code.name}: not today": 16}
    assert {failure.id for failure in report.failures} == {file.id for file in files}


async def test_a_service_that_comes_back_finds_the_ingest_waiting(tmp_path, monkeypatch):
    monkeypatch.setattr(retries, "PATIENCE", 30.0)
    servicer = _Servicer(call_error=grpc.StatusCode.UNAVAILABLE)
    async with _client(servicer) as client, asyncio.timeout(20):
        storing = asyncio.create_task(ingest(client, "photos", _files(tmp_path, "a.jpg", "b.jpg")))
        while len(servicer.batches) < 10:  # noqa: ASYNC110 - the client by itself makes four of each
            await asyncio.sleep(0.01)
        servicer.come_back()
        report = await storing
    assert (report.stored, report.failures) == (2, [])


async def test_a_service_that_refuses_gets_fewer_calls_at_a_time_and_in_the_end_everything(tmp_path, monkeypatch):
    monkeypatch.setattr(retries, "PATIENCE", 30.0)
    files = _files(tmp_path, *(f"{n:03}.jpg" for n in range(400)))
    servicer = _Narrow()
    async with _client(servicer) as client:
        report = await ingest(client, "photos", files, batch=4, concurrency=8)
    assert (report.stored, report.failures) == (400, [])
    assert servicer.refused >= 1
    # With eight calls at a time throughout, three of four would be refused.
    assert servicer.refused < len(servicer.batches)


async def test_what_can_come_in_one_call_is_bounded_whatever_there_is_to_read(tmp_path):
    read = 0
    gate = asyncio.Event()

    class Slow(_Servicer):
        async def Upsert(self, request, context):  # noqa: N802
            await gate.wait()
            return await super().Upsert(request, context)

    def endless():
        nonlocal read
        for n in range(100_000):
            read += 1
            yield Found(f"{n}.jpg", "", {}, lambda most: bytes(100), at_once=True)

    servicer = Slow()
    async with _client(servicer) as client:
        ingestion = Ingestion(batch=4, concurrency=2)
        storing = asyncio.create_task(ingestion.run(StoredCollection(client, "photos"), endless()))
        before = -1
        while before != read or not read:
            before = read
            await asyncio.sleep(0.3)  # as long as nothing is read
        assert read <= 4 * (2 * 2 + 4)
        storing.cancel()
        gate.set()
        with pytest.raises(asyncio.CancelledError):
            await storing
    assert ingestion.report.found == read
    assert ingestion.report.done == 0


async def test_an_id_that_comes_twice_is_stored_once_and_reported(tmp_path):
    images = [Found("a", f"{n}.jpg", {}, lambda most: b"image", at_once=True) for n in range(3)]
    servicer = _Servicer()
    async with _client(servicer) as client:
        report = await Ingestion(concurrency=1).run(StoredCollection(client, "photos"), images)
    assert (report.found, report.stored, report.failed) == (3, 1, 2)
    assert servicer.items["a"].source == "0.jpg"
    assert {failure.source for failure in report.failures} == {"1.jpg", "2.jpg"}
    assert "came before in this run" in report.failures[0].reason


async def test_rows_that_no_message_can_hold_fail_alone(tmp_path):
    deep = 1
    for _ in range(100):
        deep = [deep]
    bad = {
        "nan": {"x": float("nan")},
        "huge": {"x": 2**63},
        "deep": {"x": deep},
        "binary": {"x": b"bytes"},
        "surrogate": {"x": "\udcff"},
        "name": {"\udcff": 1},
    }
    images = [Found(id, "", attributes, lambda most: b"image") for id, attributes in bad.items()]
    images.append(Found("id \udcff", "", {}, lambda most: b"image"))
    images.append(Found("good", "", {"x": {"y": [1, 2.5, None, True, "z"]}}, lambda most: b"image"))
    servicer = _Servicer()
    async with _client(servicer) as client:
        report = await Ingestion().run(StoredCollection(client, "photos"), images)
    assert (report.found, report.stored, report.failed) == (8, 1, 7)
    assert set(servicer.items) == {"good"}
    reasons = {failure.id: failure.reason for failure in report.failures}
    assert reasons["nan"] == "attribute 'x': number nan is not finite"
    assert reasons["deep"] == "attribute 'x': is nested more than 16 deep"
    assert reasons["surrogate"] == "attribute 'x': is not valid Unicode"
    assert "is not UTF-8" in reasons["id \udcff"]


async def test_what_finding_raises_ends_the_ingest(tmp_path):
    def images():
        yield Found("a", "", {}, lambda most: b"image")
        raise CommandError("the list is no list")

    async with _client(_Servicer()) as client:
        with pytest.raises(CommandError, match="the list is no list"):
            await Ingestion().run(StoredCollection(client, "photos"), images())


async def test_with_a_checkpoint_the_sums_are_those_of_the_whole_and_nothing_is_read_twice(tmp_path):
    read = []

    def images():
        for n in range(40):
            id = f"{'old' if n % 4 == 0 else 'bad' if n % 4 == 1 else 'new'}{n}"
            yield Found(id, "", {}, lambda most, id=id: read.append(id) or b"image")

    async with _client(_Servicer()) as client:
        for _ in range(2):
            read.clear()
            with Checkpoint(tmp_path / "checkpoint", {}) as checkpoint:
                report = await Ingestion(checkpoint=checkpoint).run(StoredCollection(client, "photos"), images())
            assert (report.found, report.stored, report.unchanged, report.failed) == (40, 20, 10, 10)
    assert report.resumed == 30
    assert sorted(read) == sorted(f"bad{n}" for n in range(1, 40, 4)), "what failed is tried again"


async def test_a_collection_that_is_not_there_is_an_error(tmp_path):
    async with _client(_Servicer()) as client:
        with pytest.raises(LookalikeError, match="NOT_FOUND: no collection missing"):
            await ingest(client, "missing", _files(tmp_path, "a.jpg"))
