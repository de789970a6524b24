"""Trying again what failed for a passing reason: until it succeeds, or patience runs out.

Patience is for whatever has died to be started again, and begins anew with each success.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import grpc

from lookalike import LookalikeError, UpsertOutcome, UpsertResult

T = TypeVar("T")

PATIENCE = 300.0  # seconds without any success
# Seconds between the attempts: doubled each time; the service may ask for more.
FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 15.0
_PASSING = frozenset(
    {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED}
)


async def call(attempt: Callable[[], Awaitable[T]]) -> T:
    """Returns what `attempt` does; raises its error if that does not pass."""
    patience = _Patience()
    while True:
        try:
            return await attempt()
        except LookalikeError as error:
            if error.code not in _PASSING or not await patience.wait([error]):
                raise


async def send(
    items: Sequence[T], id_of: Callable[[T], str], attempt: Callable[[Sequence[T]], Awaitable[Sequence[UpsertResult]]]
) -> tuple[list[UpsertResult], LookalikeError | None]:
    """Sends items, those that failed for a passing reason again, until each has a result to stay with.

    Args:
        attempt: sends items, and returns a result for each, in their order.

    Returns:
        the results, in no particular order, and the error of the whole last call, if it was that.
    """
    patience = _Patience()
    settled: list[UpsertResult] = []
    call_error: LookalikeError | None = None
    while items:
        results, call_error = await _results(items, id_of, attempt)
        if any(result.error is None for result in results):
            patience = _Patience()
        errors = [result.error for result in results if result.error is not None and result.error.code in _PASSING]
        if not errors or not await patience.wait(errors):
            return settled + results, call_error
        again = [result.error in errors for result in results]
        settled += [result for result, passing in zip(results, again, strict=True) if not passing]
        items = [item for item, passing in zip(items, again, strict=True) if passing]
    return settled, call_error


async def _results(
    items: Sequence[T], id_of: Callable[[T], str], attempt: Callable[[Sequence[T]], Awaitable[Sequence[UpsertResult]]]
) -> tuple[list[UpsertResult], LookalikeError | None]:
    try:
        return list(await attempt(items)), None
    except LookalikeError as error:
        return [UpsertResult(id_of(item), UpsertOutcome.FAILED, error) for item in items], error


class _Patience:
    """How long one goes on without a success, and the pause before the next attempt."""

    def __init__(self) -> None:
        self._pause = FIRST_PAUSE
        self._end = time.monotonic() + PATIENCE

    async def wait(self, errors: Sequence[LookalikeError]) -> bool:
        """Waits for the next attempt; returns False, at once, if there is to be none."""
        asked = max(error.retry_after or 0.0 for error in errors)
        pause = min(max(self._pause, asked), _LONGEST_PAUSE)
        if time.monotonic() + pause > self._end:
            return False
        self._pause *= 2
        await asyncio.sleep(pause)
        return True
