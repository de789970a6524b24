"""Lanes: who goes first when there is more than can be done at once."""

from __future__ import annotations

import enum
import threading
from collections import OrderedDict
from typing import Generic, TypeVar

T = TypeVar("T")


class Lane(enum.IntEnum):
    """What an image is wanted for. The lower lane goes first."""

    INTERACTIVE = 0
    BULK = 1


class LaneQueue(Generic[T]):
    """A queue between threads: the oldest item of the first lane that has any goes next.

    Putting never waits. Who wants to respect the bound reserves a place first.
    """

    def __init__(self, bound: int = 0) -> None:
        """`bound`: places that can be reserved, less the items that are there."""
        # Ordered, and any item can leave at once: what nobody wants any more must not stay in memory.
        self._lanes: tuple[OrderedDict[T, None], ...] = tuple(OrderedDict() for _ in Lane)
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

    def put(self, item: T, lane: Lane, *, reserved: bool = False) -> bool:
        """Adds an item, to a place reserved before or a new one. False: the queue is closed."""
        with self._filled:
            self._reserved -= reserved
            if not self._closed:
                self._lanes[lane][item] = None
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
                    taken.append(lane.popitem(last=False)[0])
            self._freed.notify(len(taken))
            return taken

    def discard(self, item: T, lane: Lane) -> None:
        """Removes an item, if it is still there."""
        with self._freed:
            if item in self._lanes[lane]:
                del self._lanes[lane][item]
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
