"""Moves a collection to another model or index: fills a new version from the one that serves, tries it, switches.

All state is in the database: the rows of the two versions and when each was written. So it can be stopped at any
moment, and goes on when it is started again; and it works while rows are written, deleted and searched.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby, islice
from statistics import fmean
from time import monotonic

import grpc

from lookalike import (
    AsyncClient,
    Collection,
    CollectionVersion,
    FillItem,
    IndexSpec,
    Item,
    LookalikeError,
    Query,
    Record,
    SearchLimits,
    UpsertOutcome,
    UpsertResult,
    VectorSpace,
    VersionState,
)
from search_service.recall import Ranked, recall_at_k
from workbench import retries
from workbench.errors import CommandError
from workbench.progress import Progress
from workbench.sources import SourceError, Sources

_TOP_K = 10
_POLL_SECONDS = 1.0
_COUNT_SECONDS = 10.0  # after which a count of rows is no older than what it is compared with
_VECTORS_PER_IMAGE = 8  # a vector is that much quicker copied than an image embedded

# A row: its tenant, which may be empty and holds no "/", and its id.
Key = str


@dataclass(frozen=True)
class Failure:
    """A row that cannot be copied, and why."""

    tenant: str
    id: str
    source: str
    reason: str


@dataclass
class Pass:
    """What one pass found and did: `rows` = `current` + `copied` + `changed` + `failed`.

    Attributes:
        rows: how many the serving version had.
        current: those that the other version had already, as they were.
        copied: those that it has got.
        changed: those that were written or deleted meanwhile, in both versions.
        failed: those that could not be copied.
        deleted: rows that only the other version had.
    """

    rows: int = 0
    current: int = 0
    copied: int = 0
    changed: int = 0
    failed: int = 0
    deleted: int = 0

    def __str__(self) -> str:
        deleted = f"; {self.deleted:,} deleted that nobody has any more" if self.deleted else ""
        return (
            f"{self.rows:,} rows = {self.copied:,} copied + {self.current:,} already there + "
            f"{self.changed:,} changed meanwhile + {self.failed:,} failed{deleted}"
        )


@dataclass
class Filled:
    """How a version compares with the serving one: `rows` = `copied` + `already_there` + the number of `failures`.

    Attributes:
        passes: what each pass did.
        sample: some of the rows, evenly spread.
    """

    rows: int = 0
    copied: int = 0
    already_there: int = 0
    failures: Sequence[Failure] = ()
    passes: list[Pass] = field(default_factory=list)
    sample: Sequence[Key] = ()

    def __str__(self) -> str:
        return (
            f"{self.rows:,} rows = {self.copied:,} copied + {self.already_there:,} already there + "
            f"{len(self.failures):,} failed"
        )


def find_version(collection: Collection, space: VectorSpace, index: IndexSpec) -> CollectionVersion | None:
    """Returns the version to go on with: the newest one being filled that fits, else the serving one if it does."""
    fitting = [version for version in collection.versions if version.space == space and _fits(version.index, index)]
    filling = [version for version in fitting if version.state is VersionState.FILLING]
    serving = [version for version in fitting if version.state is VersionState.SERVING]
    return max(filling or serving, key=lambda version: version.version, default=None)


class Filler:
    """Fills one version of a collection, pass by pass.

    Keeps the id and the time of each row in memory while it compares: about 400 bytes a row.

    Args:
        client: of the search service; its timeout holds for each call.
        collection: as described just now.
        version: the version to fill.
        limits: those of the service.
        batch: images in one call, at most.
        concurrency: calls at the same time. No more than this many times half a message of images is in memory.
        sources: where images may be read from.
        show: opens the progress of something, by its name, with a number of rows.
    """

    def __init__(
        self,
        client: AsyncClient,
        collection: Collection,
        version: CollectionVersion,
        limits: SearchLimits,
        *,
        batch: int = 32,
        concurrency: int = 4,
        sources: Sources,
        show: Callable[[str, int], AbstractContextManager[Progress]],
    ) -> None:
        serving = collection.serving
        assert serving is not None
        self._client = client
        self._name = collection.name
        self._multi_tenant = collection.multi_tenant
        self._version = version.version
        self._limits = limits
        self._most_bytes = limits.max_message_bytes // 2
        self._same_space = serving.space == version.space
        if self._same_space:
            batch = min(batch * _VECTORS_PER_IMAGE, max(1, self._most_bytes // (16 * version.space.dimension)))
        self._batch = min(batch, limits.max_batch_items)
        self._concurrency = concurrency
        self._sources = sources
        self._show = show
        self._copied: set[Key] = set()
        self._failed: dict[Key, tuple[int, Failure]] = {}
        self._stopped_by: LookalikeError | None = None

    async def fill(self, *, passes: int = 5, sample: int = 200) -> Filled:
        """Copies rows until a pass finds nothing to copy but what fails.

        Raises:
            LookalikeError: a whole call failed, for good or often enough. What has been copied stays.
            CommandError: the versions still differed after all passes.
        """
        filled = Filled()
        for _ in range(passes):
            done = Pass()
            filled.passes.append(done)
            stored = await retries.call(self._stored)
            lacking, surplus = await retries.call(partial(self._compared, stored))
            filled.rows = done.rows = len(stored)
            done.current = len(stored) - len(lacking)
            filled.sample = list(islice(stored, 0, None, max(1, len(stored) // sample)))[:sample]
            present = self._copied & stored.keys()
            del stored
            # What failed, and is still what it was, fails again: files do not come back within minutes.
            self._failed = {key: self._failed[key] for key, time in lacking.items() if self._has_failed(key, time)}
            await self._copy([key for key in lacking if key not in self._failed], done)
            await self._delete(surplus, done)
            done.failed = len(self._failed)
            if not done.copied and not done.deleted:
                filled.failures = [failure for _, failure in self._failed.values()]
                filled.copied = len(present - self._failed.keys())
                filled.already_there = filled.rows - filled.copied - len(filled.failures)
                return filled
        raise CommandError(
            f"after {passes} passes there were still rows to copy, as when others write through another search service "
            f"at the same time. Start the same command again; the last pass: {filled.passes[-1]}"
        )

    async def build_index(self, rows: int, *, patience: float) -> None:
        """Has the index built over the rows that are there, and waits until it covers so many: a Milvus server takes
        rows in long before their index.

        Args:
            rows: of the version, as they were counted a moment ago; those written since are not waited for.
            patience: seconds to wait for, as long as the index gets no further.

        Raises:
            LookalikeError: a call failed, for good or often enough.
            CommandError: patience ran out.
        """
        fill = partial(self._client.fill_version, self._name, self._version, (), build_index=True)
        with self._show("Indexing", rows) as bar:
            built = (await retries.call(fill)).index_built
            started = monotonic()
            end = started + patience
            while not built:
                described = await retries.call(partial(self._client.describe_collection, self._name))
                versions = {each.version: each for each in described.collection.versions}
                if (version := versions.get(self._version)) is None:
                    raise CommandError(f"version {self._version} of {self._name} was deleted meanwhile")
                indexed = version.indexed_row_count
                # Rows may have been deleted meanwhile; but a count is some seconds old.
                wanted = rows if monotonic() < started + _COUNT_SECONDS else min(rows, version.row_count)
                if indexed is None or indexed >= wanted:
                    break
                if indexed > bar.done:
                    end = monotonic() + patience
                bar.advance(indexed - bar.done)
                if monotonic() > end:
                    raise CommandError(
                        f"not switched: the index of version {self._version} covers {indexed:,} of {rows:,} rows, and "
                        f"got no further for {patience:g} s. See Milvus' log, and start the same command again"
                    )
                await asyncio.sleep(_POLL_SECONDS)
            bar.advance(rows - bar.done)

    async def recall(self, sample: Sequence[Key]) -> tuple[float, int]:
        """Searches the version by stored rows, by its index and exactly.

        Returns:
            the recall at 10 of the index, and how many rows were searched by.
        """
        recalls: list[float] = []
        searched = 0
        for tenant, ids in self._batches(sample, self._limits.max_batch_queries):
            queries = [Query(id=row_id) for row_id in ids]
            by_index, exact = [
                await retries.call(partial(self._search, tenant, queries, exact)) for exact in (False, True)
            ]
            for hits, best in zip(by_index, exact, strict=True):
                if isinstance(hits, LookalikeError) or isinstance(best, LookalikeError):
                    continue  # the row is not there, or not any more
                searched += 1
                if (recall := recall_at_k(hits, best, _TOP_K)) is not None:
                    recalls.append(recall)
        return fmean(recalls) if recalls else 1.0, searched

    async def _search(self, tenant: str, queries: Sequence[Query], exact: bool) -> list[Ranked | LookalikeError]:
        """Returns the hits of each query."""
        result = await self._client.search_batch(
            self._name,
            queries,
            tenant=tenant,
            version=self._version,
            top_k=_TOP_K,
            exact=exact,
            read_your_writes=True,
            attributes=(),
        )
        return [
            hits if isinstance(hits, LookalikeError) else [(hit.id, hit.similarity) for hit in hits]
            for hits in result.results
        ]

    # ---- What there is

    async def _stored(self) -> dict[Key, int]:
        """Returns the rows of the serving version, with the millisecond in which each was written."""
        return {key: time async for key, time in self._rows(None)}

    async def _compared(self, stored: Mapping[Key, int]) -> tuple[dict[Key, int], list[Key]]:
        """Returns the rows that the version lacks or has older, and those that it alone has."""
        lacking, surplus = dict(stored), []
        async for key, time in self._rows(self._version):
            if key not in stored:
                surplus.append(key)
            elif time >= stored[key]:
                lacking.pop(key, None)
        return lacking, surplus

    async def _rows(self, version: int | None) -> AsyncIterator[tuple[Key, int]]:
        records = self._client.scan(
            self._name, version=version, all_tenants=self._multi_tenant, attributes=(), include_vector=False
        )
        async for record in records:
            yield f"{record.tenant}/{record.id}", _milliseconds(record)

    def _has_failed(self, key: Key, time: int) -> bool:
        return key in self._failed and self._failed[key][0] == time

    # ---- What is done about it

    async def _copy(self, keys: Sequence[Key], done: Pass) -> None:
        if not keys:
            return
        batches = self._batches(keys, self._batch)
        with self._show("Copying", len(keys)) as bar:

            async def worker() -> None:
                for tenant, ids in batches:  # shared by all workers: each batch goes to one of them
                    if self._stopped_by is not None:
                        return
                    try:
                        await self._copy_batch(tenant, ids, done)
                    except LookalikeError as error:
                        self._stopped_by = error
                        return
                    bar.advance(len(ids), sum(f"{tenant}/{row_id}" in self._failed for row_id in ids))

            async with asyncio.TaskGroup() as group:
                for _ in range(self._concurrency):
                    group.create_task(worker())
        if self._stopped_by is not None:
            raise self._stopped_by

    async def _copy_batch(self, tenant: str, ids: Sequence[str], done: Pass) -> None:
        found = await retries.call(
            lambda: self._client.get(
                self._name,
                ids,
                tenant=tenant,
                attributes=(),
                include_vector=self._same_space,
                read_your_writes=True,
            )
        )
        done.changed += len(found.missing_ids)
        records = {record.id: record for record in found.records}
        async for items in self._items(records.values()):
            results, call_error = await retries.send(
                items, lambda each: each.item.id, lambda items: self._fill(tenant, items)
            )
            if call_error is not None:
                raise call_error
            for result in results:
                self._count(records[result.id], result, done)

    async def _fill(self, tenant: str, items: Sequence[FillItem]) -> Sequence[UpsertResult]:
        return (await self._client.fill_version(self._name, self._version, items, tenant=tenant)).results

    def _count(self, record: Record, result: UpsertResult, done: Pass) -> None:
        if result.error is not None:
            if result.error.code is grpc.StatusCode.FAILED_PRECONDITION:  # such as no embedder: all others fail as well
                raise result.error
            self._fail(record, str(result.error))
        elif result.outcome is UpsertOutcome.STORED:
            self._copied.add(f"{record.tenant}/{record.id}")
            done.copied += 1
        else:
            done.changed += 1

    async def _items(self, records: Iterable[Record]) -> AsyncIterator[list[FillItem]]:
        """Yields the rows with what the version needs of them, as many at a time as go into a message."""
        items: list[FillItem] = []
        size = 0
        for record in records:
            if self._same_space:
                items.append(FillItem(Item(record.id, vector=record.vector), record.update_time))
                continue
            try:
                image = await asyncio.to_thread(self._image, record)
            except SourceError as error:
                self._fail(record, str(error))
                continue
            if items and size + len(image) > self._most_bytes:
                yield items
                items, size = [], 0
            items.append(FillItem(Item(record.id, image=image), record.update_time))
            size += len(image)
        if items:
            yield items

    def _image(self, record: Record) -> bytes:
        """Returns the bytes that a row was made from. Raises SourceError."""
        if not record.content_sha256:
            raise SourceError("was stored as a vector, of which another model can make none: store its image")
        image = self._sources.read(record.source, max_bytes=self._limits.max_image_bytes)
        if hashlib.sha256(image).hexdigest() != record.content_sha256:
            raise SourceError("changed since it was stored: ingest it again")
        return image

    def _fail(self, record: Record, reason: str) -> None:
        failure = Failure(record.tenant, record.id, record.source, reason)
        self._failed[f"{record.tenant}/{record.id}"] = (_milliseconds(record), failure)

    async def _delete(self, surplus: Sequence[Key], done: Pass) -> None:
        """Deletes rows that the version alone has; the service looks again whether that is so."""
        for tenant, ids in self._batches(surplus, self._limits.max_batch_items):
            result = await retries.call(
                partial(self._client.fill_version, self._name, self._version, (), surplus_ids=ids, tenant=tenant)
            )
            done.deleted += result.deleted_count

    def _batches(self, keys: Iterable[Key], size: int) -> Iterator[tuple[str, list[str]]]:
        """Yields ids of one tenant each, in batches."""
        for tenant, group in groupby((key.partition("/") for key in keys), key=lambda parts: parts[0]):
            while ids := [row_id for _, _, row_id in islice(group, size)]:
                yield tenant, ids


def _fits(index: IndexSpec, wanted: IndexSpec) -> bool:
    """Whether an index is what is wanted; 0 stands for the service's default, and takes any."""
    return (
        index.type == wanted.type and wanted.m in (0, index.m) and wanted.ef_construction in (0, index.ef_construction)
    )


def _milliseconds(record: Record) -> int:
    return round(record.update_time.timestamp() * 1000)
