"""Coming back to a service that is at its limit, when it says so: beside the retries of `lookalike.channel`."""

from __future__ import annotations

import random
import time

import grpc

from lookalike.channel import NOT_IDEMPOTENT
from lookalike.errors import LookalikeError

_SHORTEST_PAUSE = 0.05  # seconds; a service that says "at once" is not to be hammered
_LONGEST_PAUSE = 15.0  # unless the service asks for more
_PASSING = frozenset({grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE})


class Attempts:
    """The attempts of one call, which have its deadline together.

    Another one follows a failure that says when to come back (RetryInfo), if that is before the deadline and the call
    may be repeated.

    Args:
        method: the RPC's name.
        timeout: seconds for all attempts.
        retry: whether there may be more than one.
    """

    def __init__(self, method: str, timeout: float, *, retry: bool) -> None:
        self._deadline = time.monotonic() + timeout
        self._retry = retry and method not in NOT_IDEMPOTENT
        self._failed = 0

    @property
    def seconds_left(self) -> float:
        """What is left of the deadline, for the next attempt."""
        return self._deadline - time.monotonic()

    def pause_after(self, error: LookalikeError) -> float | None:
        """Returns the seconds to wait after a failed attempt until the next one; None if there is to be none.

        At least what the service asks for, up to half as much again, so that those it refused together do not come
        back together; twice as much each time that the service was wrong about it.
        """
        if not self._retry or error.retry_after is None or error.code not in _PASSING:
            return None
        grown = max(_SHORTEST_PAUSE, error.retry_after) * 2 ** min(self._failed, 10)
        pause = max(error.retry_after, min(_LONGEST_PAUSE, grown)) * random.uniform(1.0, 1.5)  # noqa: S311
        self._failed += 1
        return pause if pause < self.seconds_left else None
