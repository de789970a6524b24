"""The search for the highest rate that keeps an objective, and the knee of the curve.

A rate is judged by windows of equal length. It holds when three in a row keep the objective and are stable: their
throughput within 10 % of its mean, their latencies within 10 % of theirs or of the objective, and no growing backlog.
It fails when three in a row break the objective. (The rule of three stable windows is perf_analyzer's.) If neither
happens in time, as on a noisy machine, it holds if four of five windows kept the objective without a growing backlog;
otherwise it is unstable. A rate that is unstable, or fails when this client was the limit, is tried up to twice more
before it counts as too much. The rates tried double, then close in on the limit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from workbench.loadtest.gates import Bound, latency
from workbench.loadtest.load import SAMPLE, Batch, OpenLoop
from workbench.loadtest.operations import OK
from workbench.loadtest.record import Timed
from workbench.loadtest.settings import FindMax

Verdict = Literal["holds", "fails", "unstable"]
_WINDOWS = 3
_STABLE = 0.1
_BACKLOG = 0.02
_ENOUGH = 0.8
_CHANCES = 2
_LOWEST_RATE = 0.1
_CLOSED_LOOP_SHARE = 0.5


@dataclass(frozen=True)
class Window:
    """A part of a level: its figures, by the text of the bound that each is for, and its good replies a second."""

    figures: dict[str, float]
    kept: bool
    throughput: float
    due: int
    ended: int


class Judge:
    """Judges a level while it runs."""

    def __init__(self, settings: FindMax, load: OpenLoop, begin: float, names: Sequence[str]) -> None:
        self.windows: list[Window] = []
        self._settings, self._begin, self._names = settings, begin, names
        edges = np.arange(settings.most_windows + 1) * settings.window
        self._due = sum(
            (np.histogram(times, edges)[0] for times in load.schedule.times()), np.zeros(len(edges) - 1, int)
        )
        self._samples: NDArray[np.void] = np.array([], SAMPLE)
        self._unsent = np.zeros(len(self._due))
        times = [b.value for b in settings.objective if b.figure not in {"errors", "unsent"}]
        # A call that has not been answered after this has broken any bound.
        self._patience = max(times, default=settings.window) * 1.5
        self._ended = np.zeros(len(self._due))
        self._good = np.zeros(len(self._due))

    def last_figures(self) -> list[dict[str, float]]:
        """Returns the figures of the last three windows."""
        return [window.figures for window in self.windows[-_WINDOWS:]]

    def add(self, batch: Batch) -> None:
        """Adds what a process reports."""
        window = int((batch.time - self._begin) / self._settings.window)
        if 0 <= window < len(self._unsent):
            self._unsent[window] += batch.crowded + batch.overdue
        if not len(batch.samples):
            return
        ended = ((batch.samples["ended"] - self._begin) // self._settings.window).astype(int)
        inside = (ended >= 0) & (ended < len(self._ended))
        np.add.at(self._ended, ended[inside], 1)
        np.add.at(self._good, ended[inside & (batch.samples["code"] == OK)], 1)
        self._samples = np.concatenate([self._samples, batch.samples[batch.samples["measured"]]])

    def verdict(self, now: float) -> Verdict | None:
        """Returns the verdict, or None while there is none."""
        while len(self.windows) < len(self._due) and self._complete(len(self.windows), now):
            self.windows.append(self._close(len(self.windows)))
            last = self.windows[-_WINDOWS:]
            if len(last) == _WINDOWS:
                if not any(window.kept for window in last):
                    return "fails"
                if all(window.kept for window in last) and self._stable(last):
                    return "holds"
        if len(self.windows) < len(self._due):
            return None
        enough = sum(window.kept for window in self.windows) >= _ENOUGH * len(self.windows)
        return "holds" if enough and not _backlog_grows(self.windows) else "unstable"

    def _complete(self, number: int, now: float) -> bool:
        end = self._begin + (number + 1) * self._settings.window
        if now < end:
            return False
        begin = end - self._settings.window
        ended = int(((self._samples["due"] >= begin) & (self._samples["due"] < end)).sum())
        # Reports come a few times a second: one more may tell of calls that have ended.
        return (
            ended + self._unsent[number] >= self._due[number] and now > end + 0.5
        ) or now > end + 0.5 + self._patience

    def _close(self, number: int) -> Window:
        length = self._settings.window
        end = self._begin + (number + 1) * length
        mine = (self._samples["due"] >= end - length) & (self._samples["due"] < end)
        samples, self._samples = self._samples[mine], self._samples[self._samples["due"] >= end]
        planned, unsent = int(self._due[number]), float(self._unsent[number])
        unanswered = max(0, planned - len(samples) - round(unsent))
        figures = {}
        for bound in self._settings.objective:
            of = samples
            if bound.operation and bound.operation in self._names:
                of = samples[samples["operation"] == self._names.index(bound.operation)]
            figures[bound.text] = _figure(bound, of, unanswered, unsent)
        kept = planned > 0 and all(bound.holds(figures[bound.text]) for bound in self._settings.objective)
        return Window(figures, kept, float(self._good[number]) / length, planned, int(self._ended[number]))

    def _stable(self, windows: Sequence[Window]) -> bool:
        if _backlog_grows(windows):
            return False
        due = sum(window.due for window in windows)
        # The number of random arrivals varies by its root.
        chance = 3 / math.sqrt(max(1.0, due / len(windows)))
        if not _close_together([window.throughput for window in windows], 0.0, max(_STABLE, chance)):
            return False
        return all(
            _close_together([window.figures[bound.text] for window in windows], bound.value, _STABLE)
            for bound in self._settings.objective
            if bound.figure not in {"errors", "unsent"}
        )


def _figure(bound: Bound, samples: NDArray[np.void], unanswered: int, unsent: float) -> float:
    good = samples[samples["code"] == OK]
    total = len(samples) + unanswered + unsent
    if bound.figure == "errors":
        return (len(samples) - len(good) + unsent) / total if total else math.nan
    if bound.figure == "unsent":
        return unsent / total if total else math.nan
    if not len(good):
        return math.inf if unanswered else math.nan
    timed = Timed()
    times = good["ended"] - good["due"]
    # What is not answered yet takes longer than all that is.
    timed.response.record(np.concatenate([times, np.full(unanswered, max(times.max(), 2 * bound.value))]))
    return latency(timed, bound.figure)


def _backlog_grows(windows: Sequence[Window]) -> bool:
    due = sum(window.due for window in windows)
    return due - sum(window.ended for window in windows) > max(_BACKLOG * due, 5.0)


def _close_together(values: Sequence[float], scale: float, tolerance: float) -> bool:
    mean = sum(values) / len(values)
    return max(abs(value - mean) for value in values) <= tolerance * max(mean, scale)


@dataclass(frozen=True)
class Probe:
    """What a rate came to.

    Attributes:
        verdict: whether it held.
        windows: the figures of the last three windows, by the text of the bound that each is for; times in seconds.
        client_limited: whether this client was the limit.
    """

    verdict: Verdict
    windows: list[dict[str, float]]
    client_limited: bool


@dataclass
class Limit:
    """What the search found.

    Attributes:
        rate: the highest rate that held, in calls a second; None if none did.
        broken: the lowest rate that did not; None if all did.
        tried: each rate with its verdict, in the order they were tried.
        client_limited: whether a rate failed when this client was the limit: the services may bear more.
    """

    rate: float | None = None
    broken: float | None = None
    tried: list[dict[str, Any]] = field(default_factory=list)
    client_limited: bool = False


def search(settings: FindMax, start: float, probe: Callable[[float], Probe | None]) -> Limit:
    """Searches for the limit.

    Args:
        settings: what is to be kept, and how exactly to know.
        start: the rate to begin with.
        probe: runs a rate, and returns what it found; None ends the search.
    """
    limit, rate, again = Limit(), min(start, settings.most), 0
    while rate >= _LOWEST_RATE:
        if (outcome := probe(rate)) is None:
            return limit
        limit.tried.append({"rate": rate, **asdict(outcome)})
        doubtful = outcome.verdict == "unstable" or (outcome.verdict == "fails" and outcome.client_limited)
        if doubtful and again < _CHANCES:
            again += 1
            continue
        again = 0
        if outcome.verdict == "holds":
            limit.rate = rate if limit.rate is None else max(rate, limit.rate)
        else:
            limit.broken, limit.client_limited = rate, outcome.client_limited
        if limit.rate is None:
            rate /= 2
        elif limit.broken is None:
            if rate >= settings.most:
                return limit
            rate = min(2 * rate, settings.most)
        elif limit.broken <= limit.rate * (1 + settings.precision):
            return limit
        else:
            rate = math.sqrt(limit.rate * limit.broken)
    return limit


def first_rate(closed_loop_goodput: float) -> float:
    """Returns a rate to begin with, from what a few callers in a closed loop got: below the limit, and not far."""
    return max(_LOWEST_RATE, closed_loop_goodput * _CLOSED_LOOP_SHARE)


def knee(rates: Sequence[float], means: Sequence[float]) -> int | None:
    """Returns which of the levels is the knee of the curve: where throughput by mean response time is greatest.

    Beyond it, more load buys less throughput than it costs in time. (Kleinrock, "Power and deterministic rules of thumb
    for probabilistic problems in computer communications", ICC 1979.) None with fewer than three levels.
    """
    power = [rate / mean if mean > 0 else math.nan for rate, mean in zip(rates, means, strict=True)]
    if len(power) < 3 or all(math.isnan(value) for value in power):
        return None
    return int(np.nanargmax(power))
