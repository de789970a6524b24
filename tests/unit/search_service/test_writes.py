"""Writes to collections of several versions, on real Milvus Lite."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import numpy as np
import pytest
from embedding_server import BAD, EmbeddingServer, serving, vector_of
from milvus_samples import on_lite, within

from search_service.embedders import Embedders
from search_service.filters import Filter
from search_service.records import CollectionVersion, Embedding, IndexSpec, VectorSpace
from search_service.store import MilvusStore
from search_service.writes import Item, Outcome, Writer
from service_kit.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, NotFound

OLD, NEW = VectorSpace("old-model", 8), VectorSpace("new-model", 6)


def item(row_id: str, content: bytes | Embedding = b"", n: int = 0) -> Item:
    return Item(row_id, content or row_id.encode(), {"n": n}, "")


async def upsert(writer: Writer, *items: Item, if_content_changed: bool = False) -> Sequence[Outcome]:
    conditional = range(len(items)) if if_content_changed else ()
    prepared = await writer.prepare("photos", "", items, if_content_changed=conditional, deadline=within())
    await writer.write(prepared, deadline=within())
    return prepared.outcomes


class Photos:
    """A collection of the old model, a writer to it, and the embedders that the writer knows."""

    def __init__(self, store: MilvusStore, writer: Writer, servers: dict[str, EmbeddingServer]) -> None:
        self.store = store
        self.writer = writer
        self.servers = servers

    async def upsert(self, *items: Item, if_content_changed: bool = False) -> Sequence[Outcome]:
        return await upsert(self.writer, *items, if_content_changed=if_content_changed)

    async def create_version(self, space: VectorSpace = NEW) -> CollectionVersion:
        return await self.store.create_version("photos", space, IndexSpec("FLAT"), deadline=within())

    async def switch(self, number: int) -> None:
        await self.store.switch("photos", number, deadline=within())

    async def rows(self, number: int) -> dict[str, int]:
        """The rows of a version, by id, with their attribute `n`; all vectors are looked at."""
        version = await self.store.version("photos", number, deadline=within())
        rows = {}
        async for page in self.store.scan(version, output=("attributes", "vector"), deadline=within()):
            for row in page:
                assert row.attributes is not None
                rows[row.id] = row.attributes["n"]
                np.testing.assert_allclose(row.vector, vector_of(row.id.encode(), version.space), atol=1e-5)
        return rows


@asynccontextmanager
async def collection(store: MilvusStore, *embedders: VectorSpace) -> AsyncIterator[Photos]:
    await store.create_collection("photos", OLD, IndexSpec("FLAT"), deadline=within())
    async with serving(*embedders) as (servers, clients):
        servers_by_model = {server.space.fingerprint: server for server in servers}
        yield Photos(store, Writer(store, Embedders(clients)), servers_by_model)


@pytest.fixture
async def photos(store: MilvusStore) -> AsyncIterator[Photos]:
    async with collection(store, OLD, NEW) as photos:
        yield photos


@pytest.fixture
async def old_only(store: MilvusStore) -> AsyncIterator[Photos]:
    """The same, without an embedder of the new model."""
    async with collection(store, OLD) as photos:
        yield photos


async def test_writes_go_to_every_version_before_and_after_a_switch_and_back(photos: Photos) -> None:
    await photos.upsert(item("early"))
    await photos.create_version()
    assert await photos.upsert(item("a"), item("b"), item("c")) == ["stored"] * 3
    assert await photos.rows(1) == {"early": 0, "a": 0, "b": 0, "c": 0}
    assert await photos.rows(2) == {"a": 0, "b": 0, "c": 0}

    await photos.switch(2)
    assert await photos.upsert(item("a", n=1), item("d")) == ["stored"] * 2
    assert await photos.writer.delete("photos", "", ["b", "early"], deadline=within()) == 1, "of the serving version"
    assert await photos.writer.delete("photos", "", Filter("id == 'c'"), deadline=within()) == 1
    assert await photos.rows(1) == await photos.rows(2) == {"a": 1, "d": 0}

    await photos.switch(1)
    await photos.upsert(item("e"))
    assert await photos.rows(1) == await photos.rows(2) == {"a": 1, "d": 0, "e": 0}


@on_lite
async def test_an_image_that_one_model_refuses_fails_alone_and_is_in_no_version(photos: Photos) -> None:
    await photos.create_version()
    good, bad, last = await photos.upsert(item("a"), item("b", BAD), item("c"))
    assert (good, last) == ("stored", "stored")
    assert isinstance(bad, InvalidArgument)
    assert await photos.rows(1) == await photos.rows(2) == {"a": 0, "c": 0}


@on_lite
async def test_the_last_good_item_of_an_id_is_stored_in_every_version(photos: Photos) -> None:
    await photos.create_version()
    outcomes = await photos.upsert(item("a", n=1), item("a", n=2), item("a", BAD))
    assert outcomes[:2] == ["superseded", "stored"]
    assert await photos.rows(1) == await photos.rows(2) == {"a": 2}


async def test_what_is_unchanged_in_one_version_only_is_written_to_all(photos: Photos) -> None:
    await photos.upsert(item("a"), item("b"))
    await photos.create_version()
    assert await photos.upsert(item("a"), if_content_changed=True) == ["stored"]
    assert await photos.upsert(item("a"), item("b"), if_content_changed=True) == ["unchanged", "stored"]
    assert await photos.rows(2) == {"a": 0, "b": 0}
    embedded = photos.servers["new-model"].embedded
    assert await photos.upsert(item("a"), item("b"), if_content_changed=True) == ["unchanged"] * 2
    assert embedded == [b"a", b"b"]


@on_lite
async def test_versions_of_one_model_are_embedded_once(photos: Photos) -> None:
    await photos.create_version(OLD)
    await photos.upsert(item("a"))
    assert await photos.rows(1) == await photos.rows(2) == {"a": 0}
    assert photos.servers["old-model"].embedded == [b"a"]


@on_lite
async def test_an_image_that_cannot_go_to_a_version_being_filled_goes_nowhere(old_only: Photos) -> None:
    await old_only.create_version()
    [outcome] = await old_only.upsert(item("a"))
    assert isinstance(outcome, FailedPrecondition)
    for part in ("version 2", "new-model", "start the search service with that model's embedder too"):
        assert part in outcome.message
    assert await old_only.rows(1) == {}


@on_lite
async def test_a_version_of_before_without_an_embedder_does_without_images(photos: Photos) -> None:
    await photos.upsert(item("a"))
    await photos.create_version()
    await photos.upsert(item("b"))
    await photos.switch(2)
    async with serving(NEW) as (_, clients):
        writer = Writer(photos.store, Embedders(clients))
        assert await upsert(writer, item("c"), if_content_changed=True) == ["stored"]
        assert await upsert(writer, item("c"), if_content_changed=True) == ["unchanged"]
        assert await writer.delete("photos", "", ["b"], deadline=within()) == 1
    assert await photos.rows(1) == {"a": 0}
    assert await photos.rows(2) == {"c": 0}


@on_lite
async def test_vectors_go_to_versions_of_their_model(photos: Photos) -> None:
    old, new = (Embedding(vector_of(b"a", space), space.fingerprint) for space in (OLD, NEW))
    await photos.create_version()
    for vector, complaint in ((old, "version 2.*being filled.*send the image"), (new, "version 1, which holds")):
        outcome, image = await photos.upsert(item("a", vector), item("b"))
        assert isinstance(outcome, FailedPrecondition)
        assert "old-model" in outcome.message
        assert "new-model" in outcome.message
        with pytest.raises(FailedPrecondition, match=complaint):
            raise outcome
        assert image == "stored"
    assert await photos.rows(1) == await photos.rows(2) == {"b": 0}
    await photos.switch(2)
    assert await photos.upsert(item("a", new)) == ["stored"], "a version of before need not be reached"
    await photos.store.drop_version("photos", 1, deadline=within())
    await photos.create_version(NEW)
    assert await photos.upsert(item("a", new, n=1)) == ["stored"]
    assert await photos.rows(3) == {"a": 1}


# Versions that come and go while a write is under way


def during(server: EmbeddingServer, change: Callable[[], Awaitable[object]]) -> None:
    """Has something happen while the embedder works on the next image: when the write has read what versions are."""
    server.during = change


async def test_an_upsert_reaches_a_version_that_is_created_meanwhile(photos: Photos) -> None:
    during(photos.servers["old-model"], photos.create_version)
    assert await photos.upsert(item("a")) == ["stored"]
    assert await photos.rows(1) == await photos.rows(2) == {"a": 0}
    assert photos.servers["old-model"].embedded == [b"a"], "nothing is embedded twice"


async def test_an_unchanged_image_is_written_to_a_version_that_is_created_meanwhile(photos: Photos) -> None:
    await photos.upsert(item("a"))
    during(photos.servers["old-model"], photos.create_version)
    assert await photos.upsert(item("a"), item("b"), if_content_changed=True) == ["stored", "stored"]
    assert await photos.rows(2) == {"a": 0, "b": 0}


@on_lite
async def test_a_version_that_is_created_by_another_process_is_reached(photos: Photos) -> None:
    async def create_elsewhere() -> None:
        # What another replica does to the same Milvus: the cache here is not told.
        remembered = dict(photos.store._live), dict(photos.store._serving)
        await photos.create_version()
        photos.store._live, photos.store._serving = remembered

    during(photos.servers["old-model"], create_elsewhere)
    assert await photos.upsert(item("a")) == ["stored"]
    assert await photos.rows(2) == {"a": 0}


@on_lite
async def test_an_upsert_that_left_out_a_version_of_before_notices_when_it_serves_again(photos: Photos) -> None:
    await photos.create_version()
    await photos.switch(2)
    async with serving(NEW) as ([server], clients):
        writer = Writer(photos.store, Embedders(clients))
        during(server, lambda: photos.switch(1))
        [outcome] = await upsert(writer, item("a"))
    assert isinstance(outcome, FailedPrecondition), "searches would not find it"
    assert "version 1" in outcome.message


async def test_a_version_that_is_deleted_meanwhile_need_not_be_reached(photos: Photos) -> None:
    await photos.create_version()
    during(photos.servers["new-model"], lambda: photos.store.drop_version("photos", 2, deadline=within()))
    assert await photos.upsert(item("a")) == ["stored"]
    assert await photos.rows(1) == {"a": 0}


async def test_a_collection_that_is_deleted_meanwhile_is_not_found(photos: Photos) -> None:
    during(photos.servers["old-model"], lambda: photos.store.drop("photos", deadline=within()))
    with pytest.raises(NotFound, match="'photos' does not exist"):
        await photos.upsert(item("a"))


@on_lite
async def test_of_concurrent_upserts_the_same_one_wins_in_every_version(photos: Photos) -> None:
    await photos.create_version()
    ids = [str(n) for n in range(20)]
    await asyncio.gather(*(photos.upsert(*(item(row_id, n=n) for row_id in ids)) for n in range(8)))
    rows = await photos.rows(1)
    assert rows == await photos.rows(2)
    assert set(rows) == set(ids)


async def test_a_deletion_in_parts_and_an_upsert_come_in_the_same_order_in_every_version(photos: Photos) -> None:
    await photos.create_version()
    await photos.upsert(item("x"))
    first = await photos.store.version("photos", 1, deadline=within())
    # One id more than goes into one expression: "x" is deleted in a second step.
    ids = [*(f"none {n}" for n in range(500)), "x"]
    async with photos.store._access._gates[first.physical_name].reading():  # holds the first version's writes up
        deleting = asyncio.create_task(photos.writer.delete("photos", "", ids, deadline=within()))
        while await photos.rows(2):
            pass
        upserting = asyncio.create_task(photos.upsert(item("x", n=1)))
        # Time for an upsert that does not wait for its turn to be done in the second version.
        await asyncio.wait([upserting], timeout=0.5)
    assert await asyncio.gather(deleting, upserting) == [1, ["stored"]]
    assert await photos.rows(1) == await photos.rows(2) == {"x": 1}


async def test_nothing_is_lost_while_versions_come_serve_and_go(photos: Photos) -> None:
    stored: list[str] = []
    done = asyncio.Event()

    async def write(worker: int) -> None:
        n = 0
        while not done.is_set():
            name = f"{worker}-{n}"
            assert await photos.upsert(item(name)) == ["stored"]
            stored.append(name)
            n += 1

    async def change() -> None:
        try:
            for _ in range(3):
                # From here on the new version receives everything; what there was before is copied by hand.
                version = await photos.create_version()
                await photos.upsert(*(item(name) for name in list(stored)))
                await photos.switch(version.number)
                await photos.switch(1)
                await photos.switch(version.number)
                assert set(stored) <= (await photos.rows(version.number)).keys()
                await photos.switch(1)
                await photos.store.drop_version("photos", version.number, deadline=within())
        finally:
            done.set()

    await asyncio.gather(change(), *(write(worker) for worker in range(4)))
    assert (await photos.rows(1)).keys() == set(stored)


@on_lite
async def test_a_write_that_waits_for_others_ends_by_its_deadline(photos: Photos) -> None:
    live = await photos.store.live("photos", deadline=within())
    await photos.create_version()
    live = await photos.store.live("photos", deadline=within())
    assert [version.number for version in live.all] == [1, 2]
    async with photos.writer.turn(live, within()):
        with pytest.raises(DeadlineExceeded, match="other writes"):
            await photos.writer.delete("photos", "", ["a"], deadline=within(0.3))
    assert await photos.writer.delete("photos", "", ["a"], deadline=within()) == 0
