"""Dynamic batching: while the model is busy images gather, and when it is free those whose turn it is go together."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from embedder_service import metrics
from embedder_service.jobs import QUEUE, RUN, Job
from embedder_service.lanes import LaneQueue
from embedder_service.runtimes.base import Runtime
from service_kit.errors import Broken, Internal, ServiceError, Unavailable
from service_kit.logs import log

# So many runs that failed in a row are no longer put down to the images.
_DOUBTFUL_AFTER = 3
# So many runs of the check's own, failed in a row, mean that the model is lost.
_LOST_AFTER = 3
_log = logging.getLogger(__name__)


class Batcher:
    """Runs decoded images in batches, in one thread per slot of the runtime.

    No delay is ever added: a thread that is free takes what is there, up to the largest bucket. Threads take images by
    themselves, so the model never waits for the event loop.
    """

    def __init__(
        self,
        runtime: Runtime,
        shape: tuple[int, int, int],
        *,
        ahead: int = 0,
        stall_timeout: float = 60.0,
        on_lost: Callable[[Broken], None] = lambda error: None,
    ) -> None:
        """
        Args:
            runtime: the model; stays the caller's to close.
            shape: (H, W, 3) of one image.
            ahead: places that can be reserved beyond one full batch for every slot.
            stall_timeout: seconds after which a batch that still runs counts as stuck for ever.
            on_lost: called on the event loop once the model is lost for good.
        """
        self._runtime = runtime
        self._shape = shape
        self._stall_timeout = stall_timeout
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._most = runtime.buckets[-1]
        self._waiting: LaneQueue[Job] = LaneQueue(runtime.slots * self._most + ahead)
        self._running: dict[int, tuple[float, Sequence[Job]]] = {}  # by slot: since when, and what
        self._failures_in_a_row = 0
        self._failed_checks = 0
        self._lost: Broken | None = None
        self._closing = False
        # Daemons: a run that never ends must not keep the process from ending.
        self._threads = [
            threading.Thread(target=self._work, args=[slot], name=f"run-{slot}", daemon=True)
            for slot in range(runtime.slots)
        ]
        for thread in self._threads:
            thread.start()

    async def warm_up(self) -> float:
        """Runs every bucket on every slot, so that no request pays for compilation or first allocation.

        Returns:
            seconds per image when every slot runs the largest bucket.
        """
        for bucket in (*self._runtime.buckets, self._most):
            images = [np.zeros(self._shape, np.uint8)] * bucket
            started = time.monotonic()
            await asyncio.gather(*(self._apart(images) for _ in range(self._runtime.slots)))
            seconds = time.monotonic() - started
        return seconds / (self._most * self._runtime.slots)

    def reserve(self) -> bool:
        """Waits until one more decoded image is of use, and holds its place for a `put`. False: closed. For threads."""
        return self._waiting.reserve()

    def give_back(self) -> None:
        """Frees a reserved place. For threads."""
        self._waiting.give_back()

    def put(self, job: Job, *, reserved: bool = False) -> None:
        """Takes on a job that has its pixels; it is settled some time. For threads too."""
        job.enter(QUEUE)
        if not self._waiting.put(job, job.lane, job.caller, reserved=reserved):
            job.settle(self._lost or Unavailable("the server is stopping; try another one"))

    def discard(self, job: Job) -> None:
        """Forgets a job that nobody wants any more, unless it runs already."""
        self._waiting.discard(job, job.lane, job.caller)

    async def check(self) -> None:
        """Finds out whether the model works, with a run of its own only if there is reason to doubt it.

        Raises:
            Broken: a batch is stuck, a thread has died, or the model has failed for good.
            Unavailable: the last runs all failed, and another one fails too.
        """
        if self._lost:
            raise self._lost
        now = time.monotonic()
        longest = max((now - since for since, _ in self._running.values()), default=0.0)
        if longest > self._stall_timeout:
            raise self._lose(f"a batch has been running for {longest:.0f} s: the model is stuck")
        if self._failures_in_a_row >= _DOUBTFUL_AFTER:
            await self._try_out()

    async def close(self) -> None:
        """Fails what waits, lets running batches finish, and ends the threads. Calling it again does nothing."""
        self._closing = True
        self._fail(self._waiting.close(), Unavailable("the server stopped before the image was embedded; try another"))
        if not self._lost:
            for thread in self._threads:
                await asyncio.to_thread(thread.join, self._stall_timeout)

    def _work(self, slot: int) -> None:
        try:
            while batch := self._waiting.take(self._most):
                if wanted := _wanted(batch):
                    self._occupy(slot, wanted)
        finally:
            if not self._closing:
                self._loop.call_soon_threadsafe(self._lose, "a thread of the model has died")

    def _occupy(self, slot: int, batch: Sequence[Job]) -> None:
        self._running[slot] = time.monotonic(), batch
        metrics.INFLIGHT.inc(len(batch))
        try:
            if not self._attempt(batch) and len(batch) > 1:
                # One bad image fails its whole batch; alone it fails only itself.
                for job in batch:
                    if wanted := _wanted([job]):
                        self._attempt(wanted)
        except BaseException:  # nobody waits for ever, whatever happened
            self._fail(batch, Unavailable("the image was given up; try another server"))
            raise
        finally:
            metrics.INFLIGHT.dec(len(batch))
            del self._running[slot]

    def _attempt(self, batch: Sequence[Job]) -> bool:
        """Runs a batch and settles its jobs. After a failure only a single job is settled."""
        for job in batch:
            job.enter(RUN)
        metrics.BATCH_IMAGES.observe(len(batch))
        try:
            vectors = self._forward([job.pixels for job in batch])
        except Exception:
            self._failures_in_a_row += 1
            log(_log, logging.ERROR, "the model failed", images=len(batch), failures_in_a_row=self._failures_in_a_row)
            if len(batch) == 1:
                self._fail(batch, self._failure())
            return False
        self._failures_in_a_row = 0
        for job, vector in zip(batch, vectors, strict=True):
            job.settle(vector)
        return True

    def _failure(self) -> ServiceError:
        if self._failures_in_a_row >= _DOUBTFUL_AFTER:
            return Unavailable("the model fails on every image; try another server")
        return Internal("the model failed on this image; the server's log has the details")

    def _forward(self, images: Sequence[NDArray[np.uint8] | None]) -> NDArray[np.float32]:
        """Pads, runs and unpads a batch."""
        bucket = next(size for size in self._runtime.buckets if size >= len(images))
        if bucket == 1:
            batch = np.asarray(images[0])[np.newaxis]
        else:
            batch = np.zeros((bucket, *self._shape), np.uint8)
            np.stack(images, out=batch[: len(images)])  # type: ignore[arg-type]
        vectors = self._runtime.run(batch)
        if len(vectors) != bucket:
            raise RuntimeError(f"the model gave {len(vectors)} vectors for {bucket} images")
        if not np.isfinite(vectors).all():  # stored once, it would spoil every later search
            raise RuntimeError("the model gave a vector with infinite or undefined components")
        return vectors[: len(images)]

    async def _try_out(self) -> None:
        if self._failed_checks == _LOST_AFTER:
            raise self._lose("the model fails on every image")
        self._failed_checks += 1  # unless it proves otherwise; a check that takes too long is cancelled
        try:
            await self._apart([np.zeros(self._shape, np.uint8)])
        except Exception as error:
            raise Unavailable("the model fails on every image") from error
        self._failures_in_a_row = self._failed_checks = 0

    async def _apart(self, images: Sequence[NDArray[np.uint8]]) -> None:
        """Runs images in a thread of their own, which may hang for all its caller cares."""
        done: asyncio.Future[None] = self._loop.create_future()

        def finish(error: Exception | None) -> None:
            if not done.done():
                done.set_exception(error) if error else done.set_result(None)

        def work() -> None:
            error = None
            try:
                self._forward(images)
            except Exception as caught:
                error = caught
            self._loop.call_soon_threadsafe(finish, error)

        threading.Thread(target=work, name="try-out", daemon=True).start()
        await done

    def _lose(self, reason: str) -> Broken:
        """Gives the model up for good: fails every image, now and later."""
        if not self._lost:
            self._lost = Broken(f"{reason}; try another server")
            self._closing = True
            running = [job for _, batch in self._running.values() for job in batch]
            self._fail([*self._waiting.close(), *running], self._lost)
            self._on_lost(self._lost)
        return self._lost

    @staticmethod
    def _fail(jobs: Sequence[Job], error: ServiceError) -> None:
        for job in jobs:
            job.settle(error)


def _wanted(jobs: Sequence[Job]) -> list[Job]:
    """Returns the jobs that somebody waits for, and settles the others."""
    wanted = []
    for job in jobs:
        if job.wanted():
            wanted.append(job)
        else:
            job.settle(None)
    return wanted
