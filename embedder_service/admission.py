"""Admission control: how much work the embedder holds at the same time."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from embedder_service import metrics
from embedder_service.lanes import Lane
from service_kit.errors import ResourceExhausted

# The share of its past that the measured time per image keeps with each image that is done.
_MEMORY = 0.98
# How much of the seconds allowed may be filled: the speed varies, and hardly anybody is to wait longer than they are.
_FILL = 0.85
# Bounds of the advice when to try again, in seconds.
_SOONEST, _LATEST = 0.05, 30.0
# The advice before anything has been measured, in seconds.
_UNMEASURED = 1.0


class Admission:
    """Counts the images and the bytes between admission and reply, and refuses what goes beyond.

    Images and bytes bound the memory; the seconds that the interactive images held will take, by the speed measured,
    bound how long anybody waits. Refusing at once costs a caller less than a wait that ends at its deadline. Bulk work
    gets a share of the places, so that it always leaves some.

    For use on one event loop.
    """

    def __init__(
        self,
        max_images: int,
        max_bytes: int,
        *,
        max_seconds: float = math.inf,
        bulk_share: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            max_images: images held at most.
            max_bytes: bytes of encoded images held at most.
            max_seconds: interactive images are refused while those held before them would take about so long.
            bulk_share: of images and of bytes, how much bulk work may hold; above 0, at most 1.
            clock: the time in seconds.
        """
        self._max_images = {Lane.INTERACTIVE: max_images, Lane.BULK: int(max_images * bulk_share)}
        self._max_bytes = {Lane.INTERACTIVE: max_bytes, Lane.BULK: int(max_bytes * bulk_share)}
        self._max_seconds = max_seconds
        self._clock = clock
        self._images = dict.fromkeys(Lane, 0)
        self._bytes = dict.fromkeys(Lane, 0)
        self._lines = {lane: asyncio.Lock() for lane in Lane}
        self._freed = asyncio.Event()
        self._seconds_per_image: float | None = None
        self._last_done: float | None = None

    @property
    def images(self) -> int:
        """Images admitted and not answered yet."""
        return sum(self._images.values())

    @contextmanager
    def admit(self, lane: Lane, images: int, size: int) -> Iterator[None]:
        """Holds places for a number of images, `size` bytes together, while the context is open.

        Raises:
            ResourceExhausted: there are not as many places; `retry_after` is when there should be.
        """
        if refusal := self._refusal(lane, images, size):
            reason, error = refusal
            metrics.REJECTED.labels(reason).inc(images)
            raise error
        self._images[lane] += images
        self._bytes[lane] += size
        try:
            yield
        finally:
            self._images[lane] -= images
            self._bytes[lane] -= size
            self._freed.set()

    async def wait(self, lane: Lane, images: int, size: int) -> None:
        """Waits until there are places, first come, first served; an `admit` that follows at once succeeds."""
        async with self._lines[lane]:
            while self._refusal(lane, images, size):
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

    def _refusal(self, lane: Lane, images: int, size: int) -> tuple[str, ResourceExhausted] | None:
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
        seconds = self._images[lane] * (self._seconds_per_image or 0.0)
        most = _FILL * self._max_seconds
        if lane is Lane.INTERACTIVE and seconds > most:
            return "seconds", ResourceExhausted(
                f"the queue is full: it holds work for {seconds:.1f} s, too much for the limit of "
                f"{self._max_seconds:g} s; try again later or on another server",
                self._retry_after((seconds - most) / (self._seconds_per_image or 1.0)),
            )
        return None

    def _retry_after(self, images: float) -> float:
        """Seconds until this many images should be done."""
        if self._seconds_per_image is None:
            return _UNMEASURED
        return min(_LATEST, max(_SOONEST, images * self._seconds_per_image))
