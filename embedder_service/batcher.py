"""Dynamic batching: while the model is busy requests gather, and when it is free the oldest go together."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from embedder_service import metrics
from embedder_service.runtimes.base import Runtime
from service_kit.errors import DeadlineExceeded, Internal, ServiceError, Unavailable
from service_kit.logs import log

# So many runs that failed in a row are no longer put down to the images.
_BROKEN_AFTER = 3
_QUEUED = metrics.STAGE.labels("queue")
_RAN = metrics.STAGE.labels("run")
_log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class _Entry:
    """An image that waits, with the channel for its reply. Times are those of the event loop, in seconds."""

    pixels: NDArray[np.uint8]
    deadline: float | None
    queued_at: float
    reply: asyncio.Future[NDArray[np.float32]]

    def fail(self, error: ServiceError) -> None:
        if not self.reply.done():
            self.reply.set_exception(error)

    def expire(self) -> None:
        self.fail(DeadlineExceeded("the deadline passed before the model had embedded the image"))

    def wanted(self, now: float) -> bool:
        """Whether somebody still waits for this. The deadline's timer may be late when the loop is busy."""
        if self.deadline is not None and self.deadline <= now:
            self.expire()
        return not self.reply.done()


class Batcher:
    """Runs single images in batches. For use on one event loop; the model runs in one thread per slot.

    No delay is ever added: an image that finds a free slot runs at once.
    """

    def __init__(self, runtime: Runtime, shape: tuple[int, int, int], *, stall_timeout: float = 60.0) -> None:
        """
        Args:
            runtime: the model; stays the caller's to close.
            shape: (H, W, 3) of one image.
            stall_timeout: seconds after which a batch that still runs counts as stuck.
        """
        self._runtime = runtime
        self._shape = shape
        self._stall_timeout = stall_timeout
        self._threads = ThreadPoolExecutor(runtime.slots, thread_name_prefix="run")
        self._waiting: OrderedDict[_Entry, None] = OrderedDict()  # oldest first, and any can leave
        self._running: dict[asyncio.Task[None], float] = {}
        self._failures_in_a_row = 0
        self._closed = False

    async def warm_up(self) -> None:
        """Runs every bucket on every slot, so that no request pays for compilation or first allocation."""
        loop = asyncio.get_running_loop()
        for bucket in self._runtime.buckets:
            batch = np.zeros((bucket, *self._shape), np.uint8)
            await asyncio.gather(
                *(loop.run_in_executor(self._threads, self._runtime.run, batch) for _ in range(self._runtime.slots))
            )

    async def embed(self, pixels: NDArray[np.uint8], deadline: float | None = None) -> NDArray[np.float32]:
        """Embeds one image. Cancelling the call takes the image out of the queue.

        Args:
            pixels: uint8 [H, W, 3].
            deadline: time of the event loop, in seconds, after which the result is of no use.

        Returns:
            float32 [D].

        Raises:
            DeadlineExceeded: the deadline passed first; raised when it passes, whatever the model does.
            Internal: the model failed on this image.
            Unavailable: the model fails on every image, or the batcher is closed.
        """
        if self._closed:
            raise Unavailable("the server is stopping; try another one")
        loop = asyncio.get_running_loop()
        entry = _Entry(pixels, deadline, loop.time(), loop.create_future())
        timer = None if deadline is None else loop.call_at(deadline, entry.expire)
        self._waiting[entry] = None
        self._dispatch()
        try:
            return await entry.reply
        finally:
            self._waiting.pop(entry, None)  # it is still there if the wait ended early
            if timer:
                timer.cancel()

    async def check(self) -> None:
        """Finds out whether the model works, with a run of its own only if there is reason to doubt it.

        Raises:
            Unavailable: a batch is stuck, or the last runs all failed and another one fails too.
        """
        now = asyncio.get_running_loop().time()
        longest = max((now - started for started in self._running.values()), default=0.0)
        if longest > self._stall_timeout:
            raise Unavailable(f"a batch has been running for {longest:.0f} s; the model is stuck")
        if self._failures_in_a_row >= _BROKEN_AFTER:
            await self.embed(np.zeros(self._shape, np.uint8))  # success counts as recovery

    async def close(self) -> None:
        """Fails what waits, lets running batches finish, and ends the threads. Calling it again does nothing."""
        self._closed = True
        for entry in self._waiting:
            entry.fail(Unavailable("the server stopped before the image was embedded; try another one"))
        self._waiting.clear()
        if self._running:
            await asyncio.wait(self._running)
        self._threads.shutdown()

    def _dispatch(self) -> None:
        loop = asyncio.get_running_loop()
        while len(self._running) < self._runtime.slots and (batch := self._take(loop.time())):
            task = loop.create_task(self._run(batch))
            self._running[task] = loop.time()
            metrics.INFLIGHT.inc(len(batch))
            task.add_done_callback(partial(self._finished, batch))

    def _take(self, now: float) -> list[_Entry]:
        batch: list[_Entry] = []
        while self._waiting and len(batch) < self._runtime.buckets[-1]:
            entry, _ = self._waiting.popitem(last=False)
            if entry.wanted(now):
                batch.append(entry)
        return batch

    def _finished(self, batch: Sequence[_Entry], task: asyncio.Task[None]) -> None:
        """Frees the slot. No caller waits for ever, whatever went wrong in the task."""
        del self._running[task]
        metrics.INFLIGHT.dec(len(batch))
        for entry in batch:
            entry.fail(Unavailable("the image was given up; try another server"))
        self._dispatch()

    async def _run(self, batch: Sequence[_Entry]) -> None:
        loop = asyncio.get_running_loop()
        for entry in batch:
            waited = loop.time() - entry.queued_at
            metrics.QUEUE_WAIT.observe(waited)
            _QUEUED.observe(waited)
        if not await self._attempt(batch) and len(batch) > 1:
            # One bad image fails its whole batch; alone it fails only itself.
            for entry in batch:
                if entry.wanted(loop.time()):
                    await self._attempt([entry])

    async def _attempt(self, batch: Sequence[_Entry]) -> bool:
        """Runs a batch and answers its entries. After a failure only a single entry is answered."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        metrics.BATCH_IMAGES.observe(len(batch))
        try:
            vectors = await loop.run_in_executor(self._threads, self._forward, [entry.pixels for entry in batch])
        except Exception:
            self._failures_in_a_row += 1
            log(_log, logging.ERROR, "the model failed", images=len(batch), failures_in_a_row=self._failures_in_a_row)
            if len(batch) == 1:
                batch[0].fail(self._failure())
            return False
        self._failures_in_a_row = 0
        seconds = loop.time() - started
        for entry, vector in zip(batch, vectors, strict=True):
            _RAN.observe(seconds)
            if not entry.reply.done():
                entry.reply.set_result(vector)
        return True

    def _failure(self) -> ServiceError:
        if self._failures_in_a_row >= _BROKEN_AFTER:
            return Unavailable("the model fails on every image; try another server")
        return Internal("the model failed on this image; the server's log has the details")

    def _forward(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Pads, runs and unpads a batch. On a worker thread: copying pixels is nothing for the event loop."""
        bucket = next(size for size in self._runtime.buckets if size >= len(images))
        batch = np.zeros((bucket, *self._shape), np.uint8)
        np.stack(images, out=batch[: len(images)])
        vectors = self._runtime.run(batch)
        if len(vectors) != bucket:
            raise RuntimeError(f"the model gave {len(vectors)} vectors for {bucket} images")
        if not np.isfinite(vectors).all():  # stored once, it would spoil every later search
            raise RuntimeError("the model gave a vector with infinite or undefined components")
        return vectors[: len(images)]
