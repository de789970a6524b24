"""Stores images: finding, reading, sending and acknowledgement overlap, nothing is lost.

Threads read images ahead, into batches; calls are in flight up to a window that follows what the service takes; what is
read and not acknowledged is bounded in number and bytes. So the memory needed does not depend on how many images there
are, but for 8 bytes an image where an id could come twice or a checkpoint is kept.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from lookalike import AsyncClient, Item, LookalikeError, UpsertOutcome, UpsertResult
from lookalike.security import PLAINTEXT
from workbench import retries
from workbench.batches import Batch, Batches, Failure, Prefetch
from workbench.checkpoint import Acknowledged
from workbench.counting import Count
from workbench.destinations import Destination, StoredCollection
from workbench.id_set import IdSet, id_hash
from workbench.images import ImageFile
from workbench.inputs.folders import found_file
from workbench.inputs.found import Found, Input, unreadable
from workbench.progress import progress
from workbench.shards import Shard
from workbench.window import Window

__all__ = ["Failure", "IngestReport", "Ingestion", "ingest", "ingest_with_progress", "store"]

# A batch waits for those before it: generous, because giving up early throws finished work away.
CALL_SECONDS = 120.0
_READERS = 4
_TICK_SECONDS = 0.2
_SYNC_SECONDS = 1.0


@dataclass
class IngestReport:
    """What became of the images: at the end, `found` = `stored` + `unchanged` + `failed`.

    Attributes:
        found: images found.
        stored: of those, stored.
        unchanged: of those, left alone, because the same was stored already.
        failed: of those, not stored.
        failures: those that failed, or the first of them.
        resumed: of those stored and unchanged, the ones that an earlier run had had acknowledged.
        seconds: how long it took.
        all_found: whether no more will be found.
        stopped_by: what ended it before all images were found.
    """

    found: int = 0
    stored: int = 0
    unchanged: int = 0
    failed: int = 0
    failures: list[Failure] = field(default_factory=list)
    resumed: int = 0
    seconds: float = 0.0
    all_found: bool = False
    stopped_by: str | None = None

    @property
    def done(self) -> int:
        """Images of which it is known what became of them."""
        return self.stored + self.unchanged + self.failed

    def __str__(self) -> str:
        rate = (self.done - self.resumed) / self.seconds if self.seconds else 0.0
        pending = f" + {self.found - self.done:,} not acknowledged" if self.done < self.found else ""
        resumed = f"; {self.resumed:,} of them before, as the checkpoint says" if self.resumed else ""
        return (
            f"{self.found:,} images found = {self.stored:,} stored + {self.unchanged:,} unchanged + "
            f"{self.failed:,} failed{pending}, in {self.seconds:.1f} s ({rate:,.1f} images/s){resumed}"
        )


@dataclass
class Ingestion:
    """How images are stored, and what has become of them so far.

    Attributes:
        batch: images in one call, at most.
        concurrency: calls at the same time, at most.
        shard: which part of the images is stored; the others are not counted.
        checkpoint: what has been acknowledged before, and is to be noted as such, if that is kept.
        distinct: no id comes twice; otherwise the first image of an id is stored, and the others fail.
        on_failure: called with each image that failed.
        kept_failures: how many of those the report keeps; None: all.
        report: what has become of them so far.
    """

    batch: int = 32
    concurrency: int = 4
    shard: Shard = field(default_factory=Shard)
    checkpoint: Acknowledged | None = None
    distinct: bool = False
    on_failure: Callable[[Failure], None] = lambda failure: None
    kept_failures: int | None = None
    report: IngestReport = field(default_factory=IngestReport)

    def select(self, images: Iterable[Found]) -> Iterator[Found]:
        """Yields the images that are to be read, and counts them all."""
        seen = None if self.distinct else IdSet()
        for found in images:
            if not self.shard.takes(found.id):
                continue
            self.report.found += 1
            if seen is not None and not seen.add(id_hash(found.id)):
                yield unreadable(
                    found.id,
                    found.source,
                    "its id came before in this run, and that image is the one stored: give ids that differ",
                )
            elif self.checkpoint is not None and (outcome := self.checkpoint.outcome(found.id)):
                self.report.resumed += 1
                if outcome == "stored":
                    self.report.stored += 1
                else:
                    self.report.unchanged += 1
            else:
                yield found
        self.report.all_found = True

    async def run(
        self,
        destination: Destination,
        images: Iterable[Found],
        *,
        on_progress: Callable[[IngestReport], None] = lambda report: None,
    ) -> IngestReport:
        """Stores images.

        What fails as UNAVAILABLE, RESOURCE_EXHAUSTED or DEADLINE_EXCEEDED is tried again until nothing of its batch
        could be stored for five minutes. When a whole call fails nevertheless, nothing more is found; what has been
        found by then fails.

        Args:
            on_progress: called several times a second, and at the end.

        Raises:
            LookalikeError: the destination cannot say its limits.
            CommandError: an input or the checkpoint cannot be used any more.
        """
        limits = await destination.limits()
        started = time.monotonic()
        self._destination = destination
        self._window = Window(self.concurrency)
        self._stopped_by: LookalikeError | None = None
        self._batches = Batches(self.select(images), limits, self.batch)
        try:
            # As many as are sent, and as many again, for one of each to be there when a call ends.
            async with (
                self._ticking(on_progress, started),
                Prefetch(self._batches, threads=_READERS, most=2 * self.concurrency + _READERS) as prefetch,
                asyncio.TaskGroup() as group,
            ):
                for _ in range(self.concurrency):
                    group.create_task(self._send(prefetch))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            self.report.seconds = time.monotonic() - started
        return self.report

    @asynccontextmanager
    async def _ticking(self, on_progress: Callable[[IngestReport], None], started: float) -> AsyncIterator[None]:
        async def tick() -> None:
            synced = time.monotonic()
            while True:
                await asyncio.sleep(_TICK_SECONDS)
                self.report.seconds = time.monotonic() - started
                on_progress(self.report)
                if self.checkpoint is not None and time.monotonic() - synced > _SYNC_SECONDS:
                    await asyncio.to_thread(self.checkpoint.sync)
                    synced = time.monotonic()

        ticking = asyncio.create_task(tick())
        try:
            yield
        finally:
            ticking.cancel()
            with suppress(asyncio.CancelledError):
                await ticking
            on_progress(self.report)

    async def _send(self, prefetch: Prefetch) -> None:
        while batch := await prefetch.get():
            try:
                await self._store(batch)
            finally:
                prefetch.release(batch)

    async def _store(self, batch: Batch) -> None:
        """Stores one batch, and counts what became of it."""
        for failure in batch.failures:
            self.fail(failure)
        sources = {item.id: item.source for item in batch.items}
        if self._stopped_by is not None:
            for item in batch.items:
                self.fail(Failure(item.id, f"not sent after {self._stopped_by}", item.source))
            return
        results, call_error = await retries.send(batch.items, lambda item: item.id, self._attempt)
        by_outcome: dict[UpsertOutcome, list[str]] = {UpsertOutcome.STORED: [], UpsertOutcome.UNCHANGED: []}
        for result in results:
            if result.outcome in by_outcome:
                by_outcome[result.outcome].append(result.id)
            else:
                reason = str(result.error or f"the service says {result.outcome.name}")
                self.fail(Failure(result.id, reason, sources[result.id]))
        self.report.stored += len(by_outcome[UpsertOutcome.STORED])
        self.report.unchanged += len(by_outcome[UpsertOutcome.UNCHANGED])
        if self.checkpoint is not None:
            self.checkpoint.add("stored", by_outcome[UpsertOutcome.STORED])
            self.checkpoint.add("unchanged", by_outcome[UpsertOutcome.UNCHANGED])
        if call_error is not None:
            self._stopped_by = self._stopped_by or call_error
            self.report.stopped_by = str(self._stopped_by)
            self._batches.stop()

    async def _attempt(self, items: Sequence[Item]) -> Sequence[UpsertResult]:
        async with self._window.call() as call:
            try:
                results = await self._destination.store(items)
            except LookalikeError as error:
                call.ended([error])
                raise
            call.ended([result.error for result in results if result.error])
            return results

    def fail(self, failure: Failure) -> None:
        """Counts an image that is not stored."""
        self.report.failed += 1
        if self.kept_failures is None or len(self.report.failures) < self.kept_failures:
            self.report.failures.append(failure)
        self.on_failure(failure)


async def store(ingestion: Ingestion, destination: Destination, inputs: Sequence[Input]) -> None:
    """Stores the images of inputs, as `Ingestion.run` does, and shows progress."""
    with progress("Storing", 0, "images") as bar:
        count = Count(inputs, ingestion.shard)

        def show(report: IngestReport) -> None:
            known = report.all_found or count.complete
            total = report.found if report.all_found else max(report.found, count.so_far)
            bar.set(report.done, report.failed, total, total_known=known, done_before=report.resumed)

        await ingestion.run(destination, (found for each in inputs for found in each.find()), on_progress=show)


async def ingest(
    client: AsyncClient,
    collection: str,
    files: Sequence[ImageFile],
    *,
    batch: int = 32,
    concurrency: int = 4,
    on_progress: Callable[[IngestReport], None] = lambda report: None,
) -> IngestReport:
    """Stores image files, whose ids must differ, as `Ingestion.run` does; each of them is in the report.

    The attribute `class` of a row is the file's label, its source the absolute path.
    """
    ingestion = Ingestion(batch=batch, concurrency=concurrency, distinct=True)
    destination = StoredCollection(client, collection)
    report = await ingestion.run(destination, map(found_file, files), on_progress=on_progress)
    for file in files[report.found :]:
        report.failures.append(Failure(file.id, f"not sent after {report.stopped_by}", str(file.path)))
    report.failed += len(files) - report.found
    report.found = len(files)
    return report


def ingest_with_progress(
    target: str, collection: str, files: Sequence[ImageFile], *, batch: int = 32, concurrency: int = 4
) -> IngestReport:
    """Does what `ingest` does with a search service, in plaintext; makes the collection if need be, shows progress."""

    async def run() -> IngestReport:
        async with AsyncClient(target, timeout=CALL_SECONDS, retry=False, security=PLAINTEXT) as client:
            await client.create_collection(collection, if_not_exists=True)
            with progress("Storing", len(files), "images") as bar:
                return await ingest(
                    client,
                    collection,
                    files,
                    batch=batch,
                    concurrency=concurrency,
                    on_progress=lambda report: bar.set(report.done, report.failed, len(files)),
                )

    return asyncio.run(run())
