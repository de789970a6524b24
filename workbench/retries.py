"""Trying again what failed for a passing reason: a bounded number of times, and not before the service asks for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import grpc

from lookalike import LookalikeError, UpsertOutcome, UpsertResult

T = TypeVar("T")

# Seconds between the attempts; the service may ask for more.
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
_LONGEST_PAUSE = 30.0
_PASSING = frozenset(
    {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED}
)


async def call(attempt: Callable[[], Awaitable[T]]) -> T:
    """Returns what `attempt` does; raises its error if that does not pass."""
    for pause in PAUSES:
        try:
            return await attempt()
        except LookalikeError as error:
            if error.code not in _PASSING:
                raise
            await _wait(pause, [error])
    return await attempt()


async def send(
    items: Sequence[T], id_of: Callable[[T], str], attempt: Callable[[Sequence[T]], Awaitable[Sequence[UpsertResult]]]
) -> tuple[list[UpsertResult], LookalikeError | None]:
    """Sends items, those that failed for a passing reason again, until each has a result to stay with.

    Args:
        attempt: sends items, and returns a result for each, in their order.

    Returns:
        the results, in no particular order, and the error of the whole last call, if it was that.
    """
    pauses = iter(PAUSES)
    settled: list[UpsertResult] = []
    call_error: LookalikeError | None = None
    while items:
        results, call_error = await _results(items, id_of, attempt)
        again = [result.error is not None and result.error.code in _PASSING for result in results]
        pause = next(pauses, None) if any(again) else None
        if pause is None:
            return settled + results, call_error
        settled += [result for result, passing in zip(results, again, strict=True) if not passing]
        errors = [result.error for result, passing in zip(results, again, strict=True) if passing]
        items = [item for item, passing in zip(items, again, strict=True) if passing]
        await _wait(pause, errors)
    return settled, call_error


async def _results(
    items: Sequence[T], id_of: Callable[[T], str], attempt: Callable[[Sequence[T]], Awaitable[Sequence[UpsertResult]]]
) -> tuple[list[UpsertResult], LookalikeError | None]:
    try:
        return list(await attempt(items)), None
    except LookalikeError as error:
        return [UpsertResult(id_of(item), UpsertOutcome.FAILED, error) for item in items], error


async def _wait(pause: float, errors: Sequence[LookalikeError | None]) -> None:
    asked = max((error.retry_after or 0.0 for error in errors if error is not None), default=0.0)
    await asyncio.sleep(min(max(pause, asked), _LONGEST_PAUSE))
