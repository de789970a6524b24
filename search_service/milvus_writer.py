"""Writes to Milvus: one at a time to each collection, each carried to its end.

Milvus Lite can lose acknowledged rows when two writes, or a write and a flush, overlap.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from typing import Any

from search_service.milvus_connection import Call, MilvusConnection
from search_service.milvus_flusher import Flusher
from service_kit.errors import DeadlineExceeded

_FLUSH_QUIET_SECONDS = 1.0
_FLUSH_ROWS = 5_000


class Writer:
    """The queue of writers of each collection, by physical name."""

    def __init__(self, connection: MilvusConnection, *, attempt_seconds: float) -> None:
        self._connection = connection
        self._attempt_seconds = attempt_seconds
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._running: set[asyncio.Task[Any]] = set()
        self._flusher = Flusher(self._flush, quiet_seconds=_FLUSH_QUIET_SECONDS, max_rows=_FLUSH_ROWS)

    async def write(self, collection: str, operation: str, call: Call[int], deadline: float) -> int:
        """Run `call`, which returns the number of rows it wrote, when its turn comes.

        The write goes on when its caller gives up, so that the next one cannot overlap with it.

        Raises:
            DeadlineExceeded: it was not acknowledged in time, and may or may not be carried out.
        """
        task = asyncio.create_task(self._in_turn(collection, operation, call, deadline))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                return await asyncio.shield(task)
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"Milvus did not acknowledge the {operation} in time, and may or may not carry it out: send it again"
            ) from error

    async def close(self) -> None:
        """Wait for the writes and flushes that run."""
        await asyncio.gather(*self._running, return_exceptions=True)
        await self._flusher.close()

    async def _in_turn(self, collection: str, operation: str, call: Call[int], deadline: float) -> int:
        async with self._turns[collection]:
            rows = await self._connection.call(operation, call, deadline, attempt_seconds=self._attempt_seconds)
        if self._connection.local and rows:
            self._flusher.wrote(collection, rows)
        return rows

    async def _flush(self, collection: str) -> None:
        async with self._turns[collection]:
            await self._connection.call(
                "flush",
                lambda client, timeout: client.flush(collection, timeout=timeout),
                time.monotonic() + self._attempt_seconds,
            )
