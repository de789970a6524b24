"""Admission control: how much work the embedder holds at the same time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from embedder_service import metrics
from service_kit.errors import ResourceExhausted

# The share of its past that the measured time per image keeps with each image that is done.
_MEMORY = 0.98
# Bounds of the advice when to try again, in seconds.
_SOONEST, _LATEST = 0.05, 30.0
# The advice before anything has been measured, in seconds.
_UNMEASURED = 1.0


class Admission:
    """Counts the images and the bytes between admission and reply, and refuses what goes beyond.

    Bounding both keeps the wait short (images) and the memory small (bytes). Refusing at once costs a caller less than
    a wait that ends at its deadline.
    """

    def __init__(self, max_images: int, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_images = max_images
        self._max_bytes = max_bytes
        self._clock = clock
        self._images = 0
        self._bytes = 0
        self._seconds_per_image: float | None = None
        self._last_release = 0.0

    @property
    def images(self) -> int:
        """Images admitted and not answered yet."""
        return self._images

    @contextmanager
    def admit(self, images: int, size: int) -> Iterator[None]:
        """Holds places for a number of images, `size` bytes together, while the context is open.

        Raises:
            ResourceExhausted: there are not as many places; `retry_after` is when there should be.
        """
        self._check("images", self._images, images, self._max_images, images)
        self._check("bytes", self._bytes, size, self._max_bytes, images)
        if not self._images:
            self._last_release = self._clock()  # an idle time says nothing about the speed
        self._images += images
        self._bytes += size
        try:
            yield
        finally:
            self._images -= images
            self._bytes -= size
            self._measure(images)

    def _check(self, unit: str, held: int, wanted: int, limit: int, images: int) -> None:
        if held + wanted > limit:
            metrics.REJECTED.labels(unit).inc(images)
            raise ResourceExhausted(
                f"the queue is full: it holds {held} of at most {limit} {unit}, and the request brings {wanted} more; "
                "try again later or on another server",
                self._retry_after((held + wanted - limit) / max(1, held)),
            )

    def _retry_after(self, share: float) -> float:
        """Seconds until this share of what is held should be done."""
        if self._seconds_per_image is None:
            return _UNMEASURED
        return min(_LATEST, max(_SOONEST, share * self._images * self._seconds_per_image))

    def _measure(self, images: int) -> None:
        now = self._clock()
        seconds = (now - self._last_release) / images
        self._last_release = now
        kept = 0.0 if self._seconds_per_image is None else _MEMORY**images
        self._seconds_per_image = kept * (self._seconds_per_image or 0.0) + (1 - kept) * seconds
