"""The way of an image through the embedder: admit, wait for its turn, decode, run.

This is the part on the event loop, on which nothing heavy runs: it knows who waits for what, and until when. The work
is done by the threads of `decoders` and `batcher`.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext

import numpy as np
from numpy.typing import NDArray
from prometheus_client import Counter

from embedder_service import metrics
from embedder_service.admission import Admission
from embedder_service.batcher import Batcher
from embedder_service.decoders import Decoders
from embedder_service.jobs import DECODE, QUEUE, RUN, Job, Outcome, Vector, Waiter
from embedder_service.lanes import Lane
from service_kit import sharing, tracing
from service_kit.errors import DeadlineExceeded, InvalidArgument, ServiceError

__all__ = ["Lane", "Pipeline", "Stages", "Vector"]

_FAILED = metrics.IMAGES.labels("failed")
_OUTCOMES: dict[type[BaseException] | None, Counter] = {
    None: metrics.IMAGES.labels("ok"),
    InvalidArgument: metrics.IMAGES.labels("invalid"),
    DeadlineExceeded: metrics.IMAGES.labels("expired"),
    asyncio.CancelledError: metrics.IMAGES.labels("cancelled"),
}
_SECONDS = {stage: metrics.STAGE.labels(stage) for stage in ("admit", QUEUE, DECODE, RUN, "total")}
Stages = dict[str, float]
"""Seconds that a call spent in admit, queue, decode and run, and in all (total); of many images, the last one's."""


class Pipeline:
    """Embeds encoded images. For use on one event loop.

    Deadlines are times of time.monotonic(), in seconds; None is none. Cancelling a call drops what has not run yet.
    """

    def __init__(
        self,
        admission: Admission,
        decode: Callable[[bytes], NDArray[np.uint8]],
        batcher: Batcher,
        *,
        decode_threads: int,
        max_image_bytes: int,
    ) -> None:
        """
        Args:
            admission: bounds what is in progress.
            decode: image file -> uint8 [H, W, 3]; raises InvalidArgument; called from several threads.
            batcher: runs the model; the pipeline closes it.
            decode_threads: images decoded at the same time.
            max_image_bytes: largest encoded image accepted.
        """
        self._admission = admission
        self._batcher = batcher
        self._decoders = Decoders(decode, batcher, decode_threads)
        self._max_image_bytes = max_image_bytes
        # Not settled, and wanted by somebody. By the image itself: nothing else tells for certain that two are equal.
        # Each lane and caller has its own: nobody in a hurry waits for bulk work, and nobody in another one's line.
        self._jobs: dict[tuple[Lane, str, bytes], Job] = {}
        self._loop = asyncio.get_running_loop()
        metrics.QUEUE_DEPTH.set_function(lambda: admission.images)

    async def embed(
        self,
        image: bytes,
        lane: Lane = Lane.INTERACTIVE,
        deadline: float | None = None,
        *,
        admitted: bool = False,
        stages: Stages | None = None,
    ) -> Vector:
        """Embeds one image file.

        Args:
            admitted: the caller holds a `place` for it.
            stages: filled in, also on errors.

        Returns:
            float32 [D], of L2 norm 1. Not to be changed: others may have got the same one.

        Raises:
            InvalidArgument: the bytes are no image, are damaged, or exceed a limit.
            ResourceExhausted: the queue is full, or too long for the deadline.
            DeadlineExceeded: the deadline passed first.
            Internal: the model failed on this image.
            Unavailable: the model fails on every image, or the server is stopping.
        """
        with nullcontext() if admitted else self._admitted(lane, [image], deadline, stages):
            (outcome,) = await self._outcomes([image], lane, deadline, stages)
        if isinstance(outcome, ServiceError):
            raise outcome
        return outcome

    async def embed_many(
        self,
        images: Sequence[bytes],
        lane: Lane = Lane.BULK,
        deadline: float | None = None,
        *,
        stages: Stages | None = None,
    ) -> list[Outcome]:
        """Embeds at least one image file; an image that fails does so alone.

        Returns:
            for each image, in order: float32 [D], or one of the errors of `embed`.

        Raises:
            ResourceExhausted: the queue has no room for all of them; none is embedded.
        """
        with self._admitted(lane, images, deadline, stages):
            return await self._outcomes(images, lane, deadline, stages)

    async def place(self, lane: Lane, size: int, deadline: float | None = None) -> ExitStack:
        """Waits until there is room for an image of `size` bytes, and holds it until the returned context is closed.

        Raises:
            DeadlineExceeded: the deadline passed first.
        """
        began = time.monotonic()
        try:
            async with asyncio.timeout_at(deadline):
                await self._admission.wait(lane, 1, size)
        except TimeoutError:
            metrics.EXPIRED.labels("admit").inc()
            raise DeadlineExceeded("the deadline passed before the server had room for the image") from None
        place = ExitStack()
        place.enter_context(self._admission.admit(lane, 1, size))
        _SECONDS["admit"].observe(time.monotonic() - began)
        return place

    async def warm_up(self) -> None:
        """Makes the first request as fast as the later ones."""
        self._admission.expect(await self._batcher.warm_up())

    async def check(self) -> None:
        """Finds out whether images can be embedded now.

        Raises:
            Broken: the model is lost for good.
            Unavailable: the model fails on every image.
        """
        await self._batcher.check()

    async def close(self) -> None:
        """Ends the threads; images that still wait fail as Unavailable. Calling it again does nothing."""
        await self._batcher.close()
        await asyncio.to_thread(self._decoders.close)

    @contextmanager
    def _admitted(
        self, lane: Lane, images: Sequence[bytes], deadline: float | None, stages: Stages | None
    ) -> Iterator[None]:
        began = time.monotonic()
        with self._admission.admit(lane, len(images), sum(map(len, images)), deadline):
            seconds = time.monotonic() - began
            _SECONDS["admit"].observe(seconds)
            if stages is not None:
                stages["admit"] = seconds
            yield

    async def _outcomes(
        self, images: Sequence[bytes], lane: Lane, deadline: float | None, stages: Stages | None
    ) -> list[Outcome]:
        began = time.monotonic()
        waiters: list[Waiter] = []
        try:
            for image in images:
                metrics.IMAGE_SIZE.observe(len(image))
                waiter = Waiter(self._loop.create_future(), deadline)
                waiters.append(waiter)
                self._submit(image, lane, waiter)
            return [await waiter.outcome() for waiter in waiters]
        finally:
            seconds = time.monotonic() - began
            if stages is not None:
                stages["total"] = stages.get("admit", 0.0) + seconds
            if stages is not None or tracing.on():
                _tell(waiters, stages)
            for waiter in waiters:
                _SECONDS["total"].observe(seconds)
                self._leave(waiter)

    def _submit(self, image: bytes, lane: Lane, waiter: Waiter) -> None:
        """Makes somebody wait for an image: for the job that embeds the same one already, or else for a new one."""
        if len(image) > self._max_image_bytes:
            waiter.answer(
                InvalidArgument(
                    f"the image has {len(image)} bytes, above the limit of {self._max_image_bytes}; send it scaled down"
                )
            )
        elif not waiter.waits(time.monotonic()):
            metrics.EXPIRED.labels("admit").inc()
            waiter.expire()
        else:
            key = (lane, sharing.caller(), image)
            job = self._jobs.get(key)
            if job is not None:
                metrics.DEDUPLICATED.inc()
                waiter.join(job)
            else:
                job = self._jobs[key] = Job(*key, self._loop, self._settled)
                waiter.join(job)
                self._decoders.put(job)

    def _settled(self, job: Job, outcome: Outcome | None) -> None:
        """A thread is done with a job."""
        if outcome is None:
            for waiter in job.waiters:
                if not waiter.waits(time.monotonic()):  # its timer is late
                    waiter.expire()
            if job.wanted():  # somebody has joined meanwhile
                self._decoders.put(job)
            return
        self._forget(job)
        if job.stage == RUN:
            self._admission.done(more=self._decoders.waiting > 0)
        job.settled_at = time.monotonic()
        seconds = job.seconds()
        metrics.QUEUE_WAIT.observe(seconds[QUEUE])
        for stage, spent in seconds.items():
            _SECONDS[stage].observe(spent)
        for waiter in job.waiters:
            waiter.answer(outcome)

    def _leave(self, waiter: Waiter) -> None:
        """Counts what became of an image. What nobody waits for any more is not worked on."""
        _OUTCOMES.get(waiter.leave(), _FAILED).inc()
        job = waiter.job
        if job and not job.waiters and self._jobs.get(_key(job)) is job:
            self._forget(job)
            metrics.EXPIRED.labels(job.stage).inc()
            self._decoders.discard(job)
            self._batcher.discard(job)

    def _forget(self, job: Job) -> None:
        """The next image like this one is a new job."""
        if self._jobs.get(_key(job)) is job:
            del self._jobs[_key(job)]


def _key(job: Job) -> tuple[Lane, str, bytes]:
    return job.lane, job.caller, job.image


def _tell(waiters: Sequence[Waiter], stages: Stages | None) -> None:
    """Notes the stages of the image that was done last, also as parts of the call's trace."""
    if jobs := [waiter.job for waiter in waiters if waiter.job]:
        last = max(jobs, key=lambda job: job.settled_at or math.inf)
        for stage, began, ended in last.timeline():
            tracing.record(stage, began, ended)
            if stages is not None:
                stages[stage] = stages.get(stage, 0.0) + ended - began
