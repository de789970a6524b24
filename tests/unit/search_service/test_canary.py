"""The canary on real indexes: good and poor ones, filters, versions, and that live calls never feel it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from milvus_samples import DIMENSION, SPACE, FreshStore, Place, free_port, make_rows, on_lite, unit_vectors, within
from prometheus_client import REGISTRY

from search_service.canary import REST, Canary
from search_service.embedder_client import EmbedderClient
from search_service.embedders import Embedders
from search_service.filters import Filter
from search_service.recall import recall_at_k
from search_service.records import CollectionVersion, Embedding, Hit, IndexSpec, Row, Vector
from search_service.searcher import Searcher, SearchParams
from search_service.settings import SearchSettings
from search_service.store import MilvusStore
from service_kit.errors import ServiceError, Unavailable

LONG_AGO = 1  # updated_ms of rows that were there before any comparison
POOR = IndexSpec("HNSW", m=2, ef_construction=8)
EF = 5


class WatchedStore(FreshStore):
    """A store in which something may happen before an exact search."""

    before_exact: Callable[[], Awaitable[Any]] | None = None
    exact_searches = 0

    async def search(self, *args: Any, **options: Any) -> list[list[Hit]]:
        if options.get("exact"):
            self.exact_searches += 1
            if self.before_exact is not None:
                await self.before_exact()
        return await super().search(*args, **options)


@pytest.fixture
async def store(place: Place) -> AsyncIterator[WatchedStore]:
    async with WatchedStore(place.uri, db_name=place.database) as opened:
        yield opened


@asynccontextmanager
async def canary_on(
    store: MilvusStore, interval: float = 0.01, max_rows: int = 100_000, rest: float = 0
) -> AsyncIterator[tuple[Canary, asyncio.Event]]:
    """A canary that runs, and what tells it that the server drains."""
    canary, draining = Canary(store, interval=interval, max_rows=max_rows, rest=rest), asyncio.Event()
    canary.start(draining)
    try:
        yield canary, draining
    finally:
        await canary.aclose()
        canary.retain(())


def offer(
    canary: Canary,
    version: CollectionVersion,
    vectors: Sequence[Vector],
    condition: Filter | None = None,
    *,
    k: int = 5,
    ef: int | None = EF,
    tenant: str = "",
) -> None:
    canary.offer(version, tenant, condition, iter(vectors), k=k, ef=ef)


def recall(collection: str = "photos") -> float | None:
    return REGISTRY.get_sample_value("search_canary_recall_ratio", {"collection": collection})


def queries(outcome: str) -> float:
    return REGISTRY.get_sample_value("search_canary_queries_total", {"outcome": outcome}) or 0


async def until(condition: Callable[[], bool], seconds: float = 15) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - metrics cannot be waited for
            await asyncio.sleep(0.005)


async def ranked(store: MilvusStore, version: CollectionVersion, vectors: Vector, **options: Any) -> Any:
    found = await store.search(version, SPACE, vectors, output=(), deadline=within(), **options)
    return [[(hit.row.id, hit.similarity) for hit in hits] for hits in found]


async def by_hand(store: MilvusStore, version: CollectionVersion, vectors: Vector, **options: Any) -> float:
    found = await ranked(store, version, vectors, top_k=5, ef=EF, **options)
    exact = await ranked(store, version, vectors, top_k=5, exact=True, **options)
    each = [recall_at_k(some, all_, 5) for some, all_ in zip(found, exact, strict=True)]
    return float(np.mean([one for one in each if one is not None]))


@pytest.fixture
async def poor(store: MilvusStore) -> CollectionVersion:
    """A version whose graph has too few edges to find all that is near."""
    version = await store.create_collection("photos", SPACE, POOR, deadline=within())
    await store.upsert(version, SPACE, make_rows(1500), updated_ms=LONG_AGO, deadline=within())
    end = time.monotonic() + 20
    while await by_hand(store, version, unit_vectors(16, seed=9)) == 1:  # until the store has flushed
        assert time.monotonic() < end
        await asyncio.sleep(0.1)
    return version


# What it measures


async def test_a_good_index_has_a_recall_of_1_with_filters_and_without(
    store: MilvusStore, photos: CollectionVersion
) -> None:
    await store.upsert(photos, SPACE, make_rows(300), updated_ms=LONG_AGO, deadline=within())
    compared, empty = queries("compared"), queries("empty")
    async with canary_on(store) as (canary, _):
        offer(canary, photos, unit_vectors(3, seed=9), ef=64)
        await until(lambda: queries("compared") == compared + 3)
        assert recall() == 1
        assert time.time() - 15 < (
            REGISTRY.get_sample_value("search_canary_last_success_timestamp_seconds", {"collection": "photos"}) or 0
        )
        offer(canary, photos, unit_vectors(2), Filter('attributes["species"] == {s}', {"s": "cat"}), ef=64)
        offer(canary, photos, unit_vectors(1), Filter('attributes["species"] == {s}', {"s": "cat"}), ef=64)
        offer(canary, photos, unit_vectors(4), Filter('attributes["species"] == {s}', {"s": "dog"}), ef=64)
        await until(lambda: queries("compared") == compared + 6)
        assert recall() == 1
        # Nothing to be found is neither good nor bad.
        offer(canary, photos, unit_vectors(1), Filter("id == 'nobody'"), ef=64)
        await until(lambda: queries("empty") == empty + 1)
        assert (recall(), queries("compared")) == (1, compared + 6)


@on_lite
async def test_a_poor_index_shows_the_share_of_rows_that_it_finds(store: WatchedStore, poor: CollectionVersion) -> None:
    vectors, compared = unit_vectors(20, seed=9), queries("compared")
    expected = await by_hand(store, poor, vectors[:16])
    dogs = Filter('attributes["species"] == "dog"')
    expected_dogs = await by_hand(store, poor, vectors[:16], condition=dogs)
    before = store.exact_searches
    async with canary_on(store) as (canary, _):
        for start in range(0, 20, 4):
            offer(canary, poor, vectors[start : start + 4])
        await until(lambda: queries("compared") > compared)
        # Sixteen share one exact search; the others found no place.
        assert (queries("compared"), store.exact_searches) == (compared + 16, before + 1)
        assert 0 < expected < 1
        assert recall() == pytest.approx(expected)
        offer(canary, poor, vectors, dogs)
        await until(lambda: queries("compared") == compared + 32)
        assert recall() == pytest.approx((expected + expected_dogs) / 2)


@on_lite
async def test_tenants_are_compared_with_their_own_rows(store: MilvusStore) -> None:
    version = await store.create_collection("photos", SPACE, multi_tenant=True, deadline=within())
    for tenant, seed in (("acme", 1), ("zoo", 2)):
        rows = make_rows(50, seed=seed)
        await store.upsert(version, SPACE, rows, tenant=tenant, updated_ms=LONG_AGO, deadline=within())
    async with canary_on(store) as (canary, _):
        offer(canary, version, unit_vectors(2, seed=9), tenant="zoo", ef=64)
        await until(lambda: recall() is not None)
        assert recall() == 1


@on_lite
async def test_rows_written_during_a_comparison_do_not_count(store: WatchedStore, photos: CollectionVersion) -> None:
    await store.upsert(photos, SPACE, make_rows(100), updated_ms=LONG_AGO, deadline=within())
    [query] = unit_vectors(1, seed=9)

    async def write() -> None:
        near = [Row(f"new {n}", query + np.float32(0.01) * unit_vectors(1, seed=n)[0]) for n in range(3)]
        await store.upsert(photos, SPACE, near, deadline=within())

    store.before_exact = write
    async with canary_on(store) as (canary, _):
        offer(canary, photos, [query], ef=64)
        await until(lambda: recall() is not None)
    assert recall() is None  # it has ended
    store.before_exact = None
    async with canary_on(store) as (canary, _):
        offer(canary, photos, [query], k=8, ef=64)
        await until(lambda: recall() is not None)
        assert recall() == 1


@on_lite
async def test_another_version_starts_anew(store: MilvusStore, poor: CollectionVersion) -> None:
    vectors = unit_vectors(16, seed=9)
    other = await store.create_version("photos", SPACE, deadline=within())
    await store.upsert(other, SPACE, make_rows(100), updated_ms=LONG_AGO, deadline=within())
    stale = queries("stale")
    async with canary_on(store) as (canary, _):
        offer(canary, poor, vectors)
        await until(lambda: recall() is not None)
        assert (recall() or 0) < 1
        canary.retain([poor])
        assert recall() is not None
        await store.switch("photos", other.number, deadline=within())
        offer(canary, poor, vectors)
        await until(lambda: queries("stale") == stale + 16)
        offer(canary, other, vectors, ef=64)
        await until(lambda: recall() == 1)
        await store.drop("photos", deadline=within())
        offer(canary, other, vectors, ef=64)
        await until(lambda: queries("stale") == stale + 32)
        canary.retain([])
        assert recall() is None


# What it costs


@on_lite
async def test_switched_off_it_takes_nothing(store: WatchedStore, photos: CollectionVersion) -> None:
    canary = Canary(store, interval=0, max_rows=100)
    canary.start(asyncio.Event())

    def never() -> Any:
        raise AssertionError("a query was taken")
        yield

    canary.offer(photos, "", None, never(), k=5, ef=64)
    await canary.aclose()
    async with canary_on(store) as (running, _):
        running.offer(photos, "", None, never(), k=5, ef=None)  # not by HNSW
        await running.aclose()
        running.offer(photos, "", None, never(), k=5, ef=64)  # ended


@on_lite
async def test_a_search_that_hangs_or_fails_never_touches_live_calls(
    store: WatchedStore, photos: CollectionVersion, caplog: pytest.LogCaptureFixture
) -> None:
    await store.upsert(photos, SPACE, make_rows(100), updated_ms=LONG_AGO, deadline=within())
    embedders = Embedders([EmbedderClient(f"127.0.0.1:{free_port()}", 1 << 20)])
    go_on, failed = asyncio.Event(), queries("failed")

    async def hang_and_fail() -> None:
        await go_on.wait()
        raise Unavailable("Milvus has gone")

    async def live(**params: Any) -> None:
        asked = [Embedding(vector, SPACE.fingerprint) for vector in unit_vectors(3, seed=8)]
        result = await searcher.search("photos", "", asked, SearchParams(**params), deadline=within())
        assert [len(hits) for hits in result.outcomes if not isinstance(hits, ServiceError)] == [10] * 3

    store.before_exact = hang_and_fail
    caplog.set_level(logging.INFO)
    async with canary_on(store) as (canary, _):
        searcher = Searcher(store, embedders, SearchSettings(), canary)
        for _ in range(20):
            await live()
            await live(filter=Filter('attributes["number"] >= 0'))
        await until(lambda: store.exact_searches == 1)
        for _ in range(20):
            await live()
        assert store.exact_searches == 1  # one comparison at a time
        go_on.set()
        await until(lambda: queries("failed") > failed)
        for _ in range(2):  # it goes on
            again = queries("failed")
            await live()
            await until(lambda before=again: queries("failed") > before)  # type: ignore[misc]
    await embedders.aclose()
    messages = [record for record in caplog.records if record.getMessage() == "canary failed"]
    assert [record.fields["reason"] for record in messages] == ["Milvus has gone"]  # type: ignore[attr-defined]
    assert recall() is None


@on_lite
async def test_exact_searches_and_flat_indexes_are_no_samples(store: WatchedStore) -> None:
    embedders = Embedders([EmbedderClient(f"127.0.0.1:{free_port()}", 1 << 20)])
    for name, index in (("graph", IndexSpec()), ("flat", IndexSpec("FLAT"))):
        version = await store.create_collection(name, SPACE, index, deadline=within())
        await store.upsert(version, SPACE, make_rows(20), updated_ms=LONG_AGO, deadline=within())
    query = Embedding(np.ones(DIMENSION, np.float32), SPACE.fingerprint)
    async with canary_on(store) as (canary, _):
        searcher = Searcher(store, embedders, SearchSettings(), canary)
        await searcher.search("flat", "", [query], SearchParams(), deadline=within())
        await searcher.search("graph", "", [query], SearchParams(exact=True), deadline=within())
        await searcher.search("graph", "", [query], SearchParams(max_similarity=0.9), deadline=within())
        await until(lambda: recall("graph") == 1)
        assert recall("flat") is None
        assert store.exact_searches == 2  # the caller's, and that of the third
    await embedders.aclose()


@on_lite
async def test_it_rests_fifty_times_as_long_as_it_worked(store: WatchedStore, photos: CollectionVersion) -> None:
    await store.upsert(photos, SPACE, make_rows(20), updated_ms=LONG_AGO, deadline=within())
    begun: list[float] = []
    work = 0.04

    async def slowly() -> None:
        begun.append(time.monotonic())
        await asyncio.sleep(work)

    store.before_exact = slowly
    async with canary_on(store, rest=REST) as (canary, _):
        while len(begun) < 2:
            offer(canary, photos, unit_vectors(1))
            await asyncio.sleep(0.01)
    assert begun[1] - begun[0] >= (1 + REST) * work


@on_lite
async def test_above_the_bound_on_rows_it_says_so_once(
    store: WatchedStore, photos: CollectionVersion, caplog: pytest.LogCaptureFixture
) -> None:
    await store.upsert(photos, SPACE, make_rows(30), updated_ms=LONG_AGO, deadline=within())
    caplog.set_level(logging.INFO)
    too_large = queries("too_large")
    async with canary_on(store, max_rows=29) as (canary, _):
        for count in (1, 2):
            offer(canary, photos, unit_vectors(1))
            await until(lambda count=count: queries("too_large") == too_large + count)  # type: ignore[misc]
        assert store.exact_searches == 0
        offer(canary, photos, unit_vectors(1), Filter('attributes["species"] == "cat"'))  # these are few enough
        await until(lambda: recall() == 1)
    assert [record.getMessage() for record in caplog.records].count("no canary") == 1


@on_lite
async def test_a_drain_cancels_the_comparison_that_runs(store: WatchedStore, photos: CollectionVersion) -> None:
    await store.upsert(photos, SPACE, make_rows(20), updated_ms=LONG_AGO, deadline=within())
    cancelled = asyncio.Event()

    async def hang() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    store.before_exact = hang
    async with canary_on(store) as (canary, draining):
        offer(canary, photos, unit_vectors(1))
        await until(lambda: store.exact_searches == 1)
        draining.set()
        await asyncio.wait_for(cancelled.wait(), 5)
        offer(canary, photos, unit_vectors(1))
        await asyncio.wait_for(canary.aclose(), 5)
        assert store.exact_searches == 1
