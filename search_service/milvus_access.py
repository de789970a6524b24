"""Access to the rows of a collection: one write at a time, and on Milvus Lite none beside a read.

Milvus Lite can lose acknowledged rows when two writes overlap. A read beside a flush, which a write may also set off,
can miss all rows that are being flushed.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

from search_service import metrics
from search_service.milvus_connection import Call, Client, MilvusConnection
from search_service.milvus_flusher import Flusher
from service_kit import sharing
from service_kit.errors import DeadlineExceeded
from service_kit.fair import Slots

T = TypeVar("T")

_FLUSH_QUIET_SECONDS = 1.0
_FLUSH_ROWS = 5_000


class Gate:
    """Lets in any number of readers, or one writer, in the turn of the callers: each one's in the order they come."""

    def __init__(self) -> None:
        self._turn = Slots(1)
        self._readers = 0
        self._no_readers = asyncio.Event()
        self._no_readers.set()

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[None]:
        """Holds the gate as one of the readers."""
        async with self._turn.held(sharing.caller()):
            self._readers += 1
            self._no_readers.clear()
        try:
            yield
        finally:
            self._readers -= 1
            if not self._readers:
                self._no_readers.set()

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        """Holds the gate alone."""
        async with self._turn.held(sharing.caller()):
            await self._no_readers.wait()
            yield


class Access:
    """Reads and writes of collections, by physical name. A server may read and write at the same time."""

    def __init__(self, connection: MilvusConnection, *, write_seconds: float) -> None:
        self._connection = connection
        self._write_seconds = write_seconds
        self._gates: defaultdict[str, Gate] = defaultdict(Gate)
        self._running: set[asyncio.Task[Any]] = set()
        self._flusher = Flusher(self._flush, quiet_seconds=_FLUSH_QUIET_SECONDS, max_rows=_FLUSH_ROWS)

    async def read(self, collection: str, operation: str, call: Call[T], deadline: float) -> T:
        """Run `call`. Raises as `MilvusConnection.call` does."""
        if not self._connection.local:
            return await self._connection.call(operation, call, deadline)
        try:
            async with asyncio.timeout(deadline - time.monotonic()), self._gates[collection].reading():
                return await self._connection.call(operation, call, deadline)
        except TimeoutError as error:
            raise DeadlineExceeded(f"the {operation} waited too long for writes to end: allow more time") from error

    async def write(self, collection: str, operation: str, call: Call[int], deadline: float) -> int:
        """Run `call`, which returns the number of rows it wrote, when its turn comes.

        A write that has begun goes on when its caller gives up, so that the next one cannot overlap with it, but not
        for ever: see `write_seconds`.

        Raises:
            DeadlineExceeded: it was not acknowledged in time, and may or may not be carried out.
            Unavailable: the server gives no answer, and the write was not begun; or it was, and may be carried out.
        """
        self._connection.require_answers()
        return await self._carried(self._in_turn(collection, operation, call, deadline), operation, deadline)

    async def flush(self, collection: str, deadline: float) -> None:
        """Have the rows written so far indexed. Raises as `write` does."""
        if self._connection.local:
            await self._carried(self._flusher.flush(collection), "flush", deadline)
        else:
            await self.write(collection, "flush", _flush(collection), deadline)

    async def _carried(self, work: Coroutine[Any, Any, T], operation: str, deadline: float) -> T:
        """Waits until the deadline for work that is carried to its end in any case."""
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._ended)
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                return await asyncio.shield(task)
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"Milvus did not acknowledge the {operation} in time, and may or may not carry it out: send it again"
            ) from error

    def unflushed(self, collection: str) -> int:
        """How many rows of Milvus Lite were written and wait for a flush; 0 for a server."""
        return self._flusher.waiting(collection)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        # If the caller has given up nobody else asks for the error, and asyncio would log it with a stack trace.
        if not task.cancelled():
            task.exception()

    async def close(self) -> None:
        """Wait for the writes and flushes that run."""
        await asyncio.gather(*self._running, return_exceptions=True)
        await self._flusher.close()

    async def _in_turn(self, collection: str, operation: str, call: Call[int], deadline: float) -> int:
        async with AsyncExitStack() as stack:
            with metrics.WRITES_WAITING.track_inprogress():
                try:
                    async with asyncio.timeout(deadline - time.monotonic()):
                        await stack.enter_async_context(self._gates[collection].writing())
                except TimeoutError as error:
                    message = f"the {operation} waited too long for other writes, and was not begun: allow more time"
                    raise DeadlineExceeded(message) from error
            rows = await self._connection.write(operation, call, deadline, self._write_seconds)
        if self._connection.local and rows:
            self._flusher.wrote(collection, rows)
        return rows

    async def _flush(self, collection: str) -> None:
        async with self._gates[collection].writing():
            end = time.monotonic() + self._write_seconds
            await self._connection.write("flush", _flush(collection), end, self._write_seconds)


def _flush(collection: str) -> Call[int]:
    def call(client: Client, timeout: float) -> int:
        client.flush(collection, timeout=timeout)
        return 0

    return call
