"""The canary: compares what the index finds with the exact answer, on queries that come, beside serving them.

HNSW leaves rows out without a word, and how many depends on the data, the filters and the parameters of the moment. A
sample of the searches that used it is therefore searched once more, by the index and exactly.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from search_service import metrics
from search_service.filters import Filter
from search_service.recall import recall_at_k
from search_service.records import CollectionVersion, Hit, Vector
from search_service.store import MAX_TOP_K, MilvusStore
from service_kit.errors import NotFound
from service_kit.logs import log

# A comparison that took t seconds is followed by a rest of 50 t: it has less than 2 % of the time.
REST = 50
_WINDOW_QUERIES = 256  # the ratio shown is of the last so many queries of a version
_SAMPLE_QUERIES = 16  # share one exact search
_COMPARISON_SECONDS = 120.0
# Rows written since, or so shortly before, the index was asked, may be in the exact answer alone: they do not count.
_SETTLING_MS = 1_000
_SECONDS_BETWEEN_LOGS = 60.0
_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Sample:
    """Queries that came, in whatever calls, and differ in their vectors alone."""

    version: CollectionVersion
    tenant: str
    condition: Filter | None
    k: int
    ef: int
    vectors: list[Vector] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Window:
    """The recalls of the last queries of one version."""

    version: CollectionVersion
    recalls: deque[float] = field(default_factory=lambda: deque(maxlen=_WINDOW_QUERIES))


class Canary:
    """Takes a sample of the searches that used HNSW, and exports how much of the exact answer the index finds.

    One comparison runs at a time, in a task of its own; live calls never wait for it. For use on the event loop.

    Args:
        store: where to search.
        interval: seconds between two comparisons, at least; 0 for none at all.
        max_rows: rows that an exact search may have to read, at most.
        rest: how many times as long as a comparison took none follows, at least.
    """

    def __init__(self, store: MilvusStore, *, interval: float, max_rows: int, rest: float = REST) -> None:
        self._store = store
        self._interval = interval
        self._max_rows = max_rows
        self._rest = rest
        self._slot: _Sample | None = None
        self._filled = asyncio.Event()
        self._accepting = False
        self._task: asyncio.Task[None] | None = None
        self._windows: dict[str, _Window] = {}  # by collection
        self._too_large: set[CollectionVersion] = set()  # of which the log has told
        self._next_log = -math.inf

    def start(self, draining: asyncio.Event) -> None:
        """Begins to take samples, and ends when `draining` is set, or with `aclose`."""
        if self._interval > 0:
            self._accepting = True
            self._task = asyncio.create_task(self._run(draining))

    async def aclose(self) -> None:
        """Ends, cancelling the comparison that runs."""
        self._stop_taking()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def offer(
        self,
        version: CollectionVersion,
        tenant: str,
        condition: Filter | None,
        vectors: Iterable[Vector],
        *,
        k: int,
        ef: int | None,
    ) -> None:
        """Takes the queries of a search that has been answered, if there is room; returns at once.

        Args:
            version: where it searched.
            tenant: whose rows.
            condition: its filter.
            vectors: of its queries, each float32 [D] of length 1.
            k: how many of the best rows it needed to know.
            ef: the breadth that it used; None if it did not use HNSW.
        """
        if ef is None or not self._accepting:
            return
        sample = self._slot
        if sample is None:
            self._slot = sample = _Sample(version, tenant, condition, k, ef)
            self._filled.set()
        room = max(1, min(_SAMPLE_QUERIES, MAX_TOP_K // k)) - len(sample.vectors)
        alike = (sample.k, sample.ef, sample.tenant) == (k, ef, tenant)
        if room > 0 and alike and sample.condition == condition and sample.version == version:
            sample.vectors += islice(vectors, room)

    def retain(self, serving: Iterable[CollectionVersion]) -> None:
        """Forgets all versions but those that serve; their figures disappear."""
        kept = set(serving)
        self._too_large &= kept
        for name in [name for name, window in self._windows.items() if window.version not in kept]:
            del self._windows[name]
            metrics.forget_canary(name)

    async def _run(self, draining: asyncio.Event) -> None:
        work = asyncio.create_task(self._work())
        try:
            await draining.wait()
        finally:
            self._stop_taking()
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    def _stop_taking(self) -> None:
        self._accepting = False
        self._slot = None

    async def _work(self) -> None:
        # Replicas that were started together shall not read all vectors together.
        await asyncio.sleep(random.uniform(0, self._interval))  # noqa: S311 - no secret depends on it
        while True:
            await self._filled.wait()
            sample, self._slot = self._slot, None
            self._filled.clear()
            started = time.monotonic()
            if sample is not None:
                await self._handle(sample)
            await asyncio.sleep(max(self._interval, self._rest * (time.monotonic() - started)))

    async def _handle(self, sample: _Sample) -> None:
        try:
            outcomes = await self._compare(sample, time.monotonic() + _COMPARISON_SECONDS)
        except NotFound:  # deleted meanwhile
            outcomes = {"stale": len(sample.vectors)}
        except Exception as error:
            outcomes = {"failed": len(sample.vectors)}
            if time.monotonic() >= self._next_log:
                self._next_log = time.monotonic() + _SECONDS_BETWEEN_LOGS
                reason = str(error) or type(error).__name__
                log(_log, logging.WARNING, "canary failed", collection=sample.version.collection, reason=reason)
        metrics.count_canary(outcomes)

    async def _compare(self, sample: _Sample, deadline: float) -> dict[str, int]:
        """Compares, and returns how many queries had which outcome."""
        version, queries = sample.version, np.stack(sample.vectors)
        rows = await self._store.count(version, sample.condition, tenant=sample.tenant, deadline=deadline)
        if rows > self._max_rows:
            self._tell_too_large(version, rows)
            return {"too_large": len(queries)}
        settled = time.time_ns() // 1_000_000 - _SETTLING_MS
        # The one right after the other, both seeing every acknowledged write.
        found = await self._search(sample, queries, deadline, exact=False)
        exact = await self._search(sample, queries, deadline, exact=True)
        if await self._store.serving(version.collection, deadline=deadline) != version:
            return {"stale": len(queries)}
        recalls = await asyncio.to_thread(_recalls, found, exact, sample.k, settled)
        if recalls:
            self._show(version, recalls)
        return {"compared": len(recalls), "empty": len(queries) - len(recalls)}

    async def _search(self, sample: _Sample, queries: Vector, deadline: float, *, exact: bool) -> list[list[Hit]]:
        return await self._store.search(
            sample.version,
            sample.version.space,
            queries,
            top_k=sample.k,
            condition=sample.condition,
            tenant=sample.tenant,
            ef=sample.ef,
            exact=exact,
            output=("updated_ms",) if exact else (),
            read_your_writes=True,
            deadline=deadline,
        )

    def _show(self, version: CollectionVersion, recalls: Iterable[float]) -> None:
        window = self._windows.get(version.collection)
        if window is None or window.version != version:
            window = self._windows[version.collection] = _Window(version)
        window.recalls.extend(recalls)
        metrics.show_canary(version.collection, sum(window.recalls) / len(window.recalls))

    def _tell_too_large(self, version: CollectionVersion, rows: int) -> None:
        if version not in self._too_large:
            self._too_large.add(version)
            name, reason = version.collection, f"an exact search would read more than {self._max_rows} rows"
            log(_log, logging.INFO, "no canary", collection=name, version=version.number, rows=rows, reason=reason)


def _recalls(found: list[list[Hit]], exact: list[list[Hit]], k: int, settled: int) -> list[float]:
    """Returns the recall of each query that there was something to find for, of the rows written before `settled`."""
    recalls = []
    for approximate, truth in zip(found, exact, strict=True):
        old = [(hit.row.id, hit.similarity) for hit in truth if (hit.row.updated_ms or 0) < settled]
        recall = recall_at_k([(hit.row.id, hit.similarity) for hit in approximate], old, k)
        if recall is not None:
            recalls.append(recall)
    return recalls
