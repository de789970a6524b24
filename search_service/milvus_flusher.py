"""Flushes collections of Milvus Lite, which searches rows that are not flushed one by one in Python: ten times slower.

A server flushes by itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable

from service_kit.errors import ServiceError

_log = logging.getLogger(__name__)


class Flusher:
    """Flushes a collection once its writes are quiet, or at once when many rows wait. One flush at a time each."""

    def __init__(self, flush: Callable[[str], Awaitable[None]], *, quiet_seconds: float, max_rows: int) -> None:
        self._flush = flush
        self._quiet_seconds = quiet_seconds
        self._max_rows = max_rows
        self._waiting: dict[str, int] = {}
        self._flushing: Counter[str] = Counter()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._running: dict[str, asyncio.Task[None]] = {}

    def wrote(self, collection: str, rows: int) -> None:
        """To be told of every acknowledged write, deletions too."""
        self._waiting[collection] = self._waiting.get(collection, 0) + rows
        self._schedule(collection)

    def waiting(self, collection: str) -> int:
        """How many rows have been written and not been flushed yet."""
        return self._waiting.get(collection, 0) + self._flushing[collection]

    async def flush(self, collection: str) -> None:
        """Flush at once. Raises as the flush does."""
        rows = self._waiting.pop(collection, 0)
        self._flushing[collection] += rows
        try:
            await self._flush(collection)
        finally:
            self._flushing[collection] -= rows

    async def close(self) -> None:
        """Stop, after the flushes that run. What then waits is flushed by the engine when it closes."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        await asyncio.gather(*self._running.values())

    def _schedule(self, collection: str) -> None:
        if timer := self._timers.pop(collection, None):
            timer.cancel()
        seconds = 0.0 if self._waiting[collection] >= self._max_rows else self._quiet_seconds
        self._timers[collection] = asyncio.get_running_loop().call_later(seconds, self._start, collection)

    def _start(self, collection: str) -> None:
        self._timers.pop(collection, None)
        if collection in self._waiting and collection not in self._running:
            self._running[collection] = asyncio.create_task(self._run(collection))

    async def _run(self, collection: str) -> None:
        try:
            await self.flush(collection)
        except ServiceError as error:
            # Rows are safe without it, only slower to search; the next write tries again.
            _log.warning("could not flush %s: %s", collection, error.message)
        finally:
            del self._running[collection]
        if collection in self._waiting:
            self._schedule(collection)
