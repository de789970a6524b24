"""A circuit to a service behind this one: while that gives no answer, calls to it fail at once instead of waiting.

No failed call opens it by itself: a heavy call with a short deadline times out on a service in the best of health. A
call that could not connect, timed out or has been waiting for long only raises a suspicion, and a *probe*, a cheap call
that any living service answers soon, decides. The circuit opens when the probe fails and no other call has been
answered since it began; then probes follow each other, one at a time, until one is answered. Refusals, of a wrong
argument or by a rate limit, are answers.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections.abc import Awaitable, Callable

from search_service import metrics
from service_kit.errors import Unavailable
from service_kit.logs import log

RETRY_AFTER_SECONDS = 1.0
SUSPICIOUS_SECONDS = 2.0
"""How long a call may wait for its answer until that raises a suspicion."""

_log = logging.getLogger(__name__)


class Circuit:
    """Knows whether one service answers. For use on one event loop."""

    def __init__(
        self,
        upstream: str,
        target: str,
        probe: Callable[[], Awaitable[object]],
        *,
        probe_seconds: float = 2.0,
        pause_seconds: float = 0.25,
        rest_seconds: float = 1.0,
    ) -> None:
        """
        Args:
            upstream: what the service is, for metrics and messages: "milvus".
            target: where it is.
            probe: calls the service; raises if that gives no answer.
            probe_seconds: how long a probe may take.
            pause_seconds: between a probe that failed and the next one.
            rest_seconds: after a probe that was answered no suspicion sets off another for so long.
        """
        self._upstream = upstream
        self._target = target
        self._probe = probe
        self._probe_seconds = probe_seconds
        self._pause_seconds = pause_seconds
        self._rest_seconds = rest_seconds
        self._rested_at = 0.0
        self._opened_at: float | None = None
        self._answers = 0
        self._probing: asyncio.Task[None] | None = None
        self._gauge = metrics.CIRCUIT_OPEN.labels(upstream, target)
        self._gauge.set(0)

    @property
    def open(self) -> bool:
        """Whether calls fail at once."""
        return self._opened_at is not None

    def check(self) -> None:
        """To be called before each call. Raises Unavailable while the service gives no answer."""
        if self._opened_at is not None:
            seconds = time.monotonic() - self._opened_at
            raise Unavailable(
                f"{self._upstream} at {self._target} has given no answer for {seconds:.0f} s: try again later",
                RETRY_AFTER_SECONDS,
            )

    def answered(self) -> None:
        """To be called when a call has been answered."""
        self._answers += 1

    def suspect(self) -> None:
        """To be called when a call failed to connect, timed out, or waits for long. Returns at once."""
        if self._probing is None and time.monotonic() >= self._rested_at:
            # In a context of its own: it works for no call in particular.
            self._probing = asyncio.create_task(self._find_out(), context=contextvars.Context())

    async def aclose(self) -> None:
        """Ends the probes."""
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.wait([self._probing])

    async def _find_out(self) -> None:
        """Probes until the service answers."""
        try:
            while (reason := await self._failure()) is not None:
                self._open(reason)
                await asyncio.sleep(self._pause_seconds)
            self._close()
        finally:
            self._rested_at = time.monotonic() + self._rest_seconds
            self._probing = None

    async def _failure(self) -> str | None:
        """Probes once, and returns why the service seems to be dead, or None."""
        answers = self._answers
        try:
            async with asyncio.timeout(self._probe_seconds):
                await self._probe()
        except TimeoutError:
            reason = f"no answer within {self._probe_seconds:g} s"
        except Exception as error:
            reason = str(error) or type(error).__name__
        else:
            return None
        return reason if self._answers == answers else None

    def _open(self, reason: str) -> None:
        if self._opened_at is None:
            self._opened_at = time.monotonic()
            self._gauge.set(1)
            log(_log, logging.WARNING, "circuit opened", upstream=self._upstream, target=self._target, reason=reason)

    def _close(self) -> None:
        if self._opened_at is not None:
            seconds = round(time.monotonic() - self._opened_at, 3)
            self._opened_at = None
            self._gauge.set(0)
            fields = {"upstream": self._upstream, "target": self._target}
            log(_log, logging.INFO, "circuit closed", **fields, seconds=seconds)
