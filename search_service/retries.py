"""Calls to the services behind this one, tried again while that can help. `docs/backends.md` has the table of failures.

A failure that may pass is followed by another attempt after a random pause (full jitter), as long as the caller's
deadline, the number of attempts and a budget allow it. The budget is what keeps retries from multiplying an outage: of
many calls to a service, one in ten may be an attempt too many, and a few beyond that.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from search_service import metrics
from service_kit.errors import ServiceError
from service_kit.logs import log

T = TypeVar("T")

ATTEMPTS = 4
_FIRST_BACKOFF_SECONDS = 0.2
_LONGEST_BACKOFF_SECONDS = 5.0
_BUDGET = 10.0  # retries at first, and at most
_BUDGET_OF_A_SUCCESS = 0.1
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed call.

    Attributes:
        error: for the caller.
        retriable: whether the same call may pass when it is sent again.
        unanswered: whether the service may be down or hang.
    """

    error: ServiceError
    retriable: bool
    unanswered: bool = False


class Failed(Exception):
    """What an attempt raises. It does not leave `Retries.call`."""

    def __init__(self, failure: Failure) -> None:
        super().__init__()
        self.failure = failure


class Retries:
    """The attempts of all calls to one service."""

    def __init__(self, upstream: str, attempts: int = ATTEMPTS) -> None:
        self._upstream = upstream
        self._attempts = attempts
        self._budget = _BUDGET

    async def call(
        self, operation: str, attempt: Callable[[], Awaitable[T]], deadline: float, *, patient: bool = False
    ) -> T:
        """Returns what `attempt` does; it raises Failed where it fails.

        Args:
            operation: what is done, for the log.
            attempt: may be called again.
            deadline: on the scale of `time.monotonic()`. No attempt starts after it.
            patient: an error that says when to try again is followed by an attempt then, as often as time allows. That
                is not taken from the budget: the pace is the service's own.

        Raises:
            ServiceError: of the last attempt.
        """
        number = 1
        while True:
            try:
                result = await attempt()
            except Failed as failed:
                failure = failed.failure
                pause: float | None = getattr(failure.error, "retry_after", None) if patient else None
                if pause is None:
                    pause = self._pause(number) if failure.retriable else None
                if pause is None or time.monotonic() + pause >= deadline:
                    raise failure.error from failed.__cause__
            else:
                self._budget = min(_BUDGET, self._budget + _BUDGET_OF_A_SUCCESS)
                return result
            metrics.RETRIES.labels(self._upstream).inc()
            fields = {"upstream": self._upstream, "operation": operation, "attempt": number, "pause": round(pause, 3)}
            log(_log, logging.DEBUG, "trying again", **fields, reason=failure.error.message)
            await asyncio.sleep(pause)
            number += 1

    def _pause(self, number: int) -> float | None:
        """Returns the seconds until the next attempt after so many, which it takes from the budget; None: no more."""
        if number >= self._attempts:
            return None
        if self._budget < 1:
            metrics.RETRIES_REFUSED.labels(self._upstream).inc()
            return None
        self._budget -= 1
        # https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
        longest = min(_LONGEST_BACKOFF_SECONDS, _FIRST_BACKOFF_SECONDS * 2 ** (number - 1))
        return random.uniform(0, longest)  # noqa: S311 - no secret depends on it
