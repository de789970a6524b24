"""Joined searches: one by several vectors takes Milvus and us little more than one by one, so equal ones are joined."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from search_service.records import Hit, Vector
from service_kit import sharing
from service_kit.errors import DeadlineExceeded, ResourceExhausted
from service_kit.fair import FairQueue

Found: TypeAlias = list[list[Hit]]
Run: TypeAlias = Callable[[Vector, float], Awaitable[Found]]


@dataclass(slots=True, eq=False)
class _Caller:
    name: str
    queries: Vector
    deadline: float
    found: asyncio.Future[Found]


class Joiner:
    """Runs one search of a kind at a time; those of the kind that come meanwhile are the next one, together.

    Where they are too many for one, those who ask take turns.

    A search that finds none running starts at once. Each caller waits no longer than its own deadline, and one that
    leaves takes nothing from the others.
    """

    def __init__(self) -> None:
        self._waiting: dict[Hashable, FairQueue[_Caller]] = {}
        self._running: set[asyncio.Task[Any]] = set()

    async def search(self, kind: Hashable, queries: Vector, run: Run, *, most: int, deadline: float) -> Found:
        """Returns the hits of each query.

        Args:
            kind: equal for searches that may be joined: they differ in their vectors alone.
            queries: float32 [nq, D].
            run: searches by any number of vectors until a deadline.
            most: vectors that are joined, at most; a caller with more of them is served alone.
            deadline: on the scale of `time.monotonic()`.

        Raises:
            DeadlineExceeded: the hits were not there in time. Besides, what `run` raises.
        """
        caller = _Caller(sharing.caller(), queries, deadline, asyncio.get_running_loop().create_future())
        running = kind in self._waiting
        self._waiting.setdefault(kind, FairQueue()).put(caller, caller.name)
        if not running:
            # In a context of its own: it works for many calls, and belongs to the trace of none.
            task = asyncio.create_task(self._serve(kind, run, most), context=contextvars.Context())
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                return await caller.found
        except TimeoutError as error:
            raise DeadlineExceeded("Milvus did not answer the search in time: allow more") from error

    async def _serve(self, kind: Hashable, run: Run, most: int) -> None:
        waiting = self._waiting[kind]
        try:
            while callers := _next(waiting, most):
                sharing.begin(callers[0].name)
                try:
                    await _answer(callers, run)
                except ResourceExhausted:  # perhaps their hits were too many for one message
                    for caller in callers:
                        await _answer([caller], run)
        finally:
            del self._waiting[kind]


def _next(waiting: FairQueue[_Caller], most: int) -> list[_Caller]:
    """Takes the next callers that are still there and have no more than `most` vectors together, or else one."""
    callers: list[_Caller] = []
    size = 0
    while waiting:
        if waiting.first().found.done():  # the caller has left
            waiting.pop()
            continue
        size += len(waiting.first().queries)
        if callers and size > most:
            break
        callers.append(waiting.pop())
    return callers


async def _answer(callers: list[_Caller], run: Run) -> None:
    """Searches for the callers and gives each its hits, or the error.

    Raises:
        ResourceExhausted: where there are several callers; nobody has been answered then.
    """
    try:
        found = await run(
            np.concatenate([caller.queries for caller in callers]), max(caller.deadline for caller in callers)
        )
    except Exception as error:
        if isinstance(error, ResourceExhausted) and len(callers) > 1:
            raise
        for caller in callers:
            if not caller.found.done():
                caller.found.set_exception(error)
        return
    start = 0
    for caller in callers:
        end = start + len(caller.queries)
        if not caller.found.done():
            caller.found.set_result(found[start:end])
        start = end
