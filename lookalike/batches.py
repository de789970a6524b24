"""Many items in calls that a service takes: neither too many of them in one, nor too large."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Generic, TypeAlias, TypeVar

import grpc

from lookalike.channel import MAX_MESSAGE_BYTES
from lookalike.errors import LookalikeError

Q = TypeVar("Q")
R = TypeVar("R")
Batch: TypeAlias = list[Q | LookalikeError]

IN_FLIGHT = 2  # batches: one is on its way while the service works on the other
_MOST_ITEMS = 64
_MOST_BYTES = 16 << 20


class Batches(Generic[Q]):
    """Collects items into batches. One that is too large for the service is its error instead, in its place.

    Args:
        items: the most that a call may have.
        message_bytes: the most that a message may have.
        image_bytes: the most that an image may have.
    """

    def __init__(self, items: int, message_bytes: int, image_bytes: int) -> None:
        message_bytes = min(message_bytes, MAX_MESSAGE_BYTES)
        self._most = min(items, _MOST_ITEMS)
        # Half of a message: there is more in it than the content.
        self._most_bytes = min(message_bytes // 2, _MOST_BYTES)
        self._image_bytes = min(image_bytes, message_bytes - (1 << 10))
        self._batch: Batch[Q] = []
        self._bytes = 0

    def add(self, item: Q, size: int) -> Batch[Q] | None:
        """Takes an item with content of `size` bytes; returns the batch before it, if it has no place in that."""
        fault = None
        if size > self._image_bytes:
            message = f"the image has {size:,} bytes; the service takes {self._image_bytes:,} at most"
            fault, size = LookalikeError(grpc.StatusCode.INVALID_ARGUMENT, message), 0
        full = self._batch and (len(self._batch) >= self._most or self._bytes + size > self._most_bytes)
        before = self.rest() if full else None
        self._batch.append(fault or item)
        self._bytes += size
        return before

    def rest(self) -> Batch[Q]:
        """Returns the batch begun, which may be empty, and begins another."""
        batch, self._batch, self._bytes = self._batch, [], 0
        return batch


def sendable(batch: Batch[Q]) -> list[Q]:
    """Returns what of a batch can be sent."""
    return [item for item in batch if not isinstance(item, LookalikeError)]


def merged(batch: Batch[Q], results: Iterable[R]) -> Iterator[R | LookalikeError]:
    """Yields the result of each item of a batch: its own, or of those that were sent the next one."""
    remaining = iter(results)
    for item in batch:
        yield item if isinstance(item, LookalikeError) else next(remaining)


def is_too_much(error: LookalikeError) -> bool:
    """Whether a call failed because its reply has no place in a message: fewer items may pass, the same ones never."""
    return error.code is grpc.StatusCode.RESOURCE_EXHAUSTED and error.retry_after is None
