"""Admission control: how much work the embedder holds at the same time."""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from weakref import WeakValueDictionary

from embedder_service import metrics
from embedder_service.lanes import Lane
from service_kit import sharing
from service_kit.errors import ResourceExhausted

# The share of its past that the measured time per image keeps with each image that is done.
_MEMORY = 0.98
# How much of the seconds allowed may be filled: the speed varies, and hardly anybody is to wait longer than they are.
_FILL = 0.85
# Bounds of the advice when to try again, in seconds.
_SOONEST, _LATEST = 0.05, 30.0
# The advice before anything has been measured, in seconds.
_UNMEASURED = 1.0
# How long who was refused counts as one who waits, and how many of them are remembered.
_REFUSED_SECONDS = 10.0
_MOST_REFUSED = 1_000


@dataclass(slots=True)
class _Held:
    """What one caller holds."""

    images: dict[Lane, int] = field(default_factory=lambda: dict.fromkeys(Lane, 0))
    size: int = 0  # in bytes


class Admission:
    """Counts the images and the bytes between admission and reply, and refuses what goes beyond.

    Images and bytes bound the memory; the seconds that the interactive images held will take, by the speed measured,
    bound how long anybody waits: no longer than allowed, nor than his deadline leaves him. Refusing at once costs a
    caller less than a wait that ends at its deadline, and nobody else the work that comes too late. Bulk work
    gets a share of the places, so that it always leaves some, and so does a caller while there are others: those that
    hold places, or were refused in the last seconds.

    For use on one event loop.
    """

    def __init__(
        self,
        max_images: int,
        max_bytes: int,
        *,
        max_seconds: float = math.inf,
        bulk_share: float = 1.0,
        caller_share: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            max_images: images held at most.
            max_bytes: bytes of encoded images held at most.
            max_seconds: interactive images are refused while those held before them would take about so long.
            bulk_share: of images and of bytes, how much bulk work may hold; above 0, at most 1.
            caller_share: the same for one caller while there are others; with nothing held, it may bring any request.
            clock: the time in seconds, that of deadlines.
        """
        self._max_images = {Lane.INTERACTIVE: max_images, Lane.BULK: int(max_images * bulk_share)}
        self._max_bytes = {Lane.INTERACTIVE: max_bytes, Lane.BULK: int(max_bytes * bulk_share)}
        self._caller_images, self._caller_bytes = int(max_images * caller_share), int(max_bytes * caller_share)
        self._max_seconds = max_seconds
        self._clock = clock
        self._images = dict.fromkeys(Lane, 0)
        self._bytes = dict.fromkeys(Lane, 0)
        self._held: dict[str, _Held] = {}  # by caller
        self._refused: OrderedDict[str, float] = OrderedDict()  # when a caller was refused last, the latest at the end
        self._lines: WeakValueDictionary[tuple[Lane, str], asyncio.Lock] = WeakValueDictionary()
        self._freed = asyncio.Event()
        self._seconds_per_image: float | None = None
        self._last_done: float | None = None

    @property
    def images(self) -> int:
        """Images admitted and not answered yet."""
        return sum(self._images.values())

    @contextmanager
    def admit(self, lane: Lane, images: int, size: int, deadline: float | None = None) -> Iterator[None]:
        """Holds places for a number of images, `size` bytes together, while the context is open.

        Args:
            deadline: when nobody waits for interactive images any more.

        Raises:
            ResourceExhausted: there are not as many places; `retry_after` is when there should be.
        """
        caller = sharing.caller()
        if refusal := self._refusal(caller, lane, images, size, deadline):
            reason, error = refusal
            metrics.REJECTED.labels(reason).inc(images)
            self._note_refused(caller)
            raise error
        held = self._held.setdefault(caller, _Held())
        self._images[lane] += images
        self._bytes[lane] += size
        held.images[lane] += images
        held.size += size
        try:
            yield
        finally:
            self._images[lane] -= images
            self._bytes[lane] -= size
            held.images[lane] -= images
            held.size -= size
            if not any(held.images.values()):
                del self._held[caller]
            self._freed.set()

    async def wait(self, lane: Lane, images: int, size: int) -> None:
        """Waits until there are places, a caller's in their order; an `admit` that follows at once succeeds."""
        caller = sharing.caller()
        async with self._lines.setdefault((lane, caller), asyncio.Lock()):
            while self._refusal(caller, lane, images, size):
                self._note_refused(caller)
                self._freed.clear()
                await self._freed.wait()

    def expect(self, seconds_per_image: float) -> None:
        """Sets the speed to go by until there is a measured one."""
        self._seconds_per_image = seconds_per_image

    def done(self, *, more: bool) -> None:
        """Measures the speed: an image has been embedded, and there are or are not more waiting for the model."""
        now = self._clock()
        if self._last_done is not None:
            seconds = now - self._last_done
            known = self._seconds_per_image
            self._seconds_per_image = seconds if known is None else _MEMORY * known + (1 - _MEMORY) * seconds
        self._last_done = now if more else None  # an idle time says nothing about the speed

    def _refusal(
        self, caller: str, lane: Lane, images: int, size: int, deadline: float | None = None
    ) -> tuple[str, ResourceExhausted] | None:
        """Why these images cannot be taken now: the limit that is reached, and the error that says so."""
        held_bytes = sum(self._bytes.values())
        for unit, held, wanted, limit in (
            ("images", self.images, images, self._max_images[Lane.INTERACTIVE]),
            ("images", self._images[lane], images, self._max_images[lane]),
            ("bytes", held_bytes, size, self._max_bytes[Lane.INTERACTIVE]),
            ("bytes", self._bytes[lane], size, self._max_bytes[lane]),
        ):
            if held + wanted > limit:
                return unit, ResourceExhausted(
                    f"the queue is full: it holds {held} of at most {limit} {unit}, and the request brings {wanted} "
                    "more; try again later or on another server",
                    self._retry_after(self.images * (held + wanted - limit) / max(1, held)),
                )
        own = self._held.get(caller)
        if own and self._others(caller):
            for unit, held, wanted, limit in (
                ("images", sum(own.images.values()), images, self._caller_images),
                ("bytes", own.size, size, self._caller_bytes),
            ):
                if held + wanted > limit:
                    return "share", ResourceExhausted(
                        f"the queue is shared: you hold {held} of at most {limit} {unit} while others wait, and the "
                        f"request brings {wanted} more; try again later or on another server",
                        self._retry_after(len(self._held) * self.images * (held + wanted - limit) / max(1, held)),
                    )
        if lane is Lane.INTERACTIVE:
            return self._too_late(self._ahead(caller, lane) * (self._seconds_per_image or 0.0), deadline)
        return None

    def _too_late(self, seconds: float, deadline: float | None) -> tuple[str, ResourceExhausted] | None:
        """As `_refusal`, of what has work for so many seconds before it."""
        left = math.inf if deadline is None else max(0.0, deadline - self._clock())
        if seconds <= (most := _FILL * min(self._max_seconds, left)):
            return None
        if left < self._max_seconds:
            reason, bound = "deadline", f"the {left:.1f} s that your deadline leaves"
        else:
            reason, bound = "seconds", f"the limit of {self._max_seconds:g} s"
        return reason, ResourceExhausted(
            f"the queue is full: it holds work for {seconds:.1f} s, too much for {bound}; try again later or on "
            "another server",
            self._retry_after((seconds - most) / (self._seconds_per_image or 1.0)),
        )

    def _ahead(self, caller: str, lane: Lane) -> int:
        """Images of this lane that go before the next one of a caller, as callers take turns."""
        own = self._held[caller].images[lane] if caller in self._held else 0
        return own + sum(min(held.images[lane], own + 1) for name, held in self._held.items() if name != caller)

    def _others(self, caller: str) -> bool:
        """Whether there are other callers than this one."""
        while self._refused and next(iter(self._refused.values())) < self._clock() - _REFUSED_SECONDS:
            self._refused.popitem(last=False)
        return any(name != caller for name in chain(self._held, self._refused))

    def _note_refused(self, caller: str) -> None:
        self._refused.pop(caller, None)
        self._refused[caller] = self._clock()
        if len(self._refused) > _MOST_REFUSED:
            self._refused.popitem(last=False)

    def _retry_after(self, images: float) -> float:
        """Seconds until this many images should be done."""
        if self._seconds_per_image is None:
            return _UNMEASURED
        return min(_LATEST, max(_SOONEST, images * self._seconds_per_image))
