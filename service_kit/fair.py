"""Turns among callers: who asks for much waits behind his own work, and not in the way of others."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

T = TypeVar("T")
_THERE_SECONDS = 1.0


class FairQueue(Generic[T]):
    """Items by caller: callers take turns, one item each, and of a caller's items the oldest comes first.

    So an item waits for no more than one of each other caller between two of its own caller. A caller without items is
    forgotten. Not for several threads at once.
    """

    def __init__(self) -> None:
        # Both in order: the callers in that of their turns. Any item can leave at once.
        self._callers: OrderedDict[str, OrderedDict[T, None]] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[T]:
        return (item for items in self._callers.values() for item in items)

    def put(self, item: T, caller: str) -> None:
        """Adds an item that is not there yet."""
        self._callers.setdefault(caller, OrderedDict())[item] = None
        self._size += 1

    def first(self) -> T:
        """Returns the item whose turn it is. Raises StopIteration if there is none."""
        return next(iter(self))

    def pop(self) -> T:
        """Removes the item whose turn it is, and ends the turn. Raises KeyError if there is none."""
        caller, items = self._callers.popitem(last=False)
        item, _ = items.popitem(last=False)
        self._size -= 1
        if items:
            self._callers[caller] = items
        return item

    def discard(self, item: T, caller: str) -> bool:
        """Removes an item; returns whether it was there."""
        items = self._callers.get(caller)
        if items is None or item not in items:
            return False
        del items[item]
        self._size -= 1
        if not items:
            del self._callers[caller]
        return True

    def clear(self) -> None:
        """Removes all items."""
        self._callers.clear()
        self._size = 0


class Slots:
    """So many may do something at a time; who waits for a slot gets one in the turn of the callers.

    For use on one event loop.
    """

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: FairQueue[asyncio.Future[None]] = FairQueue()

    async def acquire(self, caller: str) -> None:
        """Waits for a slot and holds it until `release`."""
        if self._free:
            self._free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.put(turn, caller)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._waiting.discard(turn, caller)
            else:  # the slot came at the same moment
                self.release()
            raise

    def release(self) -> None:
        """Frees a slot for whose turn it is."""
        while self._waiting:
            turn = self._waiting.pop()
            if not turn.done():  # else it has been cancelled, and its task does not know yet
                turn.set_result(None)
                return
        self._free += 1

    @asynccontextmanager
    async def held(self, caller: str) -> AsyncIterator[None]:
        """Holds a slot for as long as the context is open."""
        await self.acquire(caller)
        try:
            yield
        finally:
            self.release()


class Share:
    """Bounds what one caller has in progress. Callers with nothing in progress are forgotten.

    For use on one event loop.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: dict[str, int] = {}

    def take(self, caller: str) -> Callable[[], None] | None:
        """Takes a place of a caller, and returns what gives it back; None: the caller has as many as one may have."""
        held = self._held.get(caller, 0)
        if held >= self._most:
            return None
        self._held[caller] = held + 1
        return lambda: self._give_back(caller)

    def _give_back(self, caller: str) -> None:
        self._held[caller] -= 1
        if not self._held[caller]:
            del self._held[caller]


class Turns:
    """While there are several callers, so much of each is done at a time; more waits, in its caller's order.

    The event loop serves what comes first, and a call passes it many times: this keeps the calls of one from being most
    of what it does. A caller is there who had a call in the last second. For use on one event loop.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._active: dict[str, int] = {}
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._seen: OrderedDict[str, float] = OrderedDict()  # when each caller was there, the latest at the end

    async def acquire(self, caller: str) -> None:
        """Waits for a turn and holds it until `release`."""
        self._note(caller)
        if self._may(caller):
            self._active[caller] = self._active.get(caller, 0) + 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(caller, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it came at the same moment
                self.release(caller)
            raise

    def release(self, caller: str) -> None:
        """Ends a turn."""
        self._note(caller)
        self._active[caller] -= 1
        waiting = self._waiting.get(caller, ())
        while waiting and self._may(caller):
            turn = waiting.popleft()
            if not turn.done():
                self._active[caller] += 1
                turn.set_result(None)
        if not waiting:
            self._waiting.pop(caller, None)
        if not self._active[caller]:
            del self._active[caller]

    def _may(self, caller: str) -> bool:
        if self._active.get(caller, 0) < self._most:
            return True
        return all(name == caller for name in self._active) and all(name == caller for name in self._seen)

    def _note(self, caller: str) -> None:
        now = self._clock()
        self._seen.pop(caller, None)
        self._seen[caller] = now
        while next(iter(self._seen.values())) < now - _THERE_SECONDS:
            self._seen.popitem(last=False)
