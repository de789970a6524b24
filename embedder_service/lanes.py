"""Lanes: what goes first when there is more than can be done at once, and turns of the callers within each."""

from __future__ import annotations

import enum
import threading
from typing import Generic, TypeVar

from service_kit.fair import FairQueue

T = TypeVar("T")


class Lane(enum.IntEnum):
    """What an image is wanted for. The lower lane goes first."""

    INTERACTIVE = 0
    BULK = 1


class LaneQueue(Generic[T]):
    """A queue between threads: the first lane that has any items goes next, and in it the callers take turns.

    Putting never waits. Who wants to respect the bound reserves a place first.
    """

    def __init__(self, bound: int = 0) -> None:
        """`bound`: places that can be reserved, less the items that are there."""
        self._lanes: tuple[FairQueue[T], ...] = tuple(FairQueue() for _ in Lane)
        self._bound = bound
        self._reserved = 0
        self._closed = False
        lock = threading.Lock()
        self._filled = threading.Condition(lock)
        self._freed = threading.Condition(lock)

    def __len__(self) -> int:
        return sum(map(len, self._lanes))

    def reserve(self) -> bool:
        """Waits for a free place and holds it for a `put`. False: the queue is closed."""
        with self._freed:
            while not self._closed and len(self) + self._reserved >= self._bound:
                self._freed.wait()
            self._reserved += 1
            return not self._closed

    def give_back(self) -> None:
        """Frees a reserved place."""
        with self._freed:
            self._reserved -= 1
            self._freed.notify()

    def put(self, item: T, lane: Lane, caller: str = "", *, reserved: bool = False) -> bool:
        """Adds an item, to a place reserved before or a new one. False: the queue is closed."""
        with self._filled:
            self._reserved -= reserved
            if not self._closed:
                self._lanes[lane].put(item, caller)
                self._filled.notify()
            return not self._closed

    def take(self, most: int = 1) -> list[T]:
        """Removes up to `most` items, as many as there are, and waits for the first. Empty: the queue is closed."""
        with self._filled:
            while not (self._closed or any(self._lanes)):
                self._filled.wait()
            taken: list[T] = []
            for lane in self._lanes:
                while lane and len(taken) < most:
                    taken.append(lane.pop())
            self._freed.notify(len(taken))
            return taken

    def discard(self, item: T, lane: Lane, caller: str = "") -> None:
        """Removes an item, if it is still there: what nobody wants any more must not stay in memory."""
        with self._freed:
            if self._lanes[lane].discard(item, caller):
                self._freed.notify()

    def close(self) -> list[T]:
        """Ends all waiting, and returns the items that were there. Calling it again does nothing."""
        with self._filled:
            self._closed = True
            left = [item for lane in self._lanes for item in lane]
            for lane in self._lanes:
                lane.clear()
            self._filled.notify_all()
            self._freed.notify_all()
            return left
