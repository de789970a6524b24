"""What the search service does, without any transport: images, vectors and ids in, neighbours out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Container, Sequence
from contextlib import aclosing, suppress

from search_service import metrics
from search_service.canary import Canary
from search_service.embedder_client import image_fault
from search_service.embedders import Embedders
from search_service.filling import Filler, FillItem, FillResult
from search_service.filters import Filter
from search_service.naming import id_fault
from search_service.records import CollectionState, IndexSpec, OutputField, StoredRow, VectorSpace
from search_service.searcher import Query, Searcher, SearchParams, SearchResult
from search_service.settings import SearchSettings
from search_service.store import MilvusStore
from search_service.writes import Item, Outcome, PreparedUpsert, Writer
from service_kit.errors import InvalidArgument, NotFound, ResourceExhausted, ServiceError

_CHECK_TIMEOUT = 10.0  # seconds
_GAUGES_INTERVAL = 30.0  # seconds
_SCAN_RETRY_AFTER = 5.0  # seconds


class SearchService:
    """Upserts, searches and everything between, on embedders and one store.

    Every method takes a `deadline` on the scale of time.monotonic() and raises service errors.
    """

    def __init__(self, store: MilvusStore, embedders: Embedders, settings: SearchSettings) -> None:
        self._store = store
        self._embedders = embedders
        self._writer = Writer(store, embedders)
        self._filler = Filler(store, embedders, self._writer)
        self._canary = Canary(store, interval=settings.canary_interval, max_rows=settings.canary_max_rows)
        self._searcher = Searcher(store, embedders, settings, self._canary)
        self._settings = settings
        self._gauges: asyncio.Task[None] | None = None
        self._scans = 0

    def start(self, draining: asyncio.Event) -> None:
        """Begins what the service does by itself: gauges, and comparisons of searches until `draining` is set."""
        self._gauges = asyncio.create_task(self._keep_gauges())
        self._canary.start(draining)

    async def aclose(self) -> None:
        """Ends what the service does by itself."""
        if self._gauges is not None:
            self._gauges.cancel()
            await asyncio.wait([self._gauges])
        await self._canary.aclose()

    # ---- Collections

    async def create_collection(
        self, name: str, space: VectorSpace | None, index: IndexSpec | None, *, multi_tenant: bool, deadline: float
    ) -> CollectionState:
        """Creates an empty collection; without a `space`, in that of the first embedder's model.

        Without an `index` it gets the one that suits most collections on this Milvus.
        """
        space = space or await self._embedders.default_space(deadline)
        index = index or self._store.backend.default_index
        await self._store.create_collection(name, space, index, multi_tenant=multi_tenant, deadline=deadline)
        return await self._store.describe(name, deadline=deadline)

    async def describe_collection(self, name: str, *, deadline: float) -> CollectionState:
        """Returns a collection as it is now."""
        return await self._store.describe(name, deadline=deadline)

    async def list_collections(self, *, deadline: float) -> Sequence[CollectionState]:
        """Returns all collections, by name."""
        return await self._store.list_collections(deadline=deadline)

    async def delete_collection(self, name: str, version: int | None = None, *, deadline: float) -> None:
        """Deletes a collection with all its versions, or one `version` that does not serve."""
        if version is None:
            await self._store.drop(name, deadline=deadline)
        else:
            await self._store.drop_version(name, version, deadline=deadline)

    async def create_version(
        self,
        name: str,
        space: VectorSpace | None,
        index: IndexSpec | None,
        *,
        require_embedder: bool = False,
        deadline: float,
    ) -> tuple[int, CollectionState]:
        """Creates a further version, empty; `space` and `index` are as in `create_collection`.

        Returns:
            its number, and the collection.

        Raises:
            FailedPrecondition: an embedder for the space is required, and there is none.
            NotFound: somebody has deleted the version meanwhile.
        """
        space = space or await self._embedders.default_space(deadline)
        if require_embedder:
            await self._embedders.require(space, deadline)
        index = index or self._store.backend.default_index
        version = await self._store.create_version(name, space, index, deadline=deadline)
        state = await self._store.describe(name, deadline=deadline)
        if version.number not in (each.version.number for each in state.versions):
            raise NotFound(f"version {version.number} of collection {name!r} was deleted while it was created")
        return version.number, state

    async def switch_version(self, name: str, number: int, *, deadline: float) -> CollectionState:
        """Lets another version serve."""
        await self._store.switch(name, number, deadline=deadline)
        return await self._store.describe(name, deadline=deadline)

    async def fill_version(
        self,
        name: str,
        tenant: str,
        number: int,
        items: Sequence[FillItem | ServiceError],
        surplus_ids: Sequence[str],
        *,
        build_index: bool = False,
        deadline: float,
    ) -> FillResult:
        """Copies rows of the serving version into another one; see `Filler.fill`."""
        self.check_fill(len(items), len(surplus_ids), build_index=build_index)
        checked = [each if isinstance(each, ServiceError) else self._fault(each.item) or each for each in items]
        return await self._filler.fill(
            name, tenant, number, checked, surplus_ids, build_index=build_index, deadline=deadline
        )

    # ---- Writes

    async def upsert(
        self,
        collection: str,
        tenant: str,
        items: Sequence[Item | ServiceError],
        *,
        if_content_changed: bool,
        deadline: float,
    ) -> Sequence[Outcome]:
        """Stores rows, and returns what became of each.

        An item that is wrong, or already an error, fails alone. Of several with one id the last good one is stored.
        What is stored is in every version of the collection, as `search_service.writes` tells.
        """
        self.check_count("items", len(items))
        conditional = range(len(items)) if if_content_changed else ()
        upsert = await self.prepare_upsert(collection, tenant, items, if_content_changed=conditional, deadline=deadline)
        await self.write(upsert, deadline=deadline)
        return upsert.outcomes

    async def prepare_upsert(
        self,
        collection: str,
        tenant: str,
        items: Sequence[Item | ServiceError],
        *,
        if_content_changed: Container[int],
        patient: bool = False,
        deadline: float,
    ) -> PreparedUpsert:
        """Does all of an upsert but the write: looks at what is stored, embeds and encodes.

        Args:
            if_content_changed: positions of the items that are left alone where nothing has changed.
            patient: waits for room in the embedder instead of being refused.
        """
        checked = [item if isinstance(item, ServiceError) else self._fault(item) or item for item in items]
        return await self._writer.prepare(
            collection, tenant, checked, if_content_changed=if_content_changed, patient=patient, deadline=deadline
        )

    async def write(self, upsert: PreparedUpsert, *, deadline: float) -> None:
        """Writes the rows of an upsert; its outcomes are true from then on."""
        await self._writer.write(upsert, deadline=deadline)

    async def delete(
        self, collection: str, tenant: str, target: Sequence[str] | Filter | None, *, deadline: float
    ) -> int:
        """Deletes the rows with some ids, or those that a filter selects, in all versions.

        Returns:
            how many there were in the serving one.
        """
        if target is None:
            raise InvalidArgument("the filter is empty and would delete every row: delete the collection instead")
        if not isinstance(target, Filter):
            self.check_count("ids", len(target))
        return await self._writer.delete(collection, tenant, target, deadline=deadline)

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
        self.check_count("ids", len(ids))
        version = await self._store.serving(collection, deadline=deadline)
        return await self._store.get(
            version, ids, output=output, tenant=tenant, read_your_writes=read_your_writes, deadline=deadline
        )

    async def count(
        self,
        collection: str,
        tenant: str,
        condition: Filter | None,
        *,
        version_number: int | None = None,
        deadline: float,
    ) -> int:
        """Counts the rows that a filter selects, or all; every acknowledged write is seen."""
        version = await self._store.readable(collection, version_number, deadline=deadline)
        return await self._store.count(version, condition, tenant=tenant, read_your_writes=True, deadline=deadline)

    async def scan(
        self,
        collection: str,
        tenant: str | None,
        condition: Filter | None,
        output: Sequence[OutputField],
        *,
        version_number: int | None = None,
        deadline: float,
    ) -> AsyncGenerator[list[StoredRow], None]:
        """Yields the rows that a filter selects, or all, in pages; every write acknowledged before is seen.

        The `tenant` None means all tenants of a multi-tenant collection.
        Each page has the service's default timeout, the scan as a whole the `deadline`, which may be infinite.
        """
        if self._scans == self._settings.max_scans:
            raise ResourceExhausted(f"{self._scans} scans are in progress, the limit", _SCAN_RETRY_AFTER)
        self._scans += 1
        metrics.SCANS.inc()
        try:
            timeout = self._settings.default_timeout
            soon = min(deadline, time.monotonic() + timeout)
            version = await self._store.readable(collection, version_number, deadline=soon)
            pages = self._store.scan(
                version, condition, output=output, tenant=tenant, page_seconds=timeout, deadline=deadline
            )
            async with aclosing(pages):
                async for page in pages:
                    yield page
        finally:
            self._scans -= 1
            metrics.SCANS.dec()

    async def search(
        self,
        collection: str,
        tenant: str,
        queries: Sequence[Query | ServiceError],
        params: SearchParams,
        *,
        deadline: float,
    ) -> SearchResult:
        """Finds the rows most similar to each query; see `Searcher.search`."""
        return await self._searcher.search(collection, tenant, queries, params, deadline=deadline)

    async def check(self) -> None:
        """Makes sure that a real search works now."""
        await self._store.ping(deadline=time.monotonic() + _CHECK_TIMEOUT)

    async def _keep_gauges(self) -> None:
        """Brings the gauges of the collections up to date now and then. Never returns.

        Apart from `check`: counting rows is dear on Milvus Lite, and so are many collections anywhere.
        """
        while True:
            with suppress(ServiceError):  # readiness tells of it
                states = await self._store.list_collections(deadline=time.monotonic() + _GAUGES_INTERVAL)
                metrics.show_collections(states)
                self._canary.retain(state.serving.version for state in states if state.serving is not None)
            await asyncio.sleep(_GAUGES_INTERVAL)

    # ---- Limits

    def _fault(self, item: Item) -> ServiceError | None:
        """Returns what is wrong with an item before it is worth embedding."""
        if fault := id_fault(item.id):
            return fault
        return image_fault(item.content, self._settings.max_image_bytes) if isinstance(item.content, bytes) else None

    def check_fill(self, items: int, surplus_ids: int, *, build_index: bool) -> None:
        """Raises InvalidArgument where a request to fill a version asks for nothing, or has too many of one kind."""
        for what, count in (("items", items), ("surplus ids", surplus_ids)):
            if count or not (items or surplus_ids or build_index):
                self.check_count(what, count)

    def check_queries(self, count: int) -> None:
        """Raises InvalidArgument where a batch has no or too many queries."""
        self._searcher.check_queries(count)

    def check_count(self, what: str, count: int) -> None:
        """Raises InvalidArgument where a request has none or too many of something."""
        if not 1 <= count <= self._settings.max_batch_items:
            raise InvalidArgument(f"the request has {count} {what}: send 1 to {self._settings.max_batch_items}")
