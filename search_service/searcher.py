"""Searches: queries of every kind to vectors, vectors to rows, and rows to the hits that were asked for."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from search_service import metrics
from search_service.canary import Canary
from search_service.embedder_client import image_fault
from search_service.embedders import Embedders
from search_service.filters import Filter
from search_service.folding import fold
from search_service.milvus_rows import check_space, stored_bytes, unit_vectors
from search_service.naming import check_tenant, id_fault
from search_service.records import CollectionVersion, Embedding, Hit, OutputField, StoredRow, Vector
from search_service.settings import SearchSettings
from search_service.store import MAX_TOP_K, MilvusStore, effective_ef
from search_service.timings import Timings
from service_kit.errors import InvalidArgument, NotFound, ResourceExhausted, ServiceError

DEFAULT_TOP_K = 10
# Where hits may be out of range or folded, this many rows for each wanted are looked at first, and at least so many.
_FIRST_LOOK = 4
_FIRST_LOOK_ROWS = 64
_WIDENING = 4
# Up to here a search brings the fields of its rows along; of more rows they are fetched when the hits are known.
_ROWS_WITH_FIELDS = 1_000
_VECTORS_BYTES = 16 << 20  # of one answer of Milvus
_FILL_ROWS = 500


@dataclass(frozen=True, slots=True)
class StoredId:
    """The id of a stored row, to search by its vector."""

    id: str


Query = bytes | Embedding | StoredId  # bytes are those of an image file


@dataclass(frozen=True, slots=True)
class SearchParams:
    """How to search; the fields are those of the contract's SearchParams."""

    top_k: int = DEFAULT_TOP_K
    offset: int = 0
    filter: Filter | None = None
    min_similarity: float | None = None
    max_similarity: float | None = None
    ef: int | None = None
    exact: bool = False
    read_your_writes: bool = False
    fold_similarity: float | None = None
    output: Sequence[OutputField] = ()
    version: int | None = None  # the serving one

    @property
    def wanted(self) -> int:
        """How many of the best hits must be known."""
        return self.offset + self.top_k

    def in_range(self, similarity: float) -> bool:
        """Returns whether a row so similar to the query is a hit."""
        return (self.min_similarity is None or similarity >= self.min_similarity) and (
            self.max_similarity is None or similarity <= self.max_similarity
        )


@dataclass(frozen=True, slots=True, eq=False)
class SearchResult:
    """The hits of each query, the best first, or why there are none; what answered; and the seconds of each stage."""

    outcomes: Sequence[Sequence[Hit] | ServiceError]
    version: CollectionVersion
    ef: int | None
    exact: bool
    timings: Mapping[str, float]


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    """A query that can be searched: its vector, and the id that is left out of its hits."""

    vector: Vector
    own_id: str | None


class Searcher:
    """Answers batches of queries; a single search is a batch of one."""

    def __init__(
        self, store: MilvusStore, embedders: Embedders, settings: SearchSettings, canary: Canary | None = None
    ) -> None:
        self._store = store
        self._embedders = embedders
        self._settings = settings
        self._canary = canary

    async def search(
        self,
        collection: str,
        tenant: str,
        queries: Sequence[Query | ServiceError],
        params: SearchParams,
        *,
        deadline: float,
    ) -> SearchResult:
        """Finds the rows most similar to each query; one that fails, or is an error already, fails alone.

        A stored row is left out of its own hits. Hits out of range or folded make room for the next ones: of each query
        the `max_top_k` most similar rows are looked at, if need be, and no more.
        """
        self.check_queries(len(queries))
        self._check(params)
        timings = Timings()
        version = await self._store.readable(collection, params.version, deadline=deadline)
        check_tenant(tenant, multi_tenant=version.multi_tenant)
        vectors = await self._vectors(version, tenant, queries, params.read_your_writes, timings, deadline)
        outcomes: dict[int, Sequence[Hit] | ServiceError] = {}
        asked: dict[int, _Asked] = {}
        for position, (query, vector) in enumerate(zip(queries, vectors, strict=True)):
            if isinstance(vector, ServiceError):
                outcomes[position] = vector
            else:
                asked[position] = _Asked(vector, query.id if isinstance(query, StoredId) else None)
        looking = _Looking(self._store, version, tenant, params, self._settings, deadline)
        if asked:
            with timings.stage("search"):
                outcomes.update(await looking.hits(asked))
            if self._canary is not None:
                vectors_asked = (query.vector for query in asked.values())
                self._canary.offer(version, tenant, params.filter, vectors_asked, k=params.wanted, ef=looking.ef)
        for position in asked:
            metrics.RESULTS.observe(len(outcomes[position]))  # type: ignore[arg-type]
        ordered = [outcomes[position] for position in range(len(queries))]
        return SearchResult(ordered, version, looking.ef, params.exact, timings.seconds())

    async def _vectors(
        self,
        version: CollectionVersion,
        tenant: str,
        queries: Sequence[Query | ServiceError],
        read_your_writes: bool,
        timings: Timings,
        deadline: float,
    ) -> list[Vector | ServiceError]:
        """Returns the vector of each query, float32 [D], or what is wrong with it."""
        found: dict[int, Embedding | ServiceError] = {}
        images: dict[int, bytes] = {}
        ids: dict[int, str] = {}
        for position, query in enumerate(queries):
            if isinstance(query, StoredId):
                ids[position] = query.id
            elif not isinstance(query, bytes):
                found[position] = query
            elif fault := image_fault(query, self._settings.max_image_bytes):
                found[position] = fault
            else:
                images[position] = query
        if images:
            with timings.stage("embed"):
                embedded = await self._embedded(version, list(images.values()), deadline)
            found.update(zip(images, embedded, strict=True))
        if ids:
            with timings.stage("get"):
                stored = await self._stored(version, tenant, list(ids.values()), read_your_writes, deadline)
            found.update(zip(ids, stored, strict=True))
        return [_vector(version, found[position]) for position in range(len(queries))]

    async def _embedded(
        self, version: CollectionVersion, images: Sequence[bytes], deadline: float
    ) -> Sequence[Embedding | ServiceError]:
        try:
            return await self._embedders.embed(version, images, interactive=True, deadline=deadline)
        except ServiceError as error:
            return [error] * len(images)  # vectors and ids can be searched without the embedder

    async def _stored(
        self, version: CollectionVersion, tenant: str, ids: Sequence[str], read_your_writes: bool, deadline: float
    ) -> list[Embedding | ServiceError]:
        faults = {row_id: fault for row_id in ids if (fault := id_fault(row_id))}
        rows = await self._store.get(
            version,
            [row_id for row_id in ids if row_id not in faults],
            output=("vector",),
            tenant=tenant,
            read_your_writes=read_your_writes,
            deadline=deadline,
        )

        def of(row_id: str) -> Embedding | ServiceError:
            if row_id in faults:
                return faults[row_id]
            vector = rows[row_id].vector if row_id in rows else None
            if vector is None:
                name = version.collection
                return NotFound(f"collection {name!r} has no row with id {row_id!r}: search by image or vector")
            return Embedding(vector, version.space.fingerprint)

        return [of(row_id) for row_id in ids]

    def check_queries(self, count: int) -> None:
        """Raises InvalidArgument where a batch has no or too many queries."""
        if not 1 <= count <= self._settings.max_batch_queries:
            raise InvalidArgument(f"the request has {count} queries: send 1 to {self._settings.max_batch_queries}")

    def _check(self, params: SearchParams) -> None:
        settings = self._settings
        if not 1 <= params.top_k <= settings.max_top_k:
            raise InvalidArgument(f"top_k is {params.top_k}: use 1 to {settings.max_top_k}")
        if params.wanted > settings.max_top_k:
            raise InvalidArgument(f"offset + top_k is {params.wanted}: use at most {settings.max_top_k}")
        if params.ef is not None and not 1 <= params.ef <= settings.max_ef:
            raise InvalidArgument(f"ef is {params.ef}: use 1 to {settings.max_ef}")
        for name in ("min_similarity", "max_similarity", "fold_similarity"):
            value = getattr(params, name)
            if value is not None and not -1 <= value <= 1:
                raise InvalidArgument(f"{name} is {value}: a cosine lies between -1 and 1")
        least, most = params.min_similarity, params.max_similarity
        if least is not None and most is not None and least > most:
            raise InvalidArgument(f"min_similarity {least} is above max_similarity {most}: no row is both, swap them")


class _Looking:
    """The way from the vectors of one request to their hits, from the first look to the widest."""

    def __init__(
        self,
        store: MilvusStore,
        version: CollectionVersion,
        tenant: str,
        params: SearchParams,
        settings: SearchSettings,
        deadline: float,
    ) -> None:
        self._store = store
        self._version = version
        self._tenant = tenant
        self._params = params
        self._max_rows = settings.max_top_k
        self._max_bytes = settings.max_message_bytes
        self._deadline = deadline
        self._by_graph = version.index.is_graph and not params.exact
        self.ef = self._ef(params.wanted)
        """The largest `ef` used; None without HNSW."""

    async def hits(self, asked: Mapping[int, _Asked]) -> dict[int, Sequence[Hit]]:
        """Returns the hits of each query."""
        params = self._params
        own = any(query.own_id is not None for query in asked.values())
        depth, most = (min(rows + own, MAX_TOP_K) for rows in self._looks())
        done: dict[int, Sequence[Hit]] = {}
        bare: set[int] = set()  # hits whose rows have ids alone
        pending = dict(asked)
        while pending:
            self.ef = self._ef(depth)
            fields = len(pending) * depth <= _ROWS_WITH_FIELDS
            for part in self._parts(list(pending), depth):
                found = await self._rows([pending[position].vector for position in part], depth, fields)
                for position, rows in zip(part, found, strict=True):
                    kept = await self._kept(rows, pending[position].own_id)
                    exhausted = len(rows) < depth or depth == most or not self._worth(rows[-1])
                    if len(kept) >= params.wanted or exhausted:
                        done[position] = kept[params.offset : params.wanted]
                        del pending[position]
                        if not fields:
                            bare.add(position)
            depth = min(most, depth * _WIDENING)
        done.update(await self._filled({position: done[position] for position in bare}))
        return done

    def _looks(self) -> tuple[int, int]:
        """Returns how many rows to look at first, and at most."""
        params = self._params
        if params.max_similarity is None and params.fold_similarity is None:
            return params.wanted, params.wanted
        if params.exact and self._version.index.is_graph:  # each look compares with all rows
            return self._max_rows, self._max_rows
        return min(self._max_rows, max(_FIRST_LOOK_ROWS, _FIRST_LOOK * params.wanted)), self._max_rows

    def _ef(self, depth: int) -> int | None:
        if not self._by_graph:
            return None
        params = self._params
        filtered = params.filter is not None or self._tenant != ""
        return max(effective_ef(params.ef, params.wanted, filtered=filtered), depth)

    def _worth(self, last: Hit) -> bool:
        """Returns whether rows less similar than this one may be hits."""
        return self._params.min_similarity is None or last.similarity >= self._params.min_similarity

    def _parts(self, positions: list[int], depth: int) -> Iterator[list[int]]:
        """The queries of each call: all of them, but for vectors that would be too many for one answer."""
        size = len(positions)
        if self._params.fold_similarity is not None:
            size = max(1, _VECTORS_BYTES // (depth * self._version.space.dimension * 4))
        for start in range(0, len(positions), size):
            yield positions[start : start + size]

    async def _rows(self, vectors: Sequence[Vector], depth: int, fields: bool) -> list[list[Hit]]:
        params = self._params
        output = set(params.output) if fields else set()
        if params.fold_similarity is not None:
            output.add("vector")
        return await self._store.search(
            self._version,
            self._version.space,
            np.stack(vectors),
            top_k=depth,
            condition=params.filter,
            tenant=self._tenant,
            ef=self.ef,
            exact=params.exact,
            output=sorted(output),
            read_your_writes=params.read_your_writes,
            deadline=self._deadline,
        )

    async def _kept(self, rows: Sequence[Hit], own_id: str | None) -> list[Hit]:
        params = self._params
        hits = [hit for hit in rows if hit.row.id != own_id and params.in_range(hit.similarity)]
        if params.fold_similarity is None:
            return hits
        folded = await asyncio.to_thread(fold, hits, params.fold_similarity, params.wanted)
        if "vector" in params.output:
            return folded
        return [replace(hit, row=replace(hit.row, vector=None)) for hit in folded]

    async def _filled(self, bare: Mapping[int, Sequence[Hit]]) -> dict[int, Sequence[Hit]]:
        """Returns the hits with the fields of their rows. Those that were deleted meanwhile are left out."""
        times = Counter(hit.row.id for hits in bare.values() for hit in hits)
        ids = list(times)
        rows: dict[str, StoredRow] = {}
        size = 0
        for start in range(0, len(ids), _FILL_ROWS):
            part = await self._store.get(
                self._version,
                ids[start : start + _FILL_ROWS],
                output=self._params.output,
                tenant=self._tenant,
                read_your_writes=self._params.read_your_writes,
                deadline=self._deadline,
            )
            size += await asyncio.to_thread(_bytes, part, times)
            if size > self._max_bytes:
                raise ResourceExhausted(
                    f"the hits take more than the {self._max_bytes} bytes of a message: ask for fewer queries or hits, "
                    "or leave attributes and vectors out"
                )
            rows.update(part)
        return {
            position: [replace(hit, row=rows[hit.row.id]) for hit in hits if hit.row.id in rows]
            for position, hits in bare.items()
        }


def _vector(version: CollectionVersion, query: Embedding | ServiceError) -> Vector | ServiceError:
    """Returns the vector, scaled to length 1, or why the version cannot be searched by it."""
    if isinstance(query, ServiceError):
        return query
    try:
        check_space(version, query.space)
        vector: Vector = unit_vectors(query.vector[np.newaxis], version.space.dimension)[0]
    except ServiceError as error:
        return error
    return vector


def _bytes(rows: Mapping[str, StoredRow], times: Mapping[str, int]) -> int:
    """Returns the bytes of rows that occur so often."""
    return sum(times[row_id] * stored_bytes(row) for row_id, row in rows.items())
