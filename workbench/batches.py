"""Reads images ahead in threads, into batches for one call each."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from lookalike import Item, JsonValue
from lookalike.search.v1 import search_pb2 as pb
from lookalike.values import to_fields
from workbench.destinations import Limits
from workbench.inputs.found import Found, Unreadable

# Read, and not acknowledged. A call has its images three times: here, in its message, and in what is sent of that.
_HELD_BYTES = 36 << 20
_BATCH_BYTES = 4 << 20
# Those of a message nest about three times as deep, which may be 100.
_MAX_DEPTH = 16


@dataclass(frozen=True)
class Failure:
    """An image that is not stored, and why."""

    id: str
    reason: str
    source: str = ""


@dataclass(slots=True)
class Batch:
    """Images for one call, and those that could not be read; `size` is about the bytes of the call."""

    items: list[Item] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    size: int = 0

    def __len__(self) -> int:
        return len(self.items) + len(self.failures)


@dataclass(frozen=True, slots=True)
class _Read:
    item: Item
    size: int


class Batches:
    """Makes batches of images; threads may share it."""

    def __init__(self, images: Iterator[Found], limits: Limits, most: int) -> None:
        """
        Args:
            images: what to read; asked by one thread at a time.
            limits: of the service: an image beyond them fails, a batch is not made beyond them.
            most: images of a batch.
        """
        self._images = images
        self._limits = limits
        self._most = min(most, limits.max_items)
        self._most_bytes = min(limits.max_message_bytes // 2, _BATCH_BYTES)
        self._lock = threading.Lock()
        self._left: deque[Found | _Read] = deque()  # taken, and for the next batch
        self._stopped = False

    def stop(self) -> None:
        """Takes no further images. Those taken already still come."""
        self._stopped = True

    def next(self) -> Batch | None:
        """Returns the next batch, never an empty one; None after the last."""
        batch = Batch()
        taken = deque(self._take(batch))
        while taken:
            read = _read(taken.popleft(), self._limits)
            if isinstance(read, Failure):
                batch.failures.append(read)
            elif not self._add(batch, read):
                with self._lock:
                    self._left.extendleft([*reversed(taken), read])
                break
        return batch if len(batch) else None

    def _take(self, batch: Batch) -> list[Found]:
        """Takes images for a batch; reads those that have to be read now."""
        taken: list[Found] = []
        with self._lock:
            while len(batch) + len(taken) < self._most:
                found = self._left.popleft() if self._left else None if self._stopped else next(self._images, None)
                if found is None:
                    break
                if isinstance(found, Found) and not found.at_once:
                    taken.append(found)
                    continue
                read = _read(found, self._limits) if isinstance(found, Found) else found
                if isinstance(read, Failure):
                    batch.failures.append(read)
                elif not self._add(batch, read):
                    self._left.appendleft(read)
                    break
        return taken

    def _add(self, batch: Batch, read: _Read) -> bool:
        """Adds an image if there is room for it."""
        if batch.items and batch.size + read.size > self._most_bytes:
            return False
        batch.items.append(read.item)
        batch.size += read.size
        return True


class Prefetch:
    """Batches that threads read ahead for as long as the context lasts: so many at a time, and so many bytes."""

    def __init__(self, batches: Batches, *, threads: int, most: int) -> None:
        """
        Args:
            batches: where they come from.
            threads: how many read.
            most: batches that are held, from the moment that reading one begins until it is released.
        """
        self._batches = batches
        self._reading = threads
        self._most = most
        self._held = 0
        self._held_bytes = 0
        self._unread = 0  # batches that are held and being read
        self._largest = 0  # in bytes: what another one may take
        self._room = threading.Condition()
        self._closed = False
        # No executor: at the end those are waited for, however long a read from a terminal or a network takes.
        self._threads = [threading.Thread(target=self._run, name="reader", daemon=True) for _ in range(threads)]
        self._ready: asyncio.Queue[Batch | Exception | None] = asyncio.Queue()  # bounded by what is held

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        for thread in self._threads:
            thread.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._batches.stop()
        with self._room:
            self._closed = True
            self._room.notify_all()

    async def get(self) -> Batch | None:
        """Returns the next batch, to be released; None after the last, to everyone who asks.

        Raises:
            Exception: what finding the images raised.
        """
        batch = await self._ready.get()
        if batch is None or isinstance(batch, Exception):
            self._ready.put_nowait(batch)  # for the others
        if isinstance(batch, Exception):
            raise batch
        return batch

    def release(self, batch: Batch) -> None:
        """Makes room: the batch is done."""
        with self._room:
            self._held -= 1
            self._held_bytes -= batch.size
            self._room.notify()

    def _run(self) -> None:
        try:
            while self._wait_for_room():
                try:
                    batch = self._batches.next()
                except Exception as error:
                    self._hand_over(error)
                    return
                if batch is None:
                    break
                with self._room:
                    self._unread -= 1
                    self._held_bytes += batch.size
                    self._largest = max(self._largest, batch.size)
                    self._room.notify()
                self._hand_over(batch)
            with self._room:
                self._held -= 1
                self._unread -= 1
                self._room.notify()
                self._reading -= 1
                last = not self._reading
            if last:
                self._hand_over(None)
        except RuntimeError:  # the loop was closed meanwhile: nobody waits any more
            return

    def _wait_for_room(self) -> bool:
        with self._room:
            self._room.wait_for(lambda: self._closed or self._has_room())
            self._held += 1
            self._unread += 1
            return not self._closed

    def _has_room(self) -> bool:
        expected = self._held_bytes + (self._unread + 1) * self._largest
        return not self._held or (self._held < self._most and expected < _HELD_BYTES)

    def _hand_over(self, batch: Batch | Exception | None) -> None:
        self._loop.call_soon_threadsafe(self._ready.put_nowait, batch)


def _read(found: Found, limits: Limits) -> _Read | Failure:
    """Reads an image, and makes sure that it can be put into a message."""
    most = limits.max_image_bytes
    try:
        size = check_row(found)
        if found.size is not None and found.size > most:  # do not read it
            raise Unreadable(f"has {found.size:,} bytes; the service takes {most:,} at most")
        image = found.read(most + 1)
        if len(image) > most:
            raise Unreadable(f"has more than the {most:,} bytes that the service takes at most")
        size += len(image)
        if size > limits.max_message_bytes // 2:
            raise Unreadable(f"has {size:,} bytes with its attributes, more than fit into a message")
    except Unreadable as error:
        return Failure(found.id, str(error), found.source)
    return _Read(Item(found.id, image=image, attributes=found.attributes, source=found.source), size)


def check_row(found: Found) -> int:
    """Checks what a row consists of beside its image; returns about how many bytes that takes in a message.

    Raises:
        Unreadable: it cannot be stored.
    """
    for what, text in (("id", found.id), ("source", found.source)):
        _check_text(what, text)
    size = len(found.id) + len(found.source)
    for name, value in found.attributes.items():
        try:
            _check_text("name", name)
            _check_depth(value)
            size += len(name) + pb.MapValue(fields=to_fields({name: value})).ByteSize()
        except (ValueError, TypeError) as error:
            raise Unreadable(f"attribute {name!r}: {_reason(error)}") from None
    return size


def _check_text(what: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Unreadable(f"its {what} {text!r} is not UTF-8: rename it") from None


def _check_depth(value: JsonValue, depth: int = 0) -> None:
    if depth > _MAX_DEPTH:
        raise ValueError(f"is nested more than {_MAX_DEPTH} deep")
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            _check_depth(each, depth + 1)


def _reason(error: ValueError | TypeError) -> str:
    return "is not valid Unicode" if isinstance(error, UnicodeError) else str(error)
