"""A stream of rows: read as fast as they can be stored, written in batches, each acknowledged when it is stored."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from search_service import metrics
from search_service.service import SearchService
from search_service.settings import SearchSettings
from search_service.writes import Item, Outcome, PreparedUpsert
from service_kit import sharing
from service_kit.errors import InvalidArgument, ServiceError, Unavailable
from service_kit.streams import until


@dataclass(frozen=True, slots=True, eq=False)
class StreamedItem:
    """One message of a stream: a row, or what is wrong with it; where it belongs; and its size in bytes."""

    collection: str
    tenant: str
    sequence: int
    id: str
    item: Item | ServiceError
    if_content_changed: bool
    size: int


async def upsert_stream(
    service: SearchService,
    items: AsyncIterator[StreamedItem],
    write: Callable[[StreamedItem, Outcome], Awaitable[None]],
    settings: SearchSettings,
    *,
    deadline: Callable[[], float],
    draining: asyncio.Event,
) -> None:
    """Stores a stream of rows until it ends.

    Whatever rows are there make a batch, up to a third of those that may be in flight: one batch can be embedded while
    the one before is written and the next one arrives. Batches are written one after the other, so of several rows with
    one id the last one wins. A row is in flight until its acknowledgement is written, so a caller that does not read
    those is not read any more either.

    Args:
        items: the rows, with ascending sequence numbers.
        write: sends what became of a row, in the order of the rows. Never called twice at a time.
        settings: how many rows and bytes may be in flight.
        deadline: gives that of a batch that begins now.
        draining: once set, no more is read.

    Raises:
        InvalidArgument: a message does not belong into the stream. What was read before it is stored and acknowledged.
        Unavailable: `draining` was set before the stream ended. What was read is stored and acknowledged.
        ServiceError: a batch failed as a whole; what is not acknowledged may or may not be stored.
    """
    with metrics.STREAMS.track_inprogress():
        await _Stream(service, items, write, settings, deadline, draining).run()


class _Stream:
    def __init__(
        self,
        service: SearchService,
        items: AsyncIterator[StreamedItem],
        write: Callable[[StreamedItem, Outcome], Awaitable[None]],
        settings: SearchSettings,
        deadline: Callable[[], float],
        draining: asyncio.Event,
    ) -> None:
        self._service = service
        self._items = items
        self._write = write
        self._deadline = deadline
        self._draining = draining
        self._max_rows = settings.max_stream_rows
        self._max_bytes = settings.max_stream_bytes
        self._batch_rows = max(1, min(self._max_rows // 3, settings.max_batch_items))
        # The images of a batch go to the embedder in one message.
        self._batch_bytes = min(self._max_bytes // 3, settings.max_message_bytes // 2)
        self._target = ("", "")  # collection and tenant
        self._sequence = -1
        self._rows = 0  # in flight
        self._bytes = 0
        self._read_rows: deque[StreamedItem] = deque()  # and not yet in a batch
        self._ended = False  # nothing more will be read
        self._news = asyncio.Event()  # a row has been read, or the end
        self._room = asyncio.Event()
        self._room.set()
        self._unwritten: frozenset[str] = frozenset()  # ids of the batch that is being written
        self._acknowledging = asyncio.Lock()
        self._error: ServiceError | None = None

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                reading = tasks.create_task(self._read())
                try:
                    await self._store(tasks)
                except ServiceError as error:
                    self._error = error
                finally:
                    reading.cancel()
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None  # the call has failed as a whole, by the first of them
        if self._error:
            raise self._error

    async def _read(self) -> None:
        """Reads rows while there is room for them."""
        try:
            async with aclosing(until(self._draining, self._items)) as items:
                async for item in items:
                    self._check(item)
                    self._read_rows.append(item)
                    self._news.set()
                    self._rows += 1
                    self._bytes += item.size
                    if self._rows >= self._max_rows or self._bytes >= self._max_bytes:
                        self._room.clear()
                        await self._room.wait()
            if self._draining.is_set():
                self._error = Unavailable("the server is stopping; send what is not acknowledged to another one")
        except InvalidArgument as error:
            self._error = error
        finally:
            self._ended = True
            self._news.set()

    async def _store(self, tasks: asyncio.TaskGroup) -> None:
        """Writes batch after batch, and prepares the next one meanwhile."""
        preparing = asyncio.create_task(self._next_batch())
        try:
            while batch := await preparing:
                if isinstance(batch, ServiceError):
                    raise batch
                preparing = asyncio.create_task(self._next_batch())
                sharing.begin(sharing.of_tenant(self._target[1]))
                await self._service.write(batch.upsert, deadline=self._deadline())
                tasks.create_task(self._acknowledge(batch))
        finally:
            preparing.cancel()

    async def _next_batch(self) -> _Batch | ServiceError | None:
        """Returns the next batch, why there is none, or None after the last."""
        items = await self._take()
        if not items:
            return None
        sharing.begin(sharing.of_tenant(self._target[1]))  # the stream's own tasks are from before it was known
        # What a batch that is being written makes of a row is not known by looking into the database.
        conditional = {
            position
            for position, item in enumerate(items)
            if item.if_content_changed and item.id not in self._unwritten
        }
        try:
            upsert = await self._service.prepare_upsert(
                *self._target,
                [item.item for item in items],
                if_content_changed=conditional,
                patient=True,
                deadline=self._deadline(),
            )
        except ServiceError as error:
            return error
        self._unwritten = frozenset(
            item.id for item, outcome in zip(items, upsert.outcomes, strict=True) if outcome == "stored"
        )
        return _Batch(items, upsert)

    async def _take(self) -> Sequence[StreamedItem]:
        """Waits for rows and returns those that are there, as many as make a batch; none after the last."""
        await self._news.wait()
        batch: list[StreamedItem] = []
        size = 0
        while self._read_rows and len(batch) < self._batch_rows:
            size += self._read_rows[0].size
            if batch and size > self._batch_bytes:
                break
            batch.append(self._read_rows.popleft())
        if not self._read_rows and not self._ended:
            self._news.clear()
        return batch

    async def _acknowledge(self, batch: _Batch) -> None:
        async with self._acknowledging:
            for item, outcome in zip(batch.items, batch.upsert.outcomes, strict=True):
                await self._write(item, outcome)
                self._rows -= 1
                self._bytes -= item.size
                if self._rows < self._max_rows and self._bytes < self._max_bytes:
                    self._room.set()

    def _check(self, item: StreamedItem) -> None:
        """Makes sure that a message belongs into this stream."""
        target = (item.collection, item.tenant)
        if not self._target[0]:
            if not item.collection:
                raise InvalidArgument("the first message of the stream names no collection: set collection")
            self._target = target
        for name, value, first in zip(("collection", "tenant"), target, self._target, strict=True):
            if value not in ("", first):
                raise InvalidArgument(
                    f"message {item.sequence} is for {name} {value!r}, but the stream began with {first!r}: "
                    "use a stream for each"
                )
        if item.sequence <= self._sequence:
            raise InvalidArgument(
                f"sequence {item.sequence} follows {self._sequence}: number the rows of a stream in ascending order"
            )
        self._sequence = item.sequence


@dataclass(frozen=True, slots=True, eq=False)
class _Batch:
    items: Sequence[StreamedItem]
    upsert: PreparedUpsert
