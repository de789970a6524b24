"""Stores image files through the search service: concurrently, in batches, with retries, and without losing count."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from lookalike import AsyncClient, Item, LookalikeError, SearchLimits, UpsertOutcome, UpsertResult
from workbench import retries
from workbench.images import ImageFile
from workbench.progress import progress

# A batch waits for those before it: generous, because giving up early throws finished work away.
_CALL_SECONDS = 120.0


@dataclass(frozen=True)
class Failure:
    """An image that is not stored, and why."""

    id: str
    reason: str


@dataclass
class IngestReport:
    """What became of the images: `found` = `stored` + `unchanged` + the number of `failures`."""

    found: int
    stored: int = 0
    unchanged: int = 0
    failures: list[Failure] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.found:,} images found = {self.stored:,} stored + {self.unchanged:,} unchanged + "
            f"{len(self.failures):,} failed, in {self.seconds:.1f} s ({self.found / self.seconds:,.1f} images/s)"
        )


async def ingest(
    client: AsyncClient,
    collection: str,
    files: Sequence[ImageFile],
    *,
    batch: int = 32,
    concurrency: int = 4,
    on_progress: Callable[[int, int], None] = lambda done, failed: None,
) -> IngestReport:
    """Stores image files in a collection that exists. Rows that hold the same image already are left alone.

    No more than `batch` times `concurrency` images are in memory. What fails as UNAVAILABLE, RESOURCE_EXHAUSTED or
    DEADLINE_EXCEEDED is tried again until nothing of its batch could be stored for five minutes. When a whole call
    fails nevertheless, the rest is not sent.

    Args:
        files: what to store; the attribute `class` of a row is the file's label, its source the absolute path.
        batch: images in one call, at most.
        concurrency: calls at the same time.
        on_progress: called after every batch with the numbers of images done and, among them, failed.

    Raises:
        LookalikeError: the collection cannot be described.
    """
    limits = (await client.describe_collection(collection)).limits
    started = time.monotonic()
    report = IngestReport(found=len(files))
    batches = _batches(files, min(batch, limits.max_batch_items), limits.max_message_bytes // 2)
    stopped_by: LookalikeError | None = None

    async def worker() -> None:
        nonlocal stopped_by
        for chunk in batches:  # shared by all workers: each batch goes to one of them
            if stopped_by is None:
                failures, stopped_by = await _store(client, collection, chunk, limits, report)
            else:
                failures = [Failure(file.id, f"not sent after {stopped_by}") for file in chunk]
            report.failures += failures
            on_progress(len(chunk), len(failures))

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(worker())
    report.seconds = time.monotonic() - started
    return report


def ingest_with_progress(
    target: str, collection: str, files: Sequence[ImageFile], *, batch: int = 32, concurrency: int = 4
) -> IngestReport:
    """Does what `ingest` does with the search service at `target`, makes the collection if need be, shows progress."""

    async def run() -> IngestReport:
        async with AsyncClient(target, timeout=_CALL_SECONDS) as client:
            await client.create_collection(collection, if_not_exists=True)
            with progress("Storing", len(files), "images") as bar:
                return await ingest(
                    client, collection, files, batch=batch, concurrency=concurrency, on_progress=bar.advance
                )

    return asyncio.run(run())


def _batches(files: Sequence[ImageFile], most: int, most_bytes: int) -> Iterator[list[ImageFile]]:
    """Yields the files in batches of bounded number and total size; a file beyond the size is a batch of its own."""
    batch: list[ImageFile] = []
    size = 0
    for file in files:
        file_size = file.path.stat().st_size if file.path.exists() else 0
        if batch and (len(batch) == most or size + file_size > most_bytes):
            yield batch
            batch, size = [], 0
        batch.append(file)
        size += file_size
    if batch:
        yield batch


async def _store(
    client: AsyncClient, collection: str, files: Sequence[ImageFile], limits: SearchLimits, report: IngestReport
) -> tuple[list[Failure], LookalikeError | None]:
    """Stores one batch; returns what failed, and the error of the whole call, if it was that."""
    items, failures = await asyncio.to_thread(_read, files, limits.max_image_bytes)

    async def upsert(items: Sequence[Item]) -> Sequence[UpsertResult]:
        return await client.upsert(collection, items, if_content_changed=True)

    results, call_error = await retries.send(items, lambda item: item.id, upsert)
    report.stored += sum(result.outcome is UpsertOutcome.STORED for result in results)
    report.unchanged += sum(result.outcome is UpsertOutcome.UNCHANGED for result in results)
    failures += [Failure(result.id, str(result.error)) for result in results if result.error is not None]
    return failures, call_error


def _read(files: Sequence[ImageFile], max_bytes: int) -> tuple[list[Item], list[Failure]]:
    items, failures = [], []
    for file in files:
        try:
            image = file.path.read_bytes()
        except OSError as error:
            failures.append(Failure(file.id, f"cannot be read: {error.strerror}"))
            continue
        if len(image) > max_bytes:
            failures.append(Failure(file.id, f"has {len(image):,} bytes; the service takes {max_bytes:,} at most"))
            continue
        items.append(Item(file.id, image=image, attributes={"class": file.label}, source=str(file.path)))
    return items, failures
