"""Searches on real Milvus: batches, ranges, folding, and how far they look."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np
import pytest
from milvus_samples import DIMENSION, SPACE, free_port, make_rows, on_lite, unit_vectors, within

from search_service import searcher
from search_service.embedder_client import EmbedderClient
from search_service.embedders import Embedders
from search_service.filters import Filter
from search_service.records import CollectionVersion, Embedding, Hit, IndexSpec, Row, Vector
from search_service.searcher import Query, Searcher, SearchParams, SearchResult, StoredId
from search_service.settings import SearchSettings
from search_service.store import MilvusStore
from service_kit.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    ServiceError,
    Unavailable,
)

SETTINGS = SearchSettings(max_top_k=200, max_batch_queries=8)


@pytest.fixture
async def no_embedder() -> AsyncIterator[Embedders]:
    """An embedder that is not there."""
    embedders = Embedders([EmbedderClient(f"127.0.0.1:{free_port()}", 1 << 20)])
    yield embedders
    await embedders.aclose()


@pytest.fixture
def searches(store: MilvusStore, no_embedder: Embedders) -> Searcher:
    return Searcher(store, no_embedder, SETTINGS)


def of(vector: Vector) -> Embedding:
    return Embedding(vector, SPACE.fingerprint)


def around(query: Vector, cosines: Sequence[float], seed: int = 3) -> list[Row]:
    """Rows at these similarities to the query, each in a direction of its own, named by their ranks."""
    rng = np.random.default_rng(seed)
    rows = []
    for rank, cosine in enumerate(cosines):
        aside = rng.standard_normal(DIMENSION)
        aside -= aside @ query * query
        aside /= np.linalg.norm(aside)
        vector = cosine * query + np.sqrt(1 - cosine**2) * aside
        rows.append(Row(f"{rank:04d}", vector.astype(np.float32)))
    return rows


async def search(searches: Searcher, *queries: Query | ServiceError, **params: Any) -> SearchResult:
    return await searches.search(
        "photos", "", queries, SearchParams(read_your_writes=True, **params), deadline=within()
    )


def found(outcome: Sequence[Hit] | ServiceError) -> list[str]:
    assert not isinstance(outcome, ServiceError), outcome.message
    return [hit.row.id for hit in outcome]


# Batches


async def test_a_batch_gives_each_query_what_it_gets_alone(
    store: MilvusStore, photos: CollectionVersion, searches: Searcher
) -> None:
    rows = make_rows(300)
    await store.upsert(photos, SPACE, rows, deadline=within())
    queries: list[Query] = [of(vector) for vector in unit_vectors(3, seed=9)]
    queries += [StoredId(rows[5].id), StoredId(rows[7].id), StoredId(rows[5].id)]
    params: dict[str, Any] = {"top_k": 6, "offset": 1, "output": ("attributes",), "filter": Filter("id != 'x'")}
    batch = await search(searches, *queries, **params)
    for query, outcome in zip(queries, batch.outcomes, strict=True):
        [alone] = (await search(searches, query, **params)).outcomes
        assert found(outcome) == found(alone)
        assert len(found(outcome)) == 6
        if isinstance(query, StoredId):
            assert query.id not in found(outcome)
    assert not isinstance(batch.outcomes[0], ServiceError)
    assert batch.outcomes[0][0].row.attributes is not None
    assert set(batch.timings) == {"get", "search", "total"}


@on_lite
async def test_a_bad_query_harms_no_other(store: MilvusStore, photos: CollectionVersion, searches: Searcher) -> None:
    rows = make_rows(20)
    await store.upsert(photos, SPACE, rows, deadline=within())
    good = of(rows[0].vector)
    result = await search(
        searches,
        of(np.full(DIMENSION, np.nan, np.float32)),
        good,
        Embedding(rows[0].vector, "another-model"),
        StoredId("stranger"),
        StoredId(""),
        InvalidArgument("the query is empty"),
        b"an image, but nobody is there to embed it",
        good,
        top_k=2,
    )
    kinds = [type(outcome) for outcome in result.outcomes]
    bad = [FailedPrecondition, NotFound, InvalidArgument, InvalidArgument, Unavailable]
    assert kinds == [InvalidArgument, list, *bad, list]
    assert found(result.outcomes[1]) == found(result.outcomes[7])
    assert found(result.outcomes[1])[0] == rows[0].id


@on_lite
async def test_a_batch_of_bad_queries_alone_searches_nothing(photos: CollectionVersion, searches: Searcher) -> None:
    result = await search(searches, StoredId("stranger"), b"x" * (SETTINGS.max_image_bytes + 1))
    assert [type(outcome) for outcome in result.outcomes] == [NotFound, InvalidArgument]
    assert "search" not in result.timings


@on_lite
@pytest.mark.parametrize("count", [0, SETTINGS.max_batch_queries + 1])
async def test_batches_have_a_limit(photos: CollectionVersion, searches: Searcher, count: int) -> None:
    with pytest.raises(InvalidArgument, match=f"{count} queries: send 1 to 8"):
        await search(searches, *[StoredId("a")] * count)


async def test_many_hits_are_fetched_apart_and_complete(
    store: MilvusStore, photos: CollectionVersion, no_embedder: Embedders
) -> None:
    rows = make_rows(300)
    await store.upsert(photos, SPACE, rows, deadline=within())
    queries = [of(row.vector) for row in rows[:8]]
    searches = Searcher(store, no_embedder, SETTINGS)
    result = await search(searches, *queries, top_k=200, ef=300, output=("attributes", "vector"))
    assert len(queries) * 200 > searcher._ROWS_WITH_FIELDS
    by_id = {row.id: row for row in rows}
    for row, outcome in zip(rows, result.outcomes, strict=False):
        assert found(outcome)[0] == row.id
        assert len(found(outcome)) == 200
        assert not isinstance(outcome, ServiceError)
        assert all(hit.row.attributes == by_id[hit.row.id].attributes for hit in outcome)
        similarities = [hit.similarity for hit in outcome]
        assert similarities == sorted(similarities, reverse=True)
    narrow = Searcher(store, no_embedder, SearchSettings(max_top_k=200, max_message_bytes=100_000))
    with pytest.raises(ResourceExhausted, match="100000 bytes"):
        await search(narrow, *queries, top_k=200, output=("attributes", "vector"))


# Ranges and folding


@pytest.mark.parametrize("index", [IndexSpec("HNSW"), IndexSpec("FLAT")])
@pytest.mark.parametrize("exact", [False, True])
async def test_hits_above_the_range_make_room_for_those_in_it(
    store: MilvusStore, searches: Searcher, index: IndexSpec, exact: bool
) -> None:
    version = await store.create_collection("photos", SPACE, index, deadline=within())
    [query] = unit_vectors(1, seed=5)
    cosines = np.linspace(0.999, 0.2, 240)
    await store.upsert(version, SPACE, around(query, cosines.tolist()), deadline=within())
    # 150 rows are above the range: more than the first look sees.
    most = float(cosines[149] + cosines[150]) / 2
    result = await search(searches, of(query), top_k=5, max_similarity=most, exact=exact)
    assert found(result.outcomes[0]) == [f"{rank:04d}" for rank in range(150, 155)]
    page = await search(searches, of(query), top_k=5, offset=3, max_similarity=most, exact=exact)
    assert found(page.outcomes[0]) == [f"{rank:04d}" for rank in range(153, 158)]
    band = await search(
        searches, of(query), top_k=50, max_similarity=most, min_similarity=float(cosines[154]) - 1e-4, exact=exact
    )
    assert found(band.outcomes[0]) == [f"{rank:04d}" for rank in range(150, 155)]
    # Beyond max_top_k rows nobody looks.
    far = await search(searches, of(query), top_k=5, max_similarity=float(cosines[205]), exact=exact)
    assert found(far.outcomes[0]) == []
    edge = await search(searches, of(query), top_k=5, max_similarity=float(cosines[198]) + 1e-4, exact=exact)
    assert found(edge.outcomes[0]) == ["0198", "0199"]


async def test_folding_makes_room_for_hits_that_differ(
    store: MilvusStore, photos: CollectionVersion, searches: Searcher
) -> None:
    [query] = unit_vectors(1, seed=6)
    scenes = around(query, [0.9, 0.8, 0.7, 0.6])
    copies = [
        Row(f"{scene.id}-{copy:02d}", scene.vector + np.float32(1e-4 * copy) * unit_vectors(1, seed=copy)[0])
        for scene in scenes
        for copy in range(1, 40)
    ]
    await store.upsert(photos, SPACE, [*scenes, *copies], deadline=within())
    plain = await search(searches, of(query), top_k=4)
    assert {row_id[:4] for row_id in found(plain.outcomes[0])} == {"0000"}

    result = await search(searches, of(query), top_k=4, fold_similarity=0.99, output=("source",))
    [hits] = result.outcomes
    assert not isinstance(hits, ServiceError)
    assert [hit.row.id[:4] for hit in hits] == ["0000", "0001", "0002", "0003"]
    for hit in hits[:3]:
        assert len(hit.folded_ids) == 39
        assert {row_id[:4] for row_id in hit.folded_ids} == {hit.row.id[:4]}
    assert hits[0].row.vector is None
    assert hits[0].row.source == ""

    page = await search(searches, of(query), top_k=2, offset=2, fold_similarity=0.99)
    assert found(page.outcomes[0]) == found(hits)[2:]
    own = await search(searches, StoredId(hits[0].row.id), top_k=1, fold_similarity=0.99, output=("vector",))
    [[first]] = own.outcomes  # type: ignore[misc]
    assert hits[0].row.id not in (first.row.id, *first.folded_ids)
    assert first.row.vector is not None
    both = await search(searches, of(query), top_k=9, fold_similarity=0.99, max_similarity=0.85, min_similarity=0.65)
    assert [row_id[:4] for row_id in found(both.outcomes[0])] == ["0001", "0002"]


@on_lite
async def test_a_batch_is_folded_query_by_query(
    store: MilvusStore, photos: CollectionVersion, searches: Searcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = make_rows(250)
    twins = [Row(f"{row.id}-twin", row.vector) for row in rows]
    await store.upsert(photos, SPACE, [*rows, *twins], deadline=within())
    # As where vectors are so long that not all go into one answer of Milvus.
    monkeypatch.setattr(searcher, "_VECTORS_BYTES", 3 * 64 * DIMENSION * 4)
    result = await search(searches, *[of(row.vector) for row in rows[:8]], top_k=3, fold_similarity=0.9999)
    for row, outcome in zip(rows, result.outcomes, strict=False):
        assert not isinstance(outcome, ServiceError)
        assert [len(hit.folded_ids) for hit in outcome] == [1, 1, 1]
        assert {outcome[0].row.id, *outcome[0].folded_ids} == {row.id, f"{row.id}-twin"}


@on_lite
@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"max_similarity": 1.5}, "max_similarity is 1.5"),
        ({"fold_similarity": float("nan")}, "fold_similarity is nan"),
        ({"min_similarity": 0.9, "max_similarity": 0.1}, "swap them"),
        ({"top_k": 150, "offset": 51}, "offset \\+ top_k is 201"),
    ],
)
async def test_params_that_make_no_sense_are_refused(
    photos: CollectionVersion, searches: Searcher, params: dict[str, Any], reason: str
) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        await search(searches, StoredId("a"), **params)
