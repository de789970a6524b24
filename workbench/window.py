"""How many calls are in flight: as many as a service takes.

Additive increase, multiplicative decrease, as TCP does it: a refusal halves the window, every success widens it a
little, so callers that share a service come to an even share of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from lookalike import LookalikeError


class Window:
    """Lets calls pass, `most` at a time at most."""

    def __init__(self, most: int) -> None:
        self.size = float(most)
        self._most = most
        self._in_flight = 0
        self._changed = asyncio.Condition()
        self._decreases = 0

    @asynccontextmanager
    async def call(self) -> AsyncIterator[Call]:
        """Waits for a place, and holds it for as long as the context lasts."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._in_flight < int(self.size))
            self._in_flight += 1
        call = Call(self, self._decreases)
        try:
            yield call
        finally:
            async with self._changed:
                self._in_flight -= 1
                self._changed.notify_all()

    def _ended(self, refused: bool, decreases: int) -> None:
        if not refused:
            self.size = min(self._most, self.size + 1 / self.size)
        elif decreases == self._decreases:  # of calls that were refused together the first one counts
            self.size = max(1.0, self.size / 2)
            self._decreases += 1


class Call:
    """One call in a window."""

    def __init__(self, window: Window, decreases: int) -> None:
        self._window = window
        self._decreases = decreases

    def ended(self, errors: list[LookalikeError]) -> None:
        """To be told of the errors of the call or of its items."""
        refused = any(error.code is grpc.StatusCode.RESOURCE_EXHAUSTED for error in errors)
        # What failed otherwise says nothing about the load.
        if refused or not errors:
            self._window._ended(refused, self._decreases)
