"""What the search service does, without any transport: images, vectors and ids in, neighbours out."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from search_service import metrics
from search_service.embedder_client import EmbedderClient
from search_service.filters import Filter
from search_service.milvus_rows import check_row
from search_service.naming import check_id, check_tenant
from search_service.records import (
    CollectionState,
    CollectionVersion,
    Embedding,
    Hit,
    IndexSpec,
    OutputField,
    Row,
    StoredRow,
    VectorSpace,
)
from search_service.settings import SearchSettings
from search_service.store import MilvusStore, effective_ef
from search_service.timings import Timings
from service_kit.errors import InvalidArgument, NotFound, ServiceError

DEFAULT_TOP_K = 10
_CHECK_TIMEOUT = 10.0  # seconds
_GAUGES_INTERVAL = 30.0  # seconds


@dataclass(frozen=True, slots=True)
class StoredId:
    """The id of a stored row, to search by its vector."""

    id: str


Query = bytes | Embedding | StoredId  # bytes are those of an image file


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """A row to be stored, from the bytes of an image file or a vector."""

    id: str
    content: bytes | Embedding
    attributes: Mapping[str, Any]
    source: str


Outcome = Literal["stored", "unchanged", "superseded"] | ServiceError


@dataclass(frozen=True, slots=True)
class SearchParams:
    """How to search; the fields are those of the contract's SearchParams."""

    top_k: int = DEFAULT_TOP_K
    offset: int = 0
    filter: Filter | None = None
    min_similarity: float | None = None
    ef: int | None = None
    exact: bool = False
    read_your_writes: bool = False
    output: Sequence[OutputField] = ()


@dataclass(frozen=True, slots=True, eq=False)
class SearchResult:
    """The hits, the best first; what answered; and the seconds spent in each stage."""

    hits: Sequence[Hit]
    version: CollectionVersion
    ef: int | None
    exact: bool
    timings: Mapping[str, float]


class SearchService:
    """Upserts, searches and everything between, on one embedder and one store.

    Every method takes a `deadline` on the scale of time.monotonic() and raises service errors.
    """

    def __init__(self, store: MilvusStore, embedder: EmbedderClient, settings: SearchSettings) -> None:
        self._store = store
        self._embedder = embedder
        self._settings = settings
        self._gauges_due = 0.0

    # ---- Collections

    async def create_collection(
        self, name: str, space: VectorSpace | None, index: IndexSpec, *, multi_tenant: bool, deadline: float
    ) -> CollectionState:
        """Creates an empty collection; without a `space`, in that of the embedder's model."""
        space = space or await self._embedder.space(deadline)
        await self._store.create_collection(name, space, index, multi_tenant=multi_tenant, deadline=deadline)
        return await self._store.describe(name, deadline=deadline)

    async def describe_collection(self, name: str, *, deadline: float) -> CollectionState:
        """Returns a collection as it is now."""
        return await self._store.describe(name, deadline=deadline)

    async def list_collections(self, *, deadline: float) -> Sequence[CollectionState]:
        """Returns all collections, by name."""
        return await self._store.list_collections(deadline=deadline)

    async def delete_collection(self, name: str, *, deadline: float) -> None:
        """Deletes a collection with all its versions."""
        await self._store.drop(name, deadline=deadline)

    # ---- Writes

    async def upsert(
        self,
        collection: str,
        tenant: str,
        items: Sequence[Item | ServiceError],
        *,
        if_content_changed: bool,
        deadline: float,
    ) -> list[Outcome]:
        """Stores rows, and returns what became of each.

        An item that is wrong, or already an error, fails alone. Of several with one id the last good one is stored.
        """
        self._check_count("items", len(items))
        version = await self._store.serving(collection, deadline=deadline)
        check_tenant(tenant, multi_tenant=version.multi_tenant)
        outcomes: dict[int, Outcome] = {}
        pending: dict[int, Item] = {}
        for position, item in enumerate(items):
            if isinstance(item, ServiceError):
                outcomes[position] = item
            elif fault := self._fault(item):
                outcomes[position] = fault
            else:
                pending[position] = item
        hashes = await asyncio.to_thread(_hashes, pending)
        if if_content_changed:
            for position in await self._unchanged(version, tenant, pending, hashes, deadline):
                outcomes[position] = "unchanged"
                del pending[position]
        vectors = await self._vectors(pending, deadline)
        rows, faults = await asyncio.to_thread(_rows, version, pending, vectors, hashes)
        outcomes.update(faults)
        # A dict keeps the last of several rows with one id.
        last = {row.id: position for position, row in rows.items()}
        winners = [rows[position] for position in last.values()]
        await self._store.upsert(version, version.space, winners, tenant=tenant, deadline=deadline)
        for position, row in rows.items():
            outcomes[position] = "stored" if last[row.id] == position else "superseded"
        return [outcomes[position] for position in range(len(items))]

    async def delete(
        self, collection: str, tenant: str, target: Sequence[str] | Filter | None, *, deadline: float
    ) -> int:
        """Deletes the rows with some ids, or those that a filter selects, and returns how many there were."""
        if target is None:
            raise InvalidArgument("the filter is empty and would delete every row: delete the collection instead")
        version = await self._store.serving(collection, deadline=deadline)
        if isinstance(target, Filter):
            return await self._store.delete_where(version, target, tenant=tenant, deadline=deadline)
        self._check_count("ids", len(target))
        return await self._store.delete(version, target, tenant=tenant, deadline=deadline)

    # ---- Reads

    async def get(
        self,
        collection: str,
        tenant: str,
        ids: Sequence[str],
        output: Sequence[OutputField],
        *,
        read_your_writes: bool,
        deadline: float,
    ) -> dict[str, StoredRow]:
        """Returns the rows with some ids; ids without a row are left out."""
        self._check_count("ids", len(ids))
        version = await self._store.serving(collection, deadline=deadline)
        return await self._store.get(
            version, ids, output=output, tenant=tenant, read_your_writes=read_your_writes, deadline=deadline
        )

    async def count(self, collection: str, tenant: str, condition: Filter | None, *, deadline: float) -> int:
        """Counts the rows that a filter selects, or all; every acknowledged write is seen."""
        version = await self._store.serving(collection, deadline=deadline)
        return await self._store.count(version, condition, tenant=tenant, read_your_writes=True, deadline=deadline)

    async def search(
        self, collection: str, tenant: str, query: Query, params: SearchParams, *, deadline: float
    ) -> SearchResult:
        """Finds the rows most similar to the query. A stored row is left out of its own hits."""
        self._check_params(params)
        timings = Timings()
        version = await self._store.serving(collection, deadline=deadline)
        own_id = query.id if isinstance(query, StoredId) else None
        if isinstance(query, StoredId):
            with timings.stage("get"):
                vector = await self._stored_vector(version, tenant, query.id, params.read_your_writes, deadline)
        elif isinstance(query, bytes):
            with timings.stage("embed"):
                vector = await self._image_vector(query, deadline)
        else:
            vector = query
        wanted = params.offset + params.top_k
        indexed = version.index.type == "HNSW" and not params.exact
        ef = effective_ef(params.ef, wanted, filtered=params.filter is not None) if indexed else None
        with timings.stage("search"):
            [hits] = await self._store.search(
                version,
                vector.space,
                vector.vector[np.newaxis],
                top_k=wanted + (own_id is not None),
                condition=params.filter,
                tenant=tenant,
                ef=ef,
                exact=params.exact,
                output=params.output,
                read_your_writes=params.read_your_writes,
                deadline=deadline,
            )
        least = -1.0 if params.min_similarity is None else params.min_similarity
        others = [hit for hit in hits if hit.row.id != own_id and hit.similarity >= least]
        found = others[params.offset : wanted]
        metrics.RESULTS.observe(len(found))
        return SearchResult(found, version, ef, params.exact, timings.seconds())

    async def check(self) -> None:
        """Makes sure that a real search works now, and now and then brings the gauges of the collections up to date."""
        now = time.monotonic()
        await self._store.ping(deadline=now + _CHECK_TIMEOUT)
        if now >= self._gauges_due:  # counting rows is dear on Milvus Lite, and so are many collections anywhere
            metrics.show_collections(await self._store.list_collections(deadline=now + _CHECK_TIMEOUT))
            self._gauges_due = now + _GAUGES_INTERVAL

    # ---- Vectors

    async def _vectors(self, items: Mapping[int, Item], deadline: float) -> dict[int, Embedding | ServiceError]:
        """Returns each item's vector: the one it brings, or that of its image."""
        images = {position: item.content for position, item in items.items() if isinstance(item.content, bytes)}
        vectors: dict[int, Embedding | ServiceError] = {
            position: item.content for position, item in items.items() if not isinstance(item.content, bytes)
        }
        if images:
            embedded = await self._embedder.embed(list(images.values()), interactive=False, deadline=deadline)
            vectors.update(zip(images, embedded, strict=True))
        return vectors

    async def _image_vector(self, image: bytes, deadline: float) -> Embedding:
        if len(image) > self._settings.max_image_bytes:
            raise self._too_large(image)
        [vector] = await self._embedder.embed([image], interactive=True, deadline=deadline)
        if isinstance(vector, ServiceError):
            raise vector
        return vector

    async def _stored_vector(
        self, version: CollectionVersion, tenant: str, row_id: str, read_your_writes: bool, deadline: float
    ) -> Embedding:
        rows = await self._store.get(
            version, [row_id], output=("vector",), tenant=tenant, read_your_writes=read_your_writes, deadline=deadline
        )
        vector = rows[row_id].vector if row_id in rows else None
        if vector is None:
            raise NotFound(
                f"collection {version.collection!r} has no row with id {row_id!r}: search by image or vector"
            )
        return Embedding(vector, version.space.fingerprint)

    async def _unchanged(
        self,
        version: CollectionVersion,
        tenant: str,
        items: Mapping[int, Item],
        hashes: Mapping[int, str],
        deadline: float,
    ) -> list[int]:
        """Returns the positions of the images that are stored already, with the same attributes and source."""
        occurrences = Counter(item.id for item in items.values())
        # Among several with one id the last one wins, whatever is stored now.
        candidates = [position for position in hashes if occurrences[items[position].id] == 1]
        if not candidates:
            return []
        stored = await self._store.get(
            version,
            [items[position].id for position in candidates],
            output=("attributes", "source", "content_sha256"),
            tenant=tenant,
            # What was there some seconds ago may have been replaced since.
            read_your_writes=True,
            deadline=deadline,
        )

        def same(position: int) -> bool:
            item, row = items[position], stored.get(items[position].id)
            if row is None or (hashes[position], item.source) != (row.content_sha256, row.source):
                return False
            # As JSON, because to Python 1, 1.0 and True are equal.
            return json.dumps(item.attributes, sort_keys=True) == json.dumps(row.attributes, sort_keys=True)

        return [position for position in candidates if same(position)]

    # ---- Limits

    def _fault(self, item: Item) -> ServiceError | None:
        """Returns what is wrong with an item before it is worth embedding."""
        try:
            check_id(item.id)
        except InvalidArgument as error:
            return error
        if isinstance(item.content, bytes) and len(item.content) > self._settings.max_image_bytes:
            return self._too_large(item.content)
        return None

    def _too_large(self, image: bytes) -> InvalidArgument:
        return InvalidArgument(
            f"the image has {len(image)} bytes, more than {self._settings.max_image_bytes}: send it scaled down"
        )

    def _check_count(self, what: str, count: int) -> None:
        if not 1 <= count <= self._settings.max_batch_items:
            raise InvalidArgument(f"the request has {count} {what}: send 1 to {self._settings.max_batch_items}")

    def _check_params(self, params: SearchParams) -> None:
        most = self._settings.max_top_k
        if not 1 <= params.top_k <= most:
            raise InvalidArgument(f"top_k is {params.top_k}: use 1 to {most}")
        if params.offset + params.top_k > most:
            raise InvalidArgument(f"offset + top_k is {params.offset + params.top_k}: use at most {most}")
        if params.ef is not None and not 1 <= params.ef <= self._settings.max_ef:
            raise InvalidArgument(f"ef is {params.ef}: use 1 to {self._settings.max_ef}")
        if params.min_similarity is not None and not -1 <= params.min_similarity <= 1:
            raise InvalidArgument(f"min_similarity is {params.min_similarity}: a cosine lies between -1 and 1")


def _hashes(items: Mapping[int, Item]) -> dict[int, str]:
    """Returns the SHA-256, in hex, of each item's image."""
    return {
        position: hashlib.sha256(item.content).hexdigest()
        for position, item in items.items()
        if isinstance(item.content, bytes)
    }


def _rows(
    version: CollectionVersion,
    items: Mapping[int, Item],
    vectors: Mapping[int, Embedding | ServiceError],
    hashes: Mapping[int, str],
) -> tuple[dict[int, Row], dict[int, ServiceError]]:
    """Returns the rows that can be stored, and what is wrong with the others."""
    rows: dict[int, Row] = {}
    faults: dict[int, ServiceError] = {}
    for position, item in items.items():
        vector = vectors[position]
        if isinstance(vector, ServiceError):
            faults[position] = vector
            continue
        row = Row(item.id, vector.vector, item.attributes, item.source, hashes.get(position, ""))
        try:
            check_row(version, vector.space, row)
        except ServiceError as error:
            faults[position] = error
        else:
            rows[position] = row
    return rows, faults
