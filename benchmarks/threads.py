"""A closed loop of threads, for clients that block: `load.closed_loop` is its counterpart for those that do not."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.load import OK, Calls, Measured
from benchmarks.processes import CpuClock, ProcessTree

_JOIN_SECONDS = 120.0


@dataclass(frozen=True)
class Slice:
    """A measurement, its CPU time that of the client alone; and that of each server, in seconds of one core."""

    measured: Measured
    servers: tuple[float, ...]


def closed_loop(
    call: Callable[[int], object], callers: int, seconds: float, warm_up: float, servers: Sequence[int]
) -> Slice:
    """Keeps a number of calls in flight, each in a thread.

    Args:
        call: makes the call of a number; what it raises is counted by its name.
        callers: threads.
        seconds: how long to measure.
        warm_up: seconds before that.
        servers: processes whose CPU time to measure.
    """
    numbers = itertools.count()
    calls: list[tuple[float, float, str]] = []  # appending is atomic
    stop = threading.Event()

    def call_again_and_again() -> None:
        while not stop.is_set():
            sent, code = time.monotonic(), OK
            try:
                call(next(numbers))
            except Exception as error:
                code = type(error).__name__
            calls.append((sent, time.monotonic(), code))

    clock, trees = CpuClock(None), [ProcessTree(pid) for pid in servers]

    def read() -> tuple[float, list[float]]:
        return time.monotonic(), [tree.cpu_seconds() for tree in trees]

    threads = [threading.Thread(target=call_again_and_again, name="caller", daemon=True) for _ in range(callers)]
    for thread in threads:
        thread.start()
    time.sleep(warm_up)
    (begin, before), cpu_before = read(), clock.read()
    time.sleep(seconds)
    (end, after), cpu_after = read(), clock.read()
    stop.set()
    last = time.monotonic() + _JOIN_SECONDS
    for thread in threads:
        thread.join(last - time.monotonic() if last > time.monotonic() else 0.0)
    times = np.array([call[:2] for call in calls], np.float64).reshape(-1, 2)
    sent, ended = times[:, 0], times[:, 1]
    record = Calls(sent, sent, ended, np.array([call[2] for call in calls], np.str_))
    measured = Measured.cut(begin, end, record, cpu_after - cpu_before)
    return Slice(measured, tuple(b - a for a, b in zip(before, after, strict=True)))


def merged_rate(slices: Sequence[Slice]) -> float:
    """Returns the calls answered well by the second, of several slices as of one; NaN of none."""
    seconds = sum(part.measured.seconds for part in slices)
    return sum(part.measured.rate() * part.measured.seconds for part in slices) / seconds if seconds else math.nan
