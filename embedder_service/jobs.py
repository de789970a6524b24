"""An image on its way through the embedder, and those who wait for its vector."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from embedder_service.lanes import Lane
from service_kit.errors import DeadlineExceeded, ServiceError

Vector = NDArray[np.float32]
Outcome = Vector | ServiceError

# What an image is doing. It is in QUEUE twice: for a decoder, and then for the model.
QUEUE, DECODE, RUN = "queue", "decode", "run"


@dataclass(eq=False, slots=True)
class Job:
    """One image to embed. Belongs to an event loop; what is for threads too says so."""

    lane: Lane
    caller: str
    image: bytes
    loop: asyncio.AbstractEventLoop
    on_settled: Callable[[Job, Outcome | None], None]  # called on the loop
    waiters: list[Waiter] = field(default_factory=list)
    pixels: NDArray[np.uint8] | None = None  # once decoded
    stages: list[tuple[str, float]] = field(default_factory=list)  # those entered so far, and when
    settled_at: float | None = None

    def enter(self, stage: str) -> None:
        """Begins a stage, which ends the one before. For threads too."""
        self.stages.append((stage, time.monotonic()))

    @property
    def stage(self) -> str:
        """The stage it is in."""
        return self.stages[-1][0]

    def timeline(self) -> list[tuple[str, float, float]]:
        """Returns each stage with its beginning and its end; one that has not ended ends now."""
        ends = [began for _, began in self.stages[1:]] + [self.settled_at or time.monotonic()]
        return [(stage, began, ended) for (stage, began), ended in zip(self.stages, ends, strict=True)]

    def seconds(self) -> dict[str, float]:
        """Returns how long each stage took."""
        spent: dict[str, float] = {}
        for stage, began, ended in self.timeline():
            spent[stage] = spent.get(stage, 0.0) + ended - began
        return spent

    def wanted(self) -> bool:
        """Whether anybody still waits for it. For threads too."""
        now = time.monotonic()
        return any(waiter.waits(now) for waiter in self.waiters)

    def settle(self, outcome: Outcome | None) -> None:
        """Ends the work on it, with None because nobody seems to wait any more. For threads too."""
        self.loop.call_soon_threadsafe(self.on_settled, self, outcome)


@dataclass(eq=False, slots=True)
class Waiter:
    """Somebody who waits for the vector of a job, until a time of time.monotonic() if there is a deadline."""

    reply: asyncio.Future[Vector]
    deadline: float | None
    job: Job | None = None
    timer: asyncio.TimerHandle | None = None

    def join(self, job: Job) -> None:
        """Begins to wait."""
        self.job = job
        job.waiters.append(self)
        if self.deadline is not None:
            self.timer = job.loop.call_at(self.deadline, self.expire)

    def waits(self, now: float) -> bool:
        """Whether it waits still. The timer of the deadline may be late, when the event loop is busy."""
        return not self.reply.done() and (self.deadline is None or now < self.deadline)

    def expire(self) -> None:
        """Answers that the deadline has passed."""
        stage = self.job.stage if self.job else "admit"
        self.answer(DeadlineExceeded(f"the deadline passed before the image was embedded, in the stage {stage!r}"))

    def answer(self, outcome: Outcome) -> None:
        """Answers, unless that was done before."""
        if self.reply.done():
            return
        if isinstance(outcome, ServiceError):
            self.reply.set_exception(outcome)
        else:
            self.reply.set_result(outcome)

    async def outcome(self) -> Outcome:
        """Waits for the answer."""
        try:
            return await self.reply
        except ServiceError as error:
            return error

    def leave(self) -> type[BaseException] | None:
        """Ends the wait, answered or not. Returns the kind of error that came of it; None: a vector."""
        self.reply.cancel()  # does nothing if there is an answer
        if self.timer:
            self.timer.cancel()
        if self.job:
            self.job.waiters.remove(self)
        if self.reply.cancelled():
            return asyncio.CancelledError
        error = self.reply.exception()
        return type(error) if error else None
