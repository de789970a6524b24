"""When calls are due in an open loop. The same profile, kind of arrivals and seed give the same times on any machine.

A profile says at what rate calls come over time. Its integral, the calls expected until then, is time as the arrivals
see it ("operational time"): there, constant arrivals are one unit apart and Poisson arrivals have independent
exponential gaps, whatever the profile. Its inverse takes them back. (Çinlar, Introduction to Stochastic Processes,
1975, section 4.7.)
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from workbench.errors import CommandError
from workbench.loadtest.quantities import duration, positive_number

Arrivals = Literal["poisson", "constant"]
_CHUNK = 4096


@dataclass(frozen=True)
class Segment:
    """A part of a profile: the rate goes straight from `first` to `last`, in calls a second, over `seconds`."""

    first: float
    last: float
    seconds: float


@dataclass(frozen=True)
class Schedule:
    """When calls are due.

    Attributes:
        segments: the profile, in order.
        arrivals: how calls come at a given rate.
        seed: what Poisson arrivals are drawn from.
        trace: instead of a profile, times in seconds from the start, ascending.
    """

    segments: tuple[Segment, ...] = ()
    arrivals: Arrivals = "poisson"
    seed: int = 0
    trace: tuple[float, ...] | None = None

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        if self.trace is not None:
            return self.trace[-1]
        return sum(segment.seconds for segment in self.segments)

    @property
    def rate(self) -> float:
        """The mean rate, in calls a second."""
        if self.trace is not None:
            return len(self.trace) / max(self.seconds, 1e-9)
        return float(self._expected()[-1]) / self.seconds

    def times(self) -> Iterator[NDArray[np.float64]]:
        """Yields when calls are due, in seconds from the start, ascending: float64 arrays of a bounded length."""
        if self.trace is not None:
            for start in range(0, len(self.trace), _CHUNK):
                yield np.array(self.trace[start : start + _CHUNK])
            return
        last = self._expected()[-1]
        random = np.random.default_rng(self.seed)
        reached = 0.0
        while reached < last:
            gaps = np.ones(_CHUNK) if self.arrivals == "constant" else random.exponential(1.0, _CHUNK)
            # The first of constant arrivals is due at once; the last lies before the end.
            marks = reached + np.cumsum(gaps) - (1.0 if self.arrivals == "constant" else 0.0)
            reached += float(gaps.sum())
            kept = marks[marks < last * (1 - 1e-12)]
            if kept.size:
                yield self._inverse(kept)

    def _expected(self) -> NDArray[np.float64]:
        """Returns the calls expected until the start of each segment and until the end, float64 [segments + 1]."""
        areas = [(segment.first + segment.last) / 2 * segment.seconds for segment in self.segments]
        return np.concatenate([[0.0], np.cumsum(areas)])

    def _inverse(self, marks: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns the times until which so many calls are expected, float64 [N]."""
        expected = self._expected()
        begins = np.cumsum([0.0, *(segment.seconds for segment in self.segments)])
        which = np.clip(np.searchsorted(expected, marks, side="right") - 1, 0, len(self.segments) - 1)
        first = np.array([segment.first for segment in self.segments])[which]
        seconds = np.array([segment.seconds for segment in self.segments])[which]
        slope = (np.array([segment.last for segment in self.segments])[which] - first) / seconds
        rest = marks - expected[which]
        # first t + slope t^2 / 2 = rest, in the form that stands slope = 0.
        root = np.sqrt(np.maximum(first**2 + 2 * slope * rest, 0.0))
        inside: NDArray[np.float64] = 2 * rest / np.maximum(first + root, 1e-300)
        times: NDArray[np.float64] = begins[which] + np.minimum(inside, seconds)
        return times


def steady(rate: float, seconds: float, arrivals: Arrivals, seed: int) -> Schedule:
    """Returns a schedule of one rate, in calls a second."""
    return Schedule((Segment(rate, rate, seconds),), arrivals, seed)


def parse_profile(text: str) -> tuple[Segment, ...]:
    """Returns the segments of "100@30s,100..500@1m,500@30s": steps, and ramps from one rate to another.

    Raises:
        argparse.ArgumentTypeError: it is not a profile.
    """
    segments = []
    for part in text.split(","):
        rates, at, seconds = part.partition("@")
        first, ramp, last = rates.partition("..")
        if not at:
            raise argparse.ArgumentTypeError(
                f"{part!r} is no part of a profile: write RATE@DURATION or FROM..TO@DURATION"
            )
        begin = 0.0 if ramp and first.strip() == "0" else positive_number(first)
        end = begin if not ramp else 0.0 if last.strip() == "0" else positive_number(last)
        if begin == end == 0:
            raise argparse.ArgumentTypeError(f"{part!r} sends nothing at all")
        segments.append(Segment(begin, end, duration(seconds)))
    return tuple(segments)


def read_trace(path: Path) -> tuple[float, ...]:
    """Returns the times in a file, one a line, in seconds from any origin, shifted so that the first is 0.

    Raises:
        CommandError: a line is not a number, or there is none.
    """
    times: list[float] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not (text := line.partition("#")[0].strip()):
            continue
        try:
            times.append(float(text))
        except ValueError:
            raise CommandError(f"{path}, line {number}: {text!r} is not a time in seconds") from None
    if len(times) < 2 or not np.isfinite(times).all():
        raise CommandError(f"{path} has {len(times)} times; a trace needs two at least, one a line, in seconds")
    ordered = sorted(times)
    return tuple(time - ordered[0] for time in ordered)


def describe(segments: Sequence[Segment]) -> str:
    """Returns a profile as `parse_profile` reads it."""
    return ",".join(
        f"{s.first:g}@{s.seconds:g}s" if s.first == s.last else f"{s.first:g}..{s.last:g}@{s.seconds:g}s"
        for s in segments
    )
