"""Streams of rows into a real Milvus Lite, without a transport. Images are part of the integration tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing

import numpy as np
import pytest
from milvus_samples import DIMENSION, SPACE, within

from search_service.embedder_client import EmbedderClient
from search_service.embedders import Embedders
from search_service.milvus_rows import EncodedRow
from search_service.records import CollectionVersion, Embedding
from search_service.service import SearchService
from search_service.settings import SearchSettings
from search_service.store import MilvusStore
from search_service.upsert_stream import StreamedItem, upsert_stream
from search_service.writes import Item, Outcome
from service_kit import sharing
from service_kit.errors import InvalidArgument, NotFound, ServiceError, Unavailable


class HeldStore(MilvusStore):
    """A store whose writes of rows can be held up, and which notes the ids of each and for whom it is."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.writes: list[list[str]] = []
        self.callers: list[str] = []
        self.free = asyncio.Event()
        self.free.set()

    async def write(self, version: CollectionVersion, rows: Sequence[EncodedRow], *, deadline: float) -> int:
        self.writes.append([row["id"] for row in rows])
        self.callers.append(sharing.caller())
        await self.free.wait()
        return await super().write(version, rows, deadline=deadline)


class Stream:
    """A caller: what it sends, what came back, and whether it reads."""

    def __init__(self, store: MilvusStore, embedder: EmbedderClient, rows: int, size: int) -> None:
        settings = SearchSettings(max_stream_rows=rows, max_stream_bytes=size)
        self.sent: asyncio.Queue[StreamedItem | None] = asyncio.Queue()
        self.read = 0  # messages the server has asked for and got
        self.results: list[tuple[int, str | type]] = []
        self.reads = asyncio.Event()
        self.reads.set()
        self.draining = asyncio.Event()
        service = SearchService(store, Embedders([embedder]), settings)
        self.call = asyncio.create_task(
            upsert_stream(service, self._items(), self._write, settings, deadline=within, draining=self.draining)
        )

    def send(
        self, sequence: int, id: str, *, ok: bool = True, collection: str = "", tenant: str = "", size: int = 100
    ) -> None:
        content = Embedding(np.full(DIMENSION, 1.0 if ok else np.nan, np.float32), SPACE.fingerprint)
        item = Item(id, content, {"sequence": sequence}, "")
        where = collection or ("photos" if sequence == 1 else "")
        self.sent.put_nowait(StreamedItem(where, tenant, sequence, id, item, False, size))

    def end(self) -> None:
        self.sent.put_nowait(None)

    async def _items(self) -> AsyncIterator[StreamedItem]:
        while item := await self.sent.get():
            self.read += 1
            yield item

    async def _write(self, item: StreamedItem, outcome: Outcome) -> None:
        await self.reads.wait()
        self.results.append((item.sequence, type(outcome) if isinstance(outcome, ServiceError) else outcome))

    async def until(self, condition: Callable[[], bool]) -> None:
        for _ in range(4000):
            if condition():
                return
            await asyncio.sleep(0.005)
        raise TimeoutError

    async def settled(self) -> None:
        """Lets everything go on that can: how else to see that something does not happen."""
        for _ in range(100):
            await asyncio.sleep(0.002)


@pytest.fixture
async def store(uri: str) -> AsyncIterator[HeldStore]:
    async with HeldStore(uri) as opened:
        yield opened
        opened.free.set()


@pytest.fixture
async def start(store: HeldStore, photos: CollectionVersion) -> AsyncIterator[Callable[..., Stream]]:
    made: list[Stream] = []
    async with aclosing(EmbedderClient("127.0.0.1:1", 1 << 20)) as embedder:

        def start(rows: int = 6, size: int = 1 << 20) -> Stream:
            made.append(Stream(store, embedder, rows, size))
            return made[-1]

        yield start
        for stream in made:
            stream.call.cancel()
            await asyncio.wait([stream.call])


async def stored(store: MilvusStore, photos: CollectionVersion, *ids: str) -> dict[str, int]:
    """The sequence number that each row was stored with."""
    rows = await store.get(photos, ids, deadline=within())
    return {id: (row.attributes or {})["sequence"] for id, row in rows.items()}


async def test_every_row_is_acknowledged_in_order_and_a_bad_one_fails_alone(start, store, photos) -> None:
    stream = start()
    for sequence in range(1, 21):
        stream.send(sequence, str(sequence), ok=sequence != 7)
    stream.send(30, "")
    stream.end()
    await stream.call
    expected = [(n, InvalidArgument if n == 7 else "stored") for n in range(1, 21)]
    assert stream.results == [*expected, (30, InvalidArgument)]
    assert await store.count(photos, deadline=within()) == 19


async def test_a_row_is_acknowledged_only_when_milvus_has_acknowledged_it(start, store) -> None:
    store.free.clear()
    stream = start()
    for sequence in (1, 2):
        stream.send(sequence, str(sequence), ok=sequence == 1)
    await stream.until(lambda: bool(store.writes))
    await stream.settled()
    assert stream.results == []
    store.free.set()
    await stream.until(lambda: stream.results == [(1, "stored"), (2, InvalidArgument)])


async def test_rows_that_come_while_a_batch_is_written_make_the_next_one(start, store) -> None:
    store.free.clear()
    stream = start(rows=30)
    stream.send(1, "1")
    await stream.until(lambda: bool(store.writes))
    stream.send(2, "2")
    await stream.settled()  # prepared already, beside the write
    for sequence in range(3, 9):
        stream.send(sequence, str(sequence))
    await stream.settled()
    assert store.writes == [["1"]]
    store.free.set()
    stream.end()
    await stream.call
    assert store.writes == [["1"], ["2"], ["3", "4", "5", "6", "7", "8"]]


@pytest.mark.parametrize("limits", [{"rows": 6}, {"rows": 600, "size": 600}])
async def test_no_more_is_read_than_may_be_in_flight(start, store, limits: dict[str, int]) -> None:
    store.free.clear()
    stream = start(**limits)
    for sequence in range(1, 31):
        stream.send(sequence, str(sequence))
    await stream.until(lambda: stream.read == 6)
    await stream.settled()
    assert stream.read == 6
    store.free.set()
    stream.end()
    await stream.call
    assert len(stream.results) == 30
    assert max(map(len, store.writes)) == 2


async def test_a_row_larger_than_all_that_may_be_in_flight_is_stored_alone(start, store) -> None:
    stream = start(size=1 << 10)
    for sequence in range(1, 4):
        stream.send(sequence, str(sequence), size=1 << 20 if sequence == 2 else 100)
    stream.end()
    await stream.call
    assert [outcome for _, outcome in stream.results] == ["stored"] * 3


async def test_a_caller_that_does_not_read_its_acknowledgements_is_not_read_and_harms_nobody(start, store) -> None:
    slow, other = start(), start()
    slow.reads.clear()
    for sequence in range(1, 31):
        slow.send(sequence, f"slow {sequence}")
    await slow.until(lambda: slow.read == 6)
    await slow.settled()
    assert slow.read == 6
    for sequence in range(1, 31):
        other.send(sequence, f"other {sequence}")
    other.end()
    await other.call
    assert len(other.results) == 30
    assert slow.read == 6
    slow.reads.set()
    slow.end()
    await slow.call
    assert [sequence for sequence, _ in slow.results] == list(range(1, 31))


async def test_of_several_rows_with_one_id_the_last_wins_within_and_between_batches(start, store, photos) -> None:
    stream = start()
    for sequence in range(1, 42):
        stream.send(sequence, "ab"[sequence % 2], ok=sequence < 41)
    stream.end()
    await stream.call
    assert len(store.writes) > 5
    assert {outcome for _, outcome in stream.results[:-1]} <= {"stored", "superseded"}
    assert stream.results[-1] == (41, InvalidArgument)
    assert await stored(store, photos, "a", "b") == {"a": 40, "b": 39}


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        ({"sequence": 3}, "sequence 3 follows 3"),
        ({"sequence": 2}, "sequence 2 follows 3"),
        ({"sequence": 4, "collection": "others"}, "collection 'others'.*began with 'photos'"),
        ({"sequence": 4, "tenant": "acme"}, "tenant 'acme'.*began with ''"),
    ],
)
async def test_a_message_that_does_not_belong_ends_the_stream_after_what_was_read_is_acknowledged(
    start, store, photos, message: dict[str, str], complaint: str
) -> None:
    store.free.clear()
    stream = start()
    for sequence in (1, 3):
        stream.send(sequence, str(sequence))
    stream.send(id="wrong", **message)
    await stream.settled()
    assert not stream.call.done()
    store.free.set()
    with pytest.raises(InvalidArgument, match=complaint):
        await stream.call
    assert stream.results == [(1, "stored"), (3, "stored")]
    assert await stored(store, photos, "1", "3", "wrong") == {"1": 1, "3": 3}


async def test_the_first_message_must_name_a_collection(start) -> None:
    stream = start()
    stream.send(2, "a")
    with pytest.raises(InvalidArgument, match="names no collection"):
        await stream.call


async def test_a_collection_that_does_not_exist_ends_the_stream(start) -> None:
    stream = start()
    stream.send(1, "a", collection="nowhere")
    with pytest.raises(NotFound, match="nowhere"):
        await stream.call
    assert stream.results == []


async def test_draining_ends_the_stream_once_what_was_read_is_acknowledged(start, store) -> None:
    store.free.clear()
    stream = start()
    for sequence in (1, 2, 3):
        stream.send(sequence, str(sequence))
    await stream.until(lambda: stream.read == 3)
    stream.draining.set()
    await stream.settled()
    assert not stream.call.done()
    stream.send(4, "4")
    store.free.set()
    with pytest.raises(Unavailable, match="to another one"):
        await stream.call
    assert [sequence for sequence, _ in stream.results] == [1, 2, 3]


async def test_a_stream_that_its_caller_has_ended_is_not_cut_short_by_draining(start, store) -> None:
    store.free.clear()
    stream = start()
    stream.send(1, "1")
    stream.end()
    await stream.until(lambda: bool(store.writes))
    stream.draining.set()
    store.free.set()
    await stream.call
    assert stream.results == [(1, "stored")]


async def test_a_caller_that_vanishes_harms_nobody(start, store, photos) -> None:
    store.free.clear()
    gone, other = start(), start()
    for sequence in range(1, 10):
        gone.send(sequence, f"gone {sequence}")
        other.send(sequence, f"other {sequence}")
    other.end()
    await gone.until(lambda: len(store.writes) == 2)
    gone.call.cancel()
    await asyncio.wait([gone.call])
    store.free.set()
    await other.call
    assert other.results == [(n, "stored") for n in range(1, 10)]
    assert gone.results == []


async def test_a_caller_whose_sending_fails_ends_the_stream(start) -> None:
    stream = start()

    async def broken() -> None:
        raise ConnectionResetError

    stream.send(1, "1")
    stream.sent.get = broken
    with pytest.raises(ConnectionResetError):
        await stream.call


async def test_a_stream_takes_the_turns_of_its_tenant(store: HeldStore, start: Callable[..., Stream]) -> None:
    await store.create_collection("shared", SPACE, multi_tenant=True, deadline=within())
    stream = start()
    stream.send(1, "a", collection="shared", tenant="acme")
    stream.end()
    await stream.call
    assert stream.results == [(1, "stored")]
    assert store.callers == ["anybody/acme"]
