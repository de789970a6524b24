"""The two kinds of load, whatever it is that is called.

In a *closed loop* a fixed number of callers each wait for an answer before they call again: it finds the throughput.
In an *open loop* calls come when they come, whether earlier ones were answered or not, as those of many independent
users do: it finds the latency at a load, which is counted from the time a call was due, so that a slow server cannot
put off the calls that would show it. https://github.com/giltene/wrk2#coordinated-omission
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from benchmarks.processes import Cpu, CpuClock

OK = "OK"
# Makes the call of a number within a limit in seconds, and returns the name of its status code; never raises.
Send = Callable[[int, float], Awaitable[str]]

_CALL_SECONDS = 60.0
_WARM_UP_SECONDS = 120.0  # at most, if callers still wait for their first answer
# Calls that this process could not send within this time of their due time are not sent at all.
_LATEST_SECONDS = 1.0
_MOST_IN_FLIGHT = 4096


@dataclass(frozen=True)
class Calls:
    """What became of calls: arrays with one entry for each call that was sent, in the order of their ends.

    Attributes:
        due: float64 [N], when each was to be sent, on the monotonic clock, in seconds.
        sent: float64 [N], when it was sent.
        ended: float64 [N], when it was answered.
        codes: str [N], names of gRPC status codes.
        unsent: calls that were due and could not be sent: this client was the limit.
    """

    due: NDArray[np.float64]
    sent: NDArray[np.float64]
    ended: NDArray[np.float64]
    codes: NDArray[np.str_]
    unsent: int = 0

    @classmethod
    def merge(cls, parts: list[Self]) -> Self:
        """Returns the calls of several clients as those of one."""
        order = np.argsort(np.concatenate([part.ended for part in parts]), kind="stable")
        due, sent, ended, codes = (
            np.concatenate([getattr(part, name) for part in parts])[order] for name in ("due", "sent", "ended", "codes")
        )
        return cls(due, sent, ended, codes, sum(part.unsent for part in parts))

    @property
    def planned(self) -> int:
        """How many calls were due: those sent and those not."""
        return len(self.due) + self.unsent

    def counts(self) -> dict[str, int]:
        """Returns how many of the calls sent ended with each code."""
        return dict(sorted(Counter(self.codes.tolist()).items()))

    def errors(self) -> dict[str, int]:
        """Returns how many of the calls sent ended with each code other than OK."""
        return {code: count for code, count in self.counts().items() if code != OK}

    def late(self, seconds: float = 0.02) -> int:
        """Returns how many were sent more than so many seconds after they were due."""
        return int(np.count_nonzero(self.sent - self.due > seconds))

    def select(self, keep: NDArray[np.bool_]) -> Calls:
        """Returns those of the calls sent that a mask, bool [N], keeps."""
        return Calls(self.due[keep], self.sent[keep], self.ended[keep], self.codes[keep])

    def ended_within(self, begin: float, end: float) -> Calls:
        """Returns the calls that were answered within a span of time."""
        return self.select((self.ended >= begin) & (self.ended < end))

    def having(self, code: str) -> Calls:
        """Returns the calls that ended with a code."""
        return self.select(self.codes == code)

    def latencies(self) -> NDArray[np.float64]:
        """Returns the seconds from when each call was due until it was answered, float64 [N]."""
        return self.ended - self.due


class _Record:
    """Gathers calls as they end."""

    def __init__(self) -> None:
        self._calls: list[tuple[float, float, float, str]] = []
        self.unsent = 0

    def add(self, due: float, sent: float, code: str) -> None:
        self._calls.append((due, sent, time.monotonic(), code))

    def calls(self) -> Calls:
        times = np.array([call[:3] for call in self._calls], np.float64).reshape(-1, 3)
        codes = np.array([call[3] for call in self._calls], np.str_)
        return Calls(times[:, 0], times[:, 1], times[:, 2], codes, self.unsent)


@dataclass(frozen=True)
class Measured:
    """The calls that were in flight in the time of a measurement, whole or in part, and the CPU time of that time.

    Attributes:
        begin: start of the measurement, on the monotonic clock, in seconds.
        end: its end.
        calls: the calls.
        cpu: CPU time from start to end.
    """

    begin: float
    end: float
    calls: Calls
    cpu: Cpu

    @classmethod
    def cut(cls, begin: float, end: float, calls: Calls, cpu: Cpu) -> Self:
        """Returns a measurement from all calls, of which those outside of its time are left out."""
        return cls(begin, end, calls.select((calls.ended > begin) & (calls.sent < end)), cpu)

    @property
    def seconds(self) -> float:
        """How long it was."""
        return self.end - self.begin

    def rate(self) -> float:
        """Returns the calls that were answered well, by the second.

        A call that was in flight at the start or the end counts with its share in between: calls that are answered
        together, as those of one batch, would otherwise make short measurements coarse.
        """
        good = self.calls.having(OK)
        inside = np.minimum(good.ended, self.end) - np.maximum(good.sent, self.begin)
        return float((inside / (good.ended - good.sent)).sum()) / self.seconds


async def closed_loop(send: Send, callers: int, seconds: float, warm_up: float, server: int | None) -> Measured:
    """Keeps a number of calls in flight.

    Args:
        send: makes a call.
        callers: calls in flight.
        seconds: how long to measure.
        warm_up: seconds before that; longer if some caller has had no answer by then.
        server: process whose CPU time to measure.
    """
    record, numbers, clock = _Record(), itertools.count(), CpuClock(server)
    begin = end = math.inf
    unanswered, all_answered = callers, asyncio.Event()
    unfinished = callers

    async def call_again_and_again() -> None:
        nonlocal unanswered, unfinished
        answered = finished = False
        # The load stays the same until every call that was in flight at the end is answered.
        while unfinished:
            sent = time.monotonic()
            record.add(sent, sent, await send(next(numbers), _CALL_SECONDS))
            if not answered:
                answered, unanswered = True, unanswered - 1
                if not unanswered:
                    all_answered.set()
            if not finished and time.monotonic() >= end:
                finished, unfinished = True, unfinished - 1

    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(call_again_and_again())
        await asyncio.sleep(warm_up)
        async with asyncio.timeout(_WARM_UP_SECONDS):
            await all_answered.wait()
        begin, before = time.monotonic(), clock.read()
        await asyncio.sleep(seconds)
        end, after = time.monotonic(), clock.read()
    return Measured.cut(begin, end, record.calls(), after - before)


def poisson(rate: float, seconds: float, seed: int) -> NDArray[np.float64]:
    """Returns the times of independent calls, float64 [N], ascending, in seconds from the start.

    Given their number, the times of a Poisson process are independent and uniform, so exactly rate * seconds calls
    are drawn: the load is the one that was asked for.
    """
    return np.sort(np.random.default_rng(seed).uniform(0.0, seconds, round(rate * seconds)))


async def open_loop(
    send: Send, due: NDArray[np.float64], limit: float = _CALL_SECONDS, most_in_flight: int = _MOST_IN_FLIGHT
) -> Calls:
    """Makes calls at set times, whatever has become of earlier ones, and waits for all answers.

    Args:
        send: makes a call.
        due: float64 [N], ascending, when to send each, on the monotonic clock.
        limit: deadline of a call, in seconds from when it is sent.
        most_in_flight: calls beyond so many unanswered ones are not sent.
    """
    record = _Record()
    in_flight: set[asyncio.Task[None]] = set()

    async def call(number: int, moment: float) -> None:
        sent = time.monotonic()
        record.add(moment, sent, await send(number, limit))

    for number, moment in enumerate(due.tolist()):
        await asyncio.sleep(max(0.0, moment - time.monotonic()))
        if len(in_flight) >= most_in_flight or time.monotonic() - moment > _LATEST_SECONDS:
            record.unsent += 1
            continue
        task = asyncio.create_task(call(number, moment))
        in_flight.add(task)
        task.add_done_callback(in_flight.discard)
    if in_flight:
        await asyncio.wait(in_flight)
    return record.calls()
