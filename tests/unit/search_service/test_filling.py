"""Filling a version from the one that serves, on real Milvus Lite, while rows are written and deleted."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence

import numpy as np
import pytest
from embedding_server import BAD, EmbeddingServer, serving, vector_of
from milvus_samples import on_lite, within

from search_service.embedders import Embedders
from search_service.filling import Filler, FillItem, FillResult
from search_service.records import CollectionVersion, Embedding, IndexSpec, StoredRow, VectorSpace
from search_service.store import MilvusStore
from search_service.writes import Item, Outcome, Writer
from service_kit.errors import FailedPrecondition, InvalidArgument, NotFound, ServiceError

OLD, NEW = VectorSpace("old-model", 8), VectorSpace("new-model", 6)


def image(row_id: str, n: int = 0) -> bytes:
    return f"{row_id} {n}".encode()


def item(row_id: str, n: int = 0) -> Item:
    return Item(row_id, image(row_id, n), {"n": n}, f"/photos/{row_id}")


class Photos:
    """A collection of the old model and, once created, a version of the new one; with what writes to both."""

    def __init__(self, store: MilvusStore, servers: Sequence[EmbeddingServer], embedders: Embedders) -> None:
        self.store = store
        self.old, self.new = servers
        self.writer = Writer(store, embedders)
        self.filler = Filler(store, embedders, self.writer)
        self.tenant = ""

    async def upsert(self, *items: Item) -> Sequence[Outcome]:
        prepared = await self.writer.prepare("photos", self.tenant, items, deadline=within())
        await self.writer.write(prepared, deadline=within())
        return prepared.outcomes

    async def delete(self, *ids: str) -> int:
        return await self.writer.delete("photos", self.tenant, ids, deadline=within())

    async def create_version(self, space: VectorSpace = NEW) -> CollectionVersion:
        return await self.store.create_version("photos", space, IndexSpec("FLAT"), deadline=within())

    async def fill(self, *items: FillItem | ServiceError, surplus: Sequence[str] = (), number: int = 2) -> FillResult:
        return await self.filler.fill("photos", self.tenant, number, items, surplus, deadline=within())

    async def rows(self, number: int, tenant: str | None = "") -> dict[str, StoredRow]:
        """The rows of a version, by id, in full."""
        version = await self.store.version("photos", number, deadline=within())
        fields = ("attributes", "source", "content_sha256", "updated_ms", "vector")
        return {
            f"{row.tenant}/{row.id}" if tenant is None else row.id: row
            async for page in self.store.scan(version, output=fields, tenant=tenant, deadline=within())
            for row in page
        }

    async def copy_of(self, row_id: str, n: int = 0) -> FillItem:
        """A copy of the row as it is now in the serving version."""
        updated_ms = (await self.rows(1, self.tenant))[row_id].updated_ms
        assert updated_ms is not None
        return FillItem(Item(row_id, image(row_id, n), {}, ""), updated_ms)

    async def later(self) -> None:
        """Returns when the clock that rows are marked by has moved on: its unit is the millisecond."""
        await asyncio.sleep(0.002)


@pytest.fixture
async def photos(store: MilvusStore, request: pytest.FixtureRequest) -> AsyncIterator[Photos]:
    multi_tenant = getattr(request, "param", False)
    await store.create_collection("photos", OLD, IndexSpec("FLAT"), multi_tenant=multi_tenant, deadline=within())
    async with serving(OLD, NEW) as (servers, clients):
        yield Photos(store, servers, Embedders(clients))


async def test_a_copy_is_its_row_with_a_vector_of_the_other_model(photos: Photos) -> None:
    await photos.upsert(item("a", n=1), item("b", n=2))
    await photos.create_version()
    await photos.later()
    copies = [await photos.copy_of("a", 1), await photos.copy_of("b", 2)]
    assert (await photos.fill(*copies)).outcomes == ["stored", "stored"]
    old, new = await photos.rows(1), await photos.rows(2)
    assert new.keys() == old.keys() == {"a", "b"}
    for row_id, n in (("a", 1), ("b", 2)):
        row, copy = old[row_id], new[row_id]
        assert copy.attributes == row.attributes == {"n": n}
        assert copy.source == row.source == f"/photos/{row_id}"
        assert copy.content_sha256 == row.content_sha256 == hashlib.sha256(image(row_id, n)).hexdigest()
        assert copy.updated_ms == row.updated_ms
        np.testing.assert_allclose(copy.vector, vector_of(image(row_id, n), NEW), atol=1e-5)
    assert (await photos.fill(*copies)).outcomes == ["unchanged", "unchanged"], "it is there by now"


@on_lite
async def test_a_version_of_the_same_model_gets_the_vectors_themselves_and_keeps_the_hashes(photos: Photos) -> None:
    await photos.upsert(item("a"))
    await photos.create_version(OLD)
    row = (await photos.rows(1))["a"]
    assert row.vector is not None
    assert row.updated_ms is not None
    copy = Item("a", Embedding(row.vector, OLD.fingerprint), {}, "")
    assert (await photos.fill(FillItem(copy, row.updated_ms))).outcomes == ["stored"]
    copied = (await photos.rows(2))["a"]
    assert (copied.content_sha256, copied.attributes) == (row.content_sha256, {"n": 0})
    np.testing.assert_allclose(copied.vector, row.vector, atol=1e-6)
    assert photos.old.embedded == [image("a")], "nothing was embedded again"


async def test_a_row_written_or_deleted_since_is_left_alone(photos: Photos) -> None:
    await photos.upsert(item("written"), item("deleted"), item("only old"))
    copies = [await photos.copy_of(row_id) for row_id in ("written", "deleted", "only old")]
    await photos.create_version()
    await photos.later()
    await photos.upsert(item("written", n=1))
    await photos.delete("deleted")
    assert (await photos.fill(*copies)).outcomes == ["unchanged", "unchanged", "stored"]
    new = await photos.rows(2)
    assert {row_id: (row.attributes or {})["n"] for row_id, row in new.items()} == {"written": 1, "only old": 0}


@on_lite
async def test_an_older_row_is_replaced_and_a_newer_one_is_not(photos: Photos) -> None:
    await photos.upsert(item("a"), item("b"))
    version = await photos.create_version()
    copies = [await photos.copy_of("a"), await photos.copy_of("b")]
    for row_id, shift in (("a", -1), ("b", 1)):
        row = (await photos.rows(1))[row_id]
        assert row.updated_ms is not None
        prepared = await photos.writer.prepare("photos", "", [item(row_id, n=9)], deadline=within())
        # What another replica may leave behind: a row in the new version alone.
        columns = {**prepared.rows[version][0], "updated_ms": row.updated_ms + shift}
        await photos.store.write(version, [columns], deadline=within())
    assert (await photos.fill(*copies)).outcomes == ["stored", "unchanged"]
    assert [(row.attributes or {})["n"] for row in (await photos.rows(2)).values()] == [0, 9]


@on_lite
async def test_what_is_wrong_with_an_item_harms_no_other(photos: Photos) -> None:
    # The old model takes what the new one does not.
    photos.old.bad = b""
    await photos.upsert(item("good"), item("other"), Item("bad", BAD, {}, ""), item("twice"))
    await photos.upsert(Item("vector", Embedding(vector_of(b"x", OLD), OLD.fingerprint), {}, ""))
    await photos.create_version()
    stored = await photos.rows(1)

    def copy(row_id: str, content: bytes | Embedding) -> FillItem:
        return FillItem(Item(row_id, content, {}, ""), stored[row_id].updated_ms or 0)

    outcomes = (
        await photos.fill(
            InvalidArgument("not even an item"),
            copy("good", image("good")),
            copy("other", b"the file has changed"),
            copy("bad", BAD),
            copy("vector", b"some image"),
            copy("other", Embedding(vector_of(b"x", OLD), OLD.fingerprint)),
            copy("twice", image("twice")),
            copy("twice", image("twice")),
        )
    ).outcomes
    assert [type(outcome) if isinstance(outcome, ServiceError) else outcome for outcome in outcomes] == [
        InvalidArgument,
        "stored",
        InvalidArgument,
        InvalidArgument,
        InvalidArgument,
        FailedPrecondition,
        "superseded",
        "stored",
    ]
    for n, reason in ((2, "SHA-256"), (3, "no image"), (4, "made from a vector")):
        outcome = outcomes[n]
        assert isinstance(outcome, ServiceError)
        assert reason in outcome.message
    assert (await photos.rows(2)).keys() == {"good", "twice"}


@on_lite
async def test_without_an_embedder_of_the_model_images_fail_and_nothing_else(photos: Photos) -> None:
    await photos.upsert(item("a"))
    await photos.create_version()
    async with serving(OLD) as (_, clients):
        embedders = Embedders(clients)
        filler = Filler(photos.store, embedders, photos.writer)
        copies = [await photos.copy_of("a")]
        [outcome] = (await filler.fill("photos", "", 2, copies, (), deadline=within())).outcomes
    assert isinstance(outcome, FailedPrecondition)
    assert "start the search service with that model's embedder too" in outcome.message


@on_lite
async def test_only_another_version_that_is_there_can_be_filled(photos: Photos) -> None:
    await photos.upsert(item("a"))
    with pytest.raises(FailedPrecondition, match="version 1 of collection 'photos' serves"):
        await photos.fill(await photos.copy_of("a"), number=1)
    with pytest.raises(NotFound, match="has no version 2"):
        await photos.fill(await photos.copy_of("a"))


@on_lite
async def test_surplus_rows_are_deleted_where_the_serving_version_lacks_them(photos: Photos) -> None:
    version = await photos.create_version()
    await photos.upsert(item("kept"), item("lost"), item("left"))
    first = await photos.store.version("photos", 1, deadline=within())
    # A deletion that was cut short after the first version.
    await photos.store.delete(first, ["lost"], deadline=within())
    result = await photos.fill(surplus=["kept", "lost", "never there"])
    assert (result.outcomes, result.deleted) == ([], 1)
    assert (await photos.rows(1)).keys() == (await photos.rows(2)).keys() == {"kept", "left"}
    assert version.number == 2


@pytest.mark.parametrize("photos", [True], indirect=True)
@on_lite
async def test_rows_of_a_tenant_are_copied_to_that_tenant(photos: Photos) -> None:
    for tenant, n in (("acme", 1), ("bolt", 2)):
        photos.tenant = tenant
        await photos.upsert(item("a", n), item(f"of {tenant}", n))
    await photos.create_version()
    photos.tenant = "bolt"
    assert (await photos.fill(await photos.copy_of("a", 2))).outcomes == ["stored"]
    assert {row_id: row.attributes for row_id, row in (await photos.rows(2, None)).items()} == {"bolt/a": {"n": 2}}
    assert (await photos.rows(1, None)).keys() == {"acme/a", "acme/of acme", "bolt/a", "bolt/of bolt"}
    photos.tenant = ""
    with pytest.raises(InvalidArgument, match="multi-tenant"):
        await photos.fill(surplus=["a"])


@on_lite
async def test_a_write_while_the_copy_is_embedded_is_not_overwritten(photos: Photos) -> None:
    await photos.upsert(item("written"), item("deleted"))
    await photos.create_version()
    copies = [await photos.copy_of("written"), await photos.copy_of("deleted")]
    await photos.later()

    async def write() -> None:
        await photos.upsert(item("written", n=1))
        await photos.delete("deleted")

    photos.new.during = write
    assert (await photos.fill(*copies)).outcomes == ["unchanged", "unchanged"]
    assert {row_id: row.attributes for row_id, row in (await photos.rows(2)).items()} == {"written": {"n": 1}}


@on_lite
async def test_the_look_and_the_write_are_one_step_to_other_writes(photos: Photos) -> None:
    await photos.upsert(item("a"), item("b"))
    await photos.create_version()
    await photos.later()
    copies = [await photos.copy_of("a"), await photos.copy_of("b")]
    second = await photos.store.version("photos", 2, deadline=within())
    async with photos.store._access._gates[second.physical_name].reading():  # holds the copy up when it has looked
        filling = asyncio.create_task(photos.fill(*copies))
        while (turn := photos.writer._turns.get("photos")) is None or not turn.locked():
            assert not filling.done()
            await photos.rows(1)
        writes = [asyncio.create_task(photos.upsert(item("a", n=1))), asyncio.create_task(photos.delete("b"))]
        # Time for writes that do not wait for their turn to be done in the first version.
        await asyncio.wait(writes, timeout=0.3)
    await asyncio.gather(filling, *writes)
    for number in (1, 2):
        rows = await photos.rows(number)
        assert {row_id: row.attributes for row_id, row in rows.items()} == {"a": {"n": 1}}


@on_lite  # 40 s on a server, where each look is a Strong read
async def test_rows_written_and_deleted_all_the_while_are_the_same_in_both_versions(photos: Photos) -> None:
    ids = [str(n) for n in range(120)]
    for start in range(0, len(ids), 40):
        await photos.upsert(*(item(row_id) for row_id in ids[start : start + 40]))
    await photos.create_version()
    times = {row_id: row.updated_ms or 0 for row_id, row in (await photos.rows(1)).items()}
    expected: dict[str, int] = dict.fromkeys(ids, 0)
    random = np.random.default_rng(1)
    done = asyncio.Event()

    async def change(own: Sequence[str]) -> None:
        n = 0
        while not done.is_set():
            n += 1
            row_id = str(random.choice(own))
            if random.random() < 0.3:
                await photos.delete(row_id)
                expected.pop(row_id, None)
            else:
                assert await photos.upsert(item(row_id, n)) == ["stored"]
                expected[row_id] = n

    async def fill(own: Sequence[str]) -> None:
        for row_id in own:
            copy = FillItem(Item(row_id, image(row_id), {}, ""), times[row_id])
            [outcome] = (await photos.fill(copy)).outcomes
            assert outcome in ("stored", "unchanged")

    async def fill_all() -> None:
        try:
            await asyncio.gather(*(fill(ids[n::3]) for n in range(3)))
        finally:
            done.set()

    await asyncio.gather(fill_all(), *(change(ids[n::4]) for n in range(4)))
    for number in (1, 2):
        assert {row_id: (row.attributes or {})["n"] for row_id, row in (await photos.rows(number)).items()} == expected
