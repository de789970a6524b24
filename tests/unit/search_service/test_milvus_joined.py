"""Equal searches are joined, and callers do not feel each other."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from milvus_samples import within

from search_service.milvus_joined import Joiner
from search_service.records import Hit, StoredRow, Vector
from service_kit import sharing
from service_kit.errors import DeadlineExceeded, NotFound, ResourceExhausted, ServiceError


class Searching:
    """A search that answers each vector with its first component, when it may, and notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[float]] = []
        self.begun = asyncio.Semaphore(0)
        self.may_end = asyncio.Event()
        self.error: ServiceError | None = None
        self.most = 1000

    async def __call__(self, queries: Vector, deadline: float) -> list[list[Hit]]:
        self.asked.append(queries[:, 0].tolist())
        self.begun.release()
        await self.may_end.wait()
        if self.error is not None:
            raise self.error
        if len(queries) > self.most:
            raise ResourceExhausted("too many")
        return [[Hit(1.0, StoredRow(str(value)))] for value in queries[:, 0].tolist()]


def search(
    joiner: Joiner, run: Searching, *values: float, kind: str = "a", deadline: float | None = None
) -> asyncio.Task[list[list[Hit]]]:
    vectors = np.array([[value, 0] for value in values], dtype=np.float32)
    deadline = within() if deadline is None else deadline
    return asyncio.create_task(joiner.search(kind, vectors, run, most=4, deadline=deadline))


def found(hits: list[list[Hit]]) -> list[float]:
    return [float(hit.row.id) for [hit] in hits]


async def started(run: Searching, count: int = 1) -> None:
    async with asyncio.timeout(10):
        for _ in range(count):
            await run.begun.acquire()


async def test_what_comes_while_a_search_runs_is_the_next_one_together() -> None:
    joiner, run = Joiner(), Searching()
    first = search(joiner, run, 1)
    await started(run)
    later = [search(joiner, run, *values) for values in ([2], [3, 4], [5], [6, 7, 8, 9, 10], [11])]
    await asyncio.sleep(0)
    run.may_end.set()
    assert found(await first) == [1]
    assert [found(await task) for task in later] == [[2], [3, 4], [5], [6, 7, 8, 9, 10], [11]]
    assert run.asked == [[1], [2, 3, 4, 5], [6, 7, 8, 9, 10], [11]]


async def test_searches_of_other_kinds_run_at_the_same_time() -> None:
    joiner, run = Joiner(), Searching()
    tasks = [search(joiner, run, 1), search(joiner, run, 2, kind="b")]
    await started(run, 2)
    run.may_end.set()
    assert [found(await task) for task in tasks] == [[1], [2]]


async def test_who_asks_for_much_does_not_keep_others_from_the_next_search() -> None:
    joiner, run = Joiner(), Searching()
    sharing.begin("flood")
    tasks = [search(joiner, run, 1)]
    await started(run)
    tasks += [search(joiner, run, value) for value in range(2, 12)]
    sharing.begin("modest")
    tasks += [search(joiner, run, 20), search(joiner, run, 21)]
    await asyncio.sleep(0)
    run.may_end.set()
    await asyncio.gather(*tasks)
    assert run.asked == [[1], [2, 20, 3, 21], [4, 5, 6, 7], [8, 9, 10, 11]]


async def test_a_caller_that_leaves_or_runs_out_of_time_harms_no_other() -> None:
    joiner, run = Joiner(), Searching()
    first = search(joiner, run, 1)
    await started(run)
    gone, hurried, patient = (
        search(joiner, run, 2),
        search(joiner, run, 3, deadline=within(0.01)),
        search(joiner, run, 4),
    )
    await asyncio.sleep(0)
    gone.cancel()
    first.cancel()  # it runs already: that goes on
    with pytest.raises(DeadlineExceeded):
        await hurried
    run.may_end.set()
    assert found(await patient) == [4]
    assert run.asked == [[1], [4]]
    assert found(await search(joiner, run, 5)) == [5]


async def test_an_error_is_everybodys_but_too_much_together_is_tried_apart() -> None:
    joiner, run = Joiner(), Searching()
    run.most = 1
    tasks = [search(joiner, run, 1)]
    await started(run)
    tasks += [search(joiner, run, 2), search(joiner, run, 3)]
    await asyncio.sleep(0)
    run.may_end.set()
    assert [found(await task) for task in tasks] == [[1], [2], [3]]
    assert run.asked == [[1], [2, 3], [2], [3]]
    run.error = NotFound("gone")
    for outcome in await asyncio.gather(*(search(joiner, run, n) for n in range(3)), return_exceptions=True):
        assert isinstance(outcome, NotFound)
