"""The store on real Milvus Lite, in this process and as a process of its own, and on a real Milvus server."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from milvus_samples import (
    DIMENSION,
    SPACE,
    MilvusProcess,
    Place,
    free_port,
    make_rows,
    on_lite,
    unit_vectors,
    within,
)
from prometheus_client import REGISTRY

from benchmarks.milvus_server import MilvusServer
from search_service import milvus_calls, milvus_connection
from search_service.filters import Filter
from search_service.milvus_catalog import MAX_VERSIONS
from search_service.milvus_rows import stored_bytes
from search_service.records import (
    OUTPUT_FIELDS,
    CollectionState,
    CollectionVersion,
    Hit,
    IndexSpec,
    OutputField,
    Row,
    Vector,
    VectorSpace,
    VersionState,
)
from search_service.store import MilvusStore
from service_kit.errors import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    ServiceError,
    Unavailable,
)

OTHER_SPACE = VectorSpace("b00c" * 16, DIMENSION)
NASTY = [
    "plain.jpg",
    "it's",
    'say "hi"',
    "back\\slash",
    "ends with \\",
    "line\nbreak\r\n",
    "tab\tand \x01\x1b\x7f",
    "smile 😀 é \u2028",
    "{name} % _ like",
    '") or id != ("',
    "' or '1' == '1",
    "/photos/a b/c",
    " ",
    "\\n",
    "\\u0041",
    "null",
]


def ids(hits: list[Hit]) -> list[str]:
    return [hit.row.id for hit in hits]


def index_appears(uri: str, seconds: float = 15.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if list(Path(uri).rglob("*.idx")):
            return True
        time.sleep(0.05)
    return False


async def until_ready(store: MilvusStore) -> None:
    """As a readiness probe does."""
    end = within(60)
    while time.monotonic() < end:
        try:
            return await store.ping(deadline=within(2))
        except (Unavailable, DeadlineExceeded):
            await asyncio.sleep(0.2)
    raise TimeoutError("the store did not come back")


async def described_with_rows(store: MilvusStore, name: str, rows: int) -> CollectionState:
    """The collection as soon as it tells so many rows of the version that serves: a server tells some seconds late."""
    end = within()
    while True:
        state = await store.describe(name, deadline=end)
        if state.serving is not None and state.serving.rows == rows:
            return state
        await asyncio.sleep(0.2)


# Rows


async def test_rows_come_back_as_they_were_stored(store: MilvusStore, photos: CollectionVersion) -> None:
    attributes: dict[str, Any] = {
        "text": "é'\"\\\n😀",
        "none": None,
        "deep": {"a": [1, 2.5, True, {"b": []}]},
        "big": 2**53,
    }
    row = Row("one", unit_vectors(1)[0], attributes, "/photos/é.jpg", "ab" * 32)
    before = time.time_ns() // 1_000_000
    assert await store.upsert(photos, SPACE, [row], deadline=within()) == 1

    stored = (await store.get(photos, ["one"], output=OUTPUT_FIELDS, deadline=within()))["one"]
    assert stored.attributes == attributes
    assert (stored.source, stored.content_sha256) == ("/photos/é.jpg", "ab" * 32)
    assert stored.model_fingerprint == SPACE.fingerprint
    assert stored.updated_ms is not None
    assert before <= stored.updated_ms <= time.time_ns() // 1_000_000
    assert stored.vector is not None
    assert stored.vector.dtype == np.float32
    np.testing.assert_allclose(stored.vector, row.vector, atol=1e-6)


async def test_nasty_ids_and_attributes_round_trip(store: MilvusStore, photos: CollectionVersion) -> None:
    vectors = unit_vectors(len(NASTY))
    rows = [Row(text, vector, {"text": text}) for text, vector in zip(NASTY, vectors, strict=True)]
    await store.upsert(photos, SPACE, rows, deadline=within())

    stored = await store.get(photos, NASTY, deadline=within())
    assert {row_id: row.attributes for row_id, row in stored.items()} == {text: {"text": text} for text in NASTY}

    async def find_and_delete(text: str, vector: Vector) -> None:
        assert list(await store.get(photos, [text], deadline=within())) == [text]
        for condition in (Filter("id == {s}", {"s": text}), Filter('attributes["text"] == {s}', {"s": text})):
            (hits,) = await store.search(
                photos, SPACE, vector[None], top_k=5, condition=condition, output=(), deadline=within()
            )
            assert ids(hits) == [text]
        assert await store.delete(photos, [text], deadline=within()) == 1

    await asyncio.gather(*(find_and_delete(text, vector) for text, vector in zip(NASTY, vectors, strict=True)))
    assert await store.count(photos, deadline=within()) == 0


async def test_upsert_again_changes_no_count(store: MilvusStore, photos: CollectionVersion) -> None:
    rows = make_rows(1200)
    for _ in range(2):
        assert await store.upsert(photos, SPACE, rows, deadline=within()) == 1200
    assert await store.count(photos, deadline=within()) == 1200


async def test_upsert_replaces_attributes_entirely(store: MilvusStore, photos: CollectionVersion) -> None:
    vector = unit_vectors(1)[0]
    await store.upsert(photos, SPACE, [Row("a", vector, {"old": 1, "both": 1}, source="x")], deadline=within())
    await store.upsert(photos, SPACE, [Row("a", vector, {"both": 2})], deadline=within())
    row = (await store.get(photos, ["a"], deadline=within()))["a"]
    assert row.attributes == {"both": 2}
    assert row.source == ""


@on_lite
@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"vector": np.ones(3, np.float32)}, "shape"),
        ({"vector": np.full(DIMENSION, np.nan, np.float32)}, "NaN"),
        ({"vector": np.full(DIMENSION, np.inf, np.float32)}, "NaN or infinity"),
        ({"vector": np.zeros(DIMENSION, np.float32)}, "zero"),
        ({"id": ""}, "bytes"),
        ({"id": "a\0"}, "NUL"),
        ({"id": "img/00001.jpg"}, "twice"),
        ({"attributes": {"a": float("nan")}}, "no JSON"),
        ({"attributes": {"a": object()}}, "no JSON"),
        ({"attributes": {1: "a"}}, "string keys"),
        ({"attributes": ["a"]}, "no JSON object"),
        ({"attributes": {"a": "x" * 65536}}, "65545 bytes"),
        ({"attributes": {"a": "\ud800"}}, "no JSON"),
        ({"source": "x" * 4097}, "4097 bytes"),
    ],
)
async def test_a_row_that_cannot_be_stored_is_refused_and_nothing_is_written(
    store: MilvusStore, photos: CollectionVersion, change: dict[str, Any], complaint: str
) -> None:
    rows = make_rows(2)
    with pytest.raises(InvalidArgument, match=complaint):
        await store.upsert(photos, SPACE, [rows[1], replace(rows[0], **change)], deadline=within())
    assert await store.count(photos, deadline=within()) == 0


async def test_concurrent_writers_lose_nothing(store: MilvusStore, photos: CollectionVersion) -> None:
    rows = make_rows(6000)
    parts = [rows[start : start + 50] for start in range(0, len(rows), 50)]
    # Enough for a flush in between.
    await asyncio.gather(*(store.upsert(photos, SPACE, part, deadline=within(60)) for part in parts))
    assert await store.count(photos, deadline=within()) == 6000
    assert len(await store.get(photos, [row.id for row in rows], output=(), deadline=within())) == 6000


async def test_what_is_acknowledged_is_seen_by_every_read_even_during_a_flush(
    store: MilvusStore, photos: CollectionVersion
) -> None:
    rows = make_rows(11_000)  # enough for two flushes
    acknowledged = 0

    async def write() -> None:
        nonlocal acknowledged
        for start in range(0, len(rows), 200):
            acknowledged += await store.upsert(photos, SPACE, rows[start : start + 200], deadline=within(60))

    async def read() -> None:
        while not writing.done():
            before = acknowledged
            assert await store.count(photos, deadline=within()) >= before

    writing = asyncio.create_task(write())
    await asyncio.gather(writing, *(read() for _ in range(4)))


async def test_deletes_tell_how_many_there_were(store: MilvusStore, photos: CollectionVersion) -> None:
    await store.upsert(photos, SPACE, make_rows(2400), deadline=within())
    wanted = ["img/00000.jpg", "img/00000.jpg", "img/00001.jpg", "none such"]
    assert await store.delete(photos, wanted, deadline=within()) == 2
    assert await store.delete(photos, wanted, deadline=within()) == 0
    cats = Filter('attributes["species"] == {s}', {"s": "cat"})
    assert await store.delete_where(photos, cats, deadline=within()) == 799
    assert await store.count(photos, cats, deadline=within()) == 0
    assert await store.delete_where(photos, Filter('attributes["number"] > 100'), deadline=within()) == 1533
    assert await store.count(photos, deadline=within()) == 2400 - 2 - 799 - 1533


async def test_a_scan_gives_each_row_once_by_id(store: MilvusStore, photos: CollectionVersion) -> None:
    vectors = unit_vectors(len(NASTY))
    rows = [Row(text, vector) for text, vector in zip(NASTY, vectors, strict=True)]
    await store.upsert(photos, SPACE, rows, deadline=within())
    pages = [page async for page in store.scan(photos, page_rows=3, deadline=within())]
    assert [row.id for page in pages for row in page] == sorted(NASTY)


async def test_a_short_page_is_not_the_end_of_a_scan(
    store: MilvusStore, photos: CollectionVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A server under load has given 3,066 rows where 16,000 were asked for, and 26,704 were left.
    page = milvus_calls.page

    def short(version: CollectionVersion, expression: str, output: Sequence[OutputField], limit: int) -> Any:
        return page(version, expression, output, -(-limit // 3))

    monkeypatch.setattr(milvus_calls, "page", short)
    await store.upsert(photos, SPACE, make_rows(100), deadline=within())
    pages = [page async for page in store.scan(photos, page_rows=10, deadline=within())]
    assert [row.id for page in pages for row in page] == [row.id for row in make_rows(100)]


async def test_pages_of_a_scan_stay_small_whatever_the_size_of_rows(
    store: MilvusStore, photos: CollectionVersion
) -> None:
    large = {"text": "x" * 60_000}
    rows = [replace(row, attributes=large if 400 <= i < 700 else {}) for i, row in enumerate(make_rows(2_000))]
    await store.upsert(photos, SPACE, rows, deadline=within())
    pages = [page async for page in store.scan(photos, deadline=within())]
    assert [row.id for page in pages for row in page] == [row.id for row in rows]
    assert max(sum(map(stored_bytes, page)) for page in pages) < 20 << 20
    assert len([page async for page in store.scan(photos, output=("vector",), deadline=within())]) == 1


async def test_a_scan_that_is_left_lets_writes_through(store: MilvusStore, photos: CollectionVersion) -> None:
    await store.upsert(photos, SPACE, make_rows(10), deadline=within())
    scan = store.scan(photos, page_rows=3, deadline=within())
    assert len(await anext(scan)) == 3
    assert await store.delete(photos, [row.id for row in make_rows(10)[5:]], deadline=within()) == 5
    assert sum([len(page) async for page in scan]) == 2
    with pytest.raises(DeadlineExceeded):
        await anext(store.scan(photos, page_seconds=-1, deadline=within()))


# Search


@pytest.mark.parametrize("index", [IndexSpec("HNSW"), IndexSpec("FLAT")])
@pytest.mark.parametrize("exact", [False, True])
async def test_search_finds_the_nearest_by_cosine(store: MilvusStore, index: IndexSpec, exact: bool) -> None:
    version = await store.create_collection("photos", SPACE, index, deadline=within())
    rows = make_rows(500)
    # Cosine knows no length.
    await store.upsert(version, SPACE, [replace(row, vector=row.vector * 3) for row in rows], deadline=within())
    queries = unit_vectors(7, seed=1)
    similarities = queries @ np.stack([row.vector for row in rows]).T
    best = np.argsort(-similarities, axis=1)[:, 2:12]

    found = await store.search(version, SPACE, queries * 5, top_k=10, offset=2, exact=exact, deadline=within())

    assert [ids(hits) for hits in found] == [[rows[i].id for i in row] for row in best]
    expected = np.take_along_axis(similarities, best, axis=1)
    np.testing.assert_allclose([[hit.similarity for hit in hits] for hits in found], expected, atol=1e-6)
    assert found[0][0].row.attributes == rows[best[0, 0]].attributes
    assert found[0][0].row.source is None


@on_lite
async def test_vectors_of_8_bits_are_searched_well_and_compared_exactly_when_asked_to(
    store: MilvusStore, place: Place, uri: str
) -> None:
    index = IndexSpec("HNSW_SQ8", m=24, ef_construction=300)
    version = await store.create_collection("photos", SPACE, index, deadline=within())
    rows = make_rows(2000)
    await store.upsert(version, SPACE, rows, deadline=within())
    assert await asyncio.to_thread(index_appears, uri), "only then the vectors are of 8 bits"
    await store.close()

    async with place.store() as again:
        version = await again.serving("photos", deadline=within())
        assert version.index == index
        queries = unit_vectors(50, seed=1)
        similarities = np.sort(queries @ np.stack([row.vector for row in rows]).T, axis=1)[:, ::-1][:, :10]
        best = np.argsort(-(queries @ np.stack([row.vector for row in rows]).T), axis=1)[:, :10]
        found = await again.search(version, SPACE, queries, top_k=10, deadline=within())
        hits = [len({rows[i].id for i in row} & set(ids(hits))) for row, hits in zip(best, found, strict=True)]
        assert sum(hits) / 500 > 0.95
        errors = np.abs([[hit.similarity for hit in hits] for hits in found] - similarities)
        assert 1e-6 < errors.max() < 0.01
        exact = await again.search(version, SPACE, queries, top_k=10, exact=True, deadline=within())
        assert [ids(hits) for hits in exact] == [[rows[i].id for i in row] for row in best]
        np.testing.assert_allclose([[hit.similarity for hit in hits] for hits in exact], similarities, atol=1e-6)


@on_lite
async def test_a_description_tells_how_many_rows_the_index_covers(
    store: MilvusStore, photos: CollectionVersion, uri: str
) -> None:
    async def serving() -> VersionState:
        state = (await store.describe("photos", deadline=within())).serving
        assert state is not None
        return state

    await store.upsert(photos, SPACE, make_rows(100), deadline=within())
    state = await serving()
    # Here a second may have gone by, after which the rows are flushed.
    assert (state.rows, state.indexed_rows) == (100, 0) or await asyncio.to_thread(index_appears, uri, 0.01)
    assert await asyncio.to_thread(index_appears, uri)
    for _ in range(500):
        state = await serving()
        if state.indexed_rows:
            break
        await asyncio.sleep(0.01)
    assert (state.rows, state.indexed_rows) == (100, 100)
    assert state.memory_bytes > 100 * DIMENSION * 4


@on_lite
async def test_similarity_never_leaves_its_range(store: MilvusStore, photos: CollectionVersion) -> None:
    rows = make_rows(200)
    await store.upsert(photos, SPACE, rows, deadline=within())
    vectors = np.stack([row.vector for row in rows])
    for exact in (False, True):
        found = await store.search(photos, SPACE, vectors, top_k=20, exact=exact, output=(), deadline=within())
        assert [hits[0].row.id for hits in found] == [row.id for row in rows]
        assert all(-1 <= hit.similarity <= 1 for hits in found for hit in hits)


@on_lite
async def test_search_after_a_flush_is_as_before_it(store: MilvusStore, photos: CollectionVersion, uri: str) -> None:
    await store.upsert(photos, SPACE, make_rows(2000), deadline=within())
    query = unit_vectors(1, seed=1)
    before = await store.search(photos, SPACE, query, top_k=20, ef=500, output=(), deadline=within())
    assert await asyncio.to_thread(index_appears, uri), "the store flushes by itself, and the index is built"
    after = await store.search(photos, SPACE, query, top_k=20, ef=500, output=(), deadline=within())
    assert ids(after[0]) == ids(before[0])


async def test_an_asked_for_vector_comes_with_the_hit(store: MilvusStore, photos: CollectionVersion) -> None:
    rows = make_rows(3)
    await store.upsert(photos, SPACE, rows, deadline=within())
    (hits,) = await store.search(photos, SPACE, rows[1].vector[None], top_k=1, output=["vector"], deadline=within())
    assert hits[0].row.vector is not None
    np.testing.assert_allclose(hits[0].row.vector, rows[1].vector, atol=1e-6)
    assert hits[0].row.attributes is None


@pytest.mark.parametrize("exact", [False, True])
async def test_a_filter_chooses_before_the_search(store: MilvusStore, photos: CollectionVersion, exact: bool) -> None:
    rows = make_rows(300)
    await store.upsert(photos, SPACE, rows, deadline=within())
    condition = Filter('attributes["species"] == {s} and attributes["number"] < {n}', {"s": "dog", "n": 30})
    (hits,) = await store.search(
        photos, SPACE, rows[0].vector[None], top_k=50, condition=condition, exact=exact, deadline=within()
    )
    assert sorted(ids(hits)) == [f"img/{i:05d}.jpg" for i in range(1, 30, 3)]


@on_lite
async def test_an_empty_collection_has_no_hits(store: MilvusStore, photos: CollectionVersion) -> None:
    for exact in (False, True):
        found = await store.search(photos, SPACE, unit_vectors(2), top_k=5, exact=exact, deadline=within())
        assert found == [[], []]


BAD_FILTERS = [
    "id ==",
    "nothing == 1",
    "id == 1",
    "updated_ms",
    "updated_ms == 'x'",
    "id == 'a' or",
    "not " * 1500 + "id == 'a'",
    "updated_ms == 99999999999999999999999",
    "'a\\q' == id",
    "(id == 'a'",
    "updated_ms / 0 == 1",
]


async def test_a_bad_filter_is_the_callers_error(store: MilvusStore, photos: CollectionVersion) -> None:
    await store.upsert(photos, SPACE, make_rows(3), deadline=within())
    calls = [
        store.search(photos, SPACE, unit_vectors(1), top_k=1, condition=Filter(expression), deadline=within())
        for expression in BAD_FILTERS
    ]
    outcomes = dict(zip(BAD_FILTERS, await asyncio.gather(*calls, return_exceptions=True), strict=True))
    assert {expression: type(outcome) for expression, outcome in outcomes.items()} == dict.fromkeys(
        BAD_FILTERS, InvalidArgument
    )


@on_lite
@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"top_k": 0}, "top_k is 0: use 1 to 16384"),
        ({"top_k": 16385}, "top_k is 16385"),
        ({"top_k": 10, "offset": -1}, "offset is -1"),
        ({"top_k": 16384, "offset": 1}, r"top_k \+ offset is 16385"),
        ({"top_k": 1, "ef": 0}, "ef is 0"),
        ({"top_k": 1, "ef": 32769}, "ef is 32769"),
    ],
)
async def test_numbers_beyond_the_limits_of_milvus_are_refused(
    store: MilvusStore, photos: CollectionVersion, arguments: dict[str, int], complaint: str
) -> None:
    with pytest.raises(InvalidArgument, match=complaint):
        await store.search(photos, SPACE, unit_vectors(1), deadline=within(), **arguments)


async def test_the_largest_top_k_gives_all_rows(store: MilvusStore, photos: CollectionVersion) -> None:
    await store.upsert(photos, SPACE, make_rows(50), deadline=within())
    (hits,) = await store.search(photos, SPACE, unit_vectors(1), top_k=16384, ef=1, output=(), deadline=within())
    assert len(hits) == 50


async def test_searches_at_the_same_time_are_joined_and_give_what_they_give_alone(
    store: MilvusStore, photos: CollectionVersion
) -> None:
    await store.upsert(photos, SPACE, make_rows(200), deadline=within())
    queries = unit_vectors(40, seed=4)

    async def search(start: int) -> list[Hit]:
        (hits,) = await store.search(photos, SPACE, queries[start : start + 1], top_k=5, deadline=within())
        return hits

    def calls() -> float:
        labels = {"upstream": "milvus", "method": "search", "code": "OK"}
        return REGISTRY.get_sample_value("search_upstream_requests_total", labels) or 0.0

    alone = [ids(await search(start)) for start in range(40)]
    before = calls()
    together = await asyncio.gather(*map(search, range(40)))
    assert [ids(hits) for hits in together] == alone
    assert calls() - before <= 2  # those that come before the first has begun go with it


@on_lite
@pytest.mark.parametrize(
    "vectors",
    [
        np.ones((1, 3), np.float32),
        np.ones(DIMENSION, np.float32),
        np.zeros((1, DIMENSION), np.float32),
        np.full((1, DIMENSION), np.nan, np.float32),
        np.empty((0, DIMENSION), np.float32),
    ],
)
async def test_a_query_that_is_no_vector_is_refused(
    store: MilvusStore, photos: CollectionVersion, vectors: np.ndarray[Any, Any]
) -> None:
    with pytest.raises(InvalidArgument):
        await store.search(photos, SPACE, vectors, top_k=1, deadline=within())


# Vector spaces, versions and tenants


@on_lite
async def test_vectors_of_another_model_are_refused_naming_both(store: MilvusStore, photos: CollectionVersion) -> None:
    for other in (OTHER_SPACE, VectorSpace(SPACE.fingerprint, DIMENSION + 1)):
        with pytest.raises(FailedPrecondition) as caught:
            await store.upsert(photos, other, make_rows(1), deadline=within())
        assert SPACE.fingerprint in caught.value.message
        assert other.fingerprint in caught.value.message
        with pytest.raises(FailedPrecondition, match="switch to it"):
            await store.search(photos, other, unit_vectors(1), top_k=1, deadline=within())


async def test_a_new_version_is_filled_beside_the_old_one_and_then_serves(
    store: MilvusStore, photos: CollectionVersion
) -> None:
    await store.upsert(photos, SPACE, make_rows(3), deadline=within())
    second = await store.create_version("photos", OTHER_SPACE, IndexSpec("FLAT"), deadline=within())
    await store.upsert(second, OTHER_SPACE, make_rows(5), deadline=within())
    assert await store.serving("photos", deadline=within()) == photos

    assert await store.switch("photos", 2, deadline=within()) == second
    assert await store.serving("photos", deadline=within()) == second
    state = await described_with_rows(store, "photos", 5)
    assert [(one.version.number, one.serving, one.rows, one.loaded) for one in state.versions] == [
        (1, False, 3, True),
        (2, True, 5, True),
    ]
    with pytest.raises(FailedPrecondition, match="serves"):
        await store.drop_version("photos", 2, deadline=within())

    assert await store.switch("photos", 1, deadline=within()) == photos
    await store.drop_version("photos", 2, deadline=within())
    assert len((await store.describe("photos", deadline=within())).versions) == 1
    with pytest.raises(NotFound, match="no version 2"):
        await store.switch("photos", 2, deadline=within())


async def test_what_versions_live_is_known_at_once_to_whoever_changed_it(
    store: MilvusStore, photos: CollectionVersion
) -> None:
    for _ in range(2):
        assert (await store.live("photos", deadline=within())).all == (photos,)
    second = await store.create_version("photos", OTHER_SPACE, deadline=within())
    live = await store.live("photos", deadline=within())
    assert (live.serving, live.others) == (photos, (second,))
    assert [live.role(version) for version in live.all] == ["serving", "filling"]
    await store.switch("photos", 2, deadline=within())
    live = await store.live("photos", deadline=within())
    assert (live.serving, live.others) == (second, (photos,))
    assert [live.role(version) for version in live.all] == ["serving", "retired"]
    await store.drop_version("photos", 1, deadline=within())
    assert (await store.live("photos", deadline=within())).all == (second,)
    await store.drop("photos", deadline=within())
    with pytest.raises(NotFound, match="does not exist"):
        await store.live("photos", deadline=within())


@on_lite
async def test_a_collection_has_so_many_versions_and_no_more(store: MilvusStore, photos: CollectionVersion) -> None:
    for number in range(2, MAX_VERSIONS + 1):
        assert (await store.create_version("photos", SPACE, deadline=within())).number == number
    with pytest.raises(FailedPrecondition, match="delete one that does not serve"):
        await store.create_version("photos", SPACE, deadline=within())
    await store.drop_version("photos", 3, deadline=within())
    assert (await store.create_version("photos", SPACE, deadline=within())).number == MAX_VERSIONS + 1


async def test_collections_are_created_listed_and_dropped(store: MilvusStore) -> None:
    assert await store.list_collections(deadline=within()) == []
    await store.ping(deadline=within())
    index = IndexSpec("HNSW", m=30, ef_construction=360)
    first = await store.create_collection("b", SPACE, index, deadline=within())
    await store.create_collection("a_", OTHER_SPACE, IndexSpec("FLAT"), deadline=within())
    await store.ping(deadline=within())
    with pytest.raises(AlreadyExists, match="'b'"):
        await store.create_collection("b", OTHER_SPACE, deadline=within())

    states = await store.list_collections(deadline=within())
    assert [state.name for state in states] == ["a_", "b"]
    assert states[1].serving is not None
    assert states[1].serving.version == first
    assert (first.space, first.index, first.number) == (SPACE, index, 1)
    assert abs(first.created_ms - time.time() * 1000) < 60_000

    await store.drop("b", deadline=within())
    for gone in (store.describe("b", deadline=within()), store.drop("b", deadline=within())):
        with pytest.raises(NotFound, match="'b'"):
            await gone
    with pytest.raises(NotFound):
        await store.count(first, deadline=within())
    assert (await store.create_collection("b", OTHER_SPACE, deadline=within())).space == OTHER_SPACE


@on_lite
@pytest.mark.parametrize(
    ("name", "space", "index"),
    [
        ("a__b", SPACE, IndexSpec()),
        ("a", VectorSpace("", 8), IndexSpec()),
        ("a", VectorSpace("ff", 1), IndexSpec()),
        ("a", VectorSpace("ff", 32769), IndexSpec()),
        ("a", SPACE, IndexSpec(m=1)),
        ("a", SPACE, IndexSpec(ef_construction=0)),
    ],
)
async def test_a_collection_that_cannot_be_is_refused(
    store: MilvusStore, name: str, space: VectorSpace, index: IndexSpec
) -> None:
    with pytest.raises(InvalidArgument):
        await store.create_collection(name, space, index, deadline=within())
    assert await store.list_collections(deadline=within()) == []


async def test_tenants_neither_see_nor_change_each_others_rows(store: MilvusStore) -> None:
    version = await store.create_collection("photos", SPACE, multi_tenant=True, deadline=within())
    rows = make_rows(4)
    await store.upsert(version, SPACE, rows, tenant="acme", deadline=within())
    await store.upsert(version, SPACE, rows[:1], tenant="bolt", deadline=within())
    everything = Filter('id != "" or source != ""')

    (hits,) = await store.search(
        version, SPACE, rows[0].vector[None], top_k=9, tenant="bolt", condition=everything, deadline=within()
    )
    assert ids(hits) == [rows[0].id]
    (hits,) = await store.search(
        version, SPACE, rows[0].vector[None], top_k=9, tenant="acme", exact=True, deadline=within()
    )
    assert len(hits) == 4
    with pytest.raises(InvalidArgument, match="at position 9"):
        await store.count(version, Filter('id == "") or (id != ""'), tenant="bolt", deadline=within())
    assert await store.delete(version, [row.id for row in rows], tenant="bolt", deadline=within()) == 1
    assert await store.delete_where(version, everything, tenant="bolt", deadline=within()) == 0
    assert await store.count(version, tenant="acme", deadline=within()) == 4
    with pytest.raises(InvalidArgument, match="tenant"):
        await store.count(version, deadline=within())


async def test_a_filter_of_a_tenant_compares_ids_as_the_tenant_knows_them(store: MilvusStore) -> None:
    version = await store.create_collection("photos", SPACE, multi_tenant=True, deadline=within())
    for tenant in ("acme", "bolt"):
        await store.upsert(version, SPACE, make_rows(4), tenant=tenant, deadline=within())
    first, second, *_ = (row.id for row in make_rows(4))
    for condition, count in (
        (Filter("id in {ids}", {"ids": [first, second, "none"]}), 2),
        (Filter("id not in {ids}", {"ids": [first]}), 3),
        (Filter("id > {id}", {"id": first}), 3),
        (Filter("id like {pattern}", {"pattern": "img/%"}), 4),
        (Filter("id == {id}", {"id": f"acme/{first}"}), 0),
    ):
        assert await store.count(version, condition, tenant="acme", deadline=within()) == count
    assert await store.delete_where(version, Filter("id == {id}", {"id": first}), tenant="acme", deadline=within()) == 1
    assert await store.count(version, tenant="bolt", deadline=within()) == 4


async def test_a_scan_of_all_tenants_gives_each_row_with_its_tenant(store: MilvusStore) -> None:
    version = await store.create_collection("photos", SPACE, multi_tenant=True, deadline=within())
    rows = make_rows(40)
    for tenant in ("acme", "bolt", "c.d-e"):
        await store.upsert(version, SPACE, rows, tenant=tenant, deadline=within())
    pages = store.scan(version, Filter("updated_ms > 0"), tenant=None, page_rows=7, deadline=within())
    found = [(row.tenant, row.id) async for page in pages for row in page]
    assert found == [(tenant, row.id) for tenant in ("acme", "bolt", "c.d-e") for row in rows]
    plain = await store.create_collection("plain", SPACE, deadline=within())
    with pytest.raises(InvalidArgument, match="not multi-tenant"):
        [page async for page in store.scan(plain, tenant=None, deadline=within())]


@on_lite
async def test_a_version_is_read_by_its_number_as_soon_as_there_is_one(store: MilvusStore) -> None:
    first = await store.create_collection("photos", SPACE, deadline=within())
    assert await store.readable("photos", None, deadline=within()) == first
    with pytest.raises(NotFound, match="no version 2"):
        await store.readable("photos", 2, deadline=within())
    second = await store.create_version("photos", SPACE, IndexSpec("FLAT"), deadline=within())
    assert await store.readable("photos", 2, deadline=within()) == second
    await store.switch("photos", 2, deadline=within())
    assert await store.readable("photos", None, deadline=within()) == second
    assert await store.readable("photos", 1, deadline=within()) == first
    await store.drop_version("photos", 1, deadline=within())
    with pytest.raises(NotFound, match="no version 1"):
        await store.readable("photos", 1, deadline=within())


# Restarts, hangs and failures


async def test_a_reopened_store_has_all_and_searches(place: Place) -> None:
    rows = make_rows(1500)
    async with place.store() as store:
        version = await store.create_collection("photos", SPACE, deadline=within())
        await store.upsert(version, SPACE, rows, deadline=within())
    async with place.store() as store:
        assert await store.serving("photos", deadline=within()) == version
        await store.ping(deadline=within())
        assert await store.count(version, deadline=within()) == 1500
        (hits,) = await store.search(version, SPACE, rows[7].vector[None], top_k=1, deadline=within())
        assert ids(hits) == [rows[7].id]


_WRITE_UNTIL_KILLED = """
import asyncio, sys, time
sys.path[:0] = [{tests!r}]
from milvus_samples import SPACE, make_rows, within
from search_service.store import MilvusStore

async def main():
    async with MilvusStore({uri!r}) as store:
        version = await store.create_collection("photos", SPACE, deadline=within())
        rows = make_rows(20_000)
        for start in range(0, len(rows), 250):
            await store.upsert(version, SPACE, rows[start:start + 250], deadline=within())
            print(start + 250, flush=True)

asyncio.run(main())
"""


async def test_rows_acknowledged_before_a_kill_are_all_there_after_it(uri: str) -> None:
    program = _WRITE_UNTIL_KILLED.format(tests=str(Path(__file__).parent), uri=uri)
    writer = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=subprocess.PIPE)
    assert writer.stdout is not None
    acknowledged = 0
    # Past the first flush, into unflushed rows again.
    while acknowledged < 5500:
        acknowledged = int(await asyncio.wait_for(writer.stdout.readline(), 30))

    with pytest.raises(FailedPrecondition, match=f"process {writer.pid} holds it"):
        await MilvusStore(uri).open(deadline=within())
    writer.send_signal(signal.SIGKILL)
    acknowledged = max([acknowledged, *map(int, (await writer.stdout.read()).split())])
    await writer.wait()

    rows = make_rows(20_000)[:acknowledged]
    async with MilvusStore(uri) as store:
        version = await store.serving("photos", deadline=within())
        stored = await store.get(version, [row.id for row in rows], output=(), deadline=within())
        assert len(stored) == acknowledged
        (hits,) = await store.search(version, SPACE, rows[-1].vector[None], top_k=1, exact=True, deadline=within())
        assert ids(hits) == [rows[-1].id]
        await store.ping(deadline=within())


async def test_a_server_that_never_answers_costs_no_more_than_the_deadline() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        store = MilvusStore(f"http://127.0.0.1:{listener.getsockname()[1]}")
        start = time.monotonic()
        with pytest.raises((DeadlineExceeded, Unavailable)):
            await store.open(deadline=within(1.0))
        assert time.monotonic() - start < 2.0


async def test_a_server_that_is_down_is_told_at_once() -> None:
    store = MilvusStore(f"http://127.0.0.1:{free_port()}")
    start = time.monotonic()
    with pytest.raises(Unavailable, match="try again later"):
        await store.open(deadline=within(30))
    assert time.monotonic() - start < 3.0


@pytest.mark.parametrize("uri", ["ftp://127.0.0.1:1", "/proc/no/milvus.db"])
async def test_an_address_that_cannot_be_is_told(uri: str) -> None:
    with pytest.raises(FailedPrecondition):
        await MilvusStore(uri).open(deadline=within())


@on_lite
async def test_a_closed_store_says_so(store: MilvusStore, photos: CollectionVersion) -> None:
    await store.close()
    with pytest.raises(Unavailable, match="closed"):
        await store.count(photos, deadline=within())


@on_lite
async def test_a_deadline_in_the_past_starts_nothing(store: MilvusStore, photos: CollectionVersion) -> None:
    with pytest.raises(DeadlineExceeded):
        await store.upsert(photos, SPACE, make_rows(1), deadline=within(-1))
    with pytest.raises(DeadlineExceeded):
        await store.count(photos, deadline=within(-1))
    assert await store.count(photos, deadline=within()) == 0


@on_lite
async def test_rows_that_are_too_large_for_one_message_are_written_with_several(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**milvus_connection._GRPC_OPTIONS, b"grpc.max_send_message_length": 50_000}
    monkeypatch.setattr(milvus_connection, "_GRPC_OPTIONS", options)
    async with place.store() as store:
        version = await store.create_collection("photos", SPACE, deadline=within())
        assert await store.upsert(version, SPACE, make_rows(1000), deadline=within()) == 1000
        assert await store.count(version, deadline=within()) == 1000
        row = make_rows(1)[0]
        huge = replace(row, attributes={"text": "x" * 60_000})
        with pytest.raises(ResourceExhausted, match="less at a time"):
            await store.upsert(version, SPACE, [huge], deadline=within())


async def test_a_write_goes_on_when_its_caller_gives_up(store: MilvusStore, photos: CollectionVersion) -> None:
    rows = make_rows(3000)
    writing = asyncio.create_task(store.upsert(photos, SPACE, rows[:1000], deadline=within()))
    await asyncio.sleep(0.01)
    writing.cancel()
    await store.upsert(photos, SPACE, rows[1000:], deadline=within())
    assert await store.count(photos, deadline=within()) in (2000, 3000)


async def test_calls_end_by_their_deadlines_while_a_server_hangs_and_pass_when_it_goes_on(
    fragile: tuple[MilvusProcess | MilvusServer, Place],
) -> None:
    process, place = fragile
    async with place.store(write_timeout=2.0) as store:
        version = await store.create_collection("photos", SPACE, deadline=within())
        rows = make_rows(10)
        await store.upsert(version, SPACE, rows, deadline=within())
        process.hang()
        start = time.monotonic()
        calls = [
            store.search(version, SPACE, unit_vectors(1), top_k=1, deadline=within(0.5)),
            store.upsert(version, SPACE, rows, deadline=within(0.5)),
            store.count(version, deadline=within(0.5)),
            store.serving("photos", deadline=within(0.5)),
            store.ping(deadline=within(0.5)),
        ]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert time.monotonic() - start < 1.5
        assert [type(outcome) for outcome in outcomes] == [DeadlineExceeded] * len(calls)
        process.go_on()
        assert await store.count(version, deadline=within()) == 10


async def test_a_server_that_dies_is_unavailable_until_it_is_back_with_every_acknowledged_row(
    fragile: tuple[MilvusProcess | MilvusServer, Place],
) -> None:
    process, place = fragile
    async with place.store() as store:
        version = await store.create_collection("photos", SPACE, deadline=within())
        rows = make_rows(3000)
        await store.upsert(version, SPACE, rows, deadline=within())
        process.kill()
        start = time.monotonic()
        with pytest.raises(ServiceError) as caught:
            await store.count(version, deadline=within(30))
        assert isinstance(caught.value, Unavailable)
        assert time.monotonic() - start < 5
        await asyncio.to_thread(process.start)
        await until_ready(store)
        (hits,) = await store.search(version, SPACE, rows[-1].vector[None], top_k=1, deadline=within())
        assert ids(hits) == [rows[-1].id]
        assert len(await store.get(version, [row.id for row in rows], output=(), deadline=within())) == 3000
