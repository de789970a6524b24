"""What a level of a load test found: counts, histograms, and how they went over time."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from workbench.loadtest.histogram import VALUES, Histogram
from workbench.loadtest.load import Batch, Job, RecallSample
from workbench.loadtest.operations import CODES, CUT_OFF, OK

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)
LATE_SECONDS = 0.02
_WINDOWS = 20
_UNAVAILABLE = CODES.index("UNAVAILABLE")


@dataclass
class Counts:
    """What became of the calls of a level: planned = sent + unsent, and sent = ok + errors + cut off.

    Attributes:
        planned: calls that came due.
        sent: those that were sent.
        ok: those of them that were answered well.
        errors: those that ended with another code, by its name.
        cut_off: those that were in flight when the test was ended before its time.
        crowded: unsent, because too many were in flight.
        overdue: unsent, because this client was more than a second late.
    """

    planned: int = 0
    sent: int = 0
    ok: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    cut_off: int = 0
    crowded: int = 0
    overdue: int = 0

    @property
    def unsent(self) -> int:
        """Calls that came due and were not sent."""
        return self.crowded + self.overdue

    @property
    def failed(self) -> int:
        """Calls that ended with an error."""
        return self.errors.total()

    @property
    def error_share(self) -> float:
        """Share of the planned calls that did not come to a good end; those cut off do not count. NaN of nothing."""
        ended = self.planned - self.cut_off
        return (self.failed + self.unsent) / ended if ended else math.nan

    @property
    def add_up(self) -> bool:
        """Whether they do."""
        return self.planned == self.sent + self.unsent and self.sent == self.ok + self.failed + self.cut_off


@dataclass
class Timed:
    """Latencies of the calls that were answered well, of one operation or of all.

    Attributes:
        response: from when each was due.
        service: from when each was sent.
        ok: how many were answered well.
        errors: how many were not, by the name of the code.
        replied: how many good replies came within the time of the level, whenever they were due, the warm-up included.
        stages: seconds spent in each stage of the server, of the calls that asked.
    """

    response: Histogram = field(default_factory=Histogram)
    service: Histogram = field(default_factory=Histogram)
    ok: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    replied: int = 0
    stages: dict[str, Histogram] = field(default_factory=dict)


@dataclass
class Second:
    """A second of a level; latencies are of calls due in it, other figures of calls ended in it."""

    due: int = 0
    ok: int = 0
    errors: int = 0
    unavailable: int = 0
    in_flight: int = 0
    latencies: list[NDArray[np.float32]] = field(default_factory=list)

    def percentile(self, percent: float) -> float:
        """Returns a percentile of the latencies in seconds, NaN of none."""
        parts = [part for part in self.latencies if part.size]
        return float(np.percentile(np.concatenate(parts), percent)) if parts else math.nan


@dataclass(frozen=True)
class Outage:
    """A time in which calls ended and none of them well: they found no server. Seconds from the level's begin."""

    begin: float
    end: float
    calls: int
    over: bool


@dataclass(frozen=True)
class ClientUse:
    """How busy this client was.

    Attributes:
        cpu: the cores that each process took, 1 being all of one.
        late_ms: percentiles of how late calls were sent, and the most.
        late: how many were sent more than 20 ms late.
        lag_ms: percentiles of how late the event loops were, and the most.
    """

    cpu: tuple[float, ...]
    late_ms: dict[str, float]
    late: int
    lag_ms: dict[str, float]


class Record:
    """Adds up what the processes report of one level.

    Attributes:
        job: the level.
        names: of the operations.
        begin: when it began, on the monotonic clock.
        seconds: how long it lasted; less than planned if it was ended before its time.
        counts: of all calls.
        all: latencies of all operations.
        operations: of each.
        series: its seconds.
        windows: latencies of all operations in equal parts of its time, by when calls were due.
        details: the first message of each code.
        recall: hits of searches to be compared with the exact answer.
    """

    def __init__(self, job: Job, names: Sequence[str], processes: int) -> None:
        self.job, self.names = job, tuple(names)
        self.begin, self.seconds = job.begin, job.load.seconds
        self.counts = Counts()
        self.all = Timed()
        self.operations = [Timed() for _ in names]
        self.series = [Second() for _ in range(math.ceil(self.seconds))]
        self.windows = [Timed() for _ in range(_WINDOWS)]
        self.details: dict[str, str] = {}
        self.recall: list[RecallSample] = []
        self._late, self._lag = Histogram(), Histogram()
        self._cpu: list[list[tuple[float, float]]] = [[] for _ in range(processes)]
        self._in_flight = [0] * processes
        self.last_reply = job.begin

    def add(self, batch: Batch) -> None:
        """Adds what a process reports."""
        counts = self.counts
        counts.planned += batch.planned
        counts.crowded += batch.crowded
        counts.overdue += batch.overdue
        for code, message in batch.details.items():
            self.details.setdefault(CODES[code], message)
        self.recall += batch.recall
        for sample in batch.stages:
            timed = self.operations[sample.operation]
            inside = sample.stages.get("total", sum(sample.stages.values()))
            stages = sample.stages | {"network and client": max(0.0, sample.seconds - inside)}
            for name, seconds in stages.items():
                timed.stages.setdefault(name, Histogram()).record(np.array([seconds]))
        self._in_flight[batch.process] = batch.in_flight
        if batch.time >= self.begin:
            self._lag.record(np.maximum(batch.lags, 0.0))
            self._cpu[batch.process].append((batch.time, batch.cpu))
        if 0 <= (second := int(batch.time - self.begin)) < len(self.series):
            self.series[second].in_flight = max(self.series[second].in_flight, sum(self._in_flight))
        if len(batch.samples):
            self._add_samples(batch.samples)

    def _add_samples(self, samples: NDArray[np.void]) -> None:
        good = samples["code"] == OK
        if good.any():
            self.last_reply = max(self.last_reply, float(samples["ended"][good].max()))
        self._add_ends(samples, good)
        samples, good = samples[samples["measured"]], good[samples["measured"]]
        counts = self.counts
        counts.sent += len(samples)
        counts.ok += int(good.sum())
        counts.cut_off += int((samples["code"] == CUT_OFF).sum())
        counts.errors += _errors(samples)
        self._late.record(np.maximum(samples["sent"] - samples["due"], 0.0))
        for number, timed in enumerate(self.operations):
            of = samples["operation"] == number
            timed.errors += _errors(samples[of])
            _add_times(timed, samples[of & good])
        _add_times(self.all, samples[good])
        self.all.errors = counts.errors
        self._add_windows(samples, good)

    def _add_ends(self, samples: NDArray[np.void], good: NDArray[np.bool_]) -> None:
        """Counts calls by when they ended, whenever they were due."""
        ended = samples["ended"] - self.begin
        inside = (ended >= 0) & (ended < self.seconds)
        self.all.replied += int((inside & good).sum())
        for number, timed in enumerate(self.operations):
            timed.replied += int((inside & good & (samples["operation"] == number)).sum())
        failed = ~good & (samples["code"] != CUT_OFF)
        seconds = ended.astype(int)
        for second in np.unique(seconds[inside]).tolist():
            at = inside & (seconds == second)
            self.series[second].ok += int((at & good).sum())
            self.series[second].errors += int((at & failed).sum())
            self.series[second].unavailable += int((at & (samples["code"] == _UNAVAILABLE)).sum())

    def _add_windows(self, samples: NDArray[np.void], good: NDArray[np.bool_]) -> None:
        """Keeps latencies by when calls were due."""
        due = samples["due"] - self.begin
        seconds = np.minimum(due.astype(int), len(self.series) - 1)
        latencies = (samples["ended"] - samples["due"]).astype(np.float32)
        for second in np.unique(seconds).tolist():
            at = seconds == second
            self.series[second].due += int(at.sum())
            self.series[second].latencies.append(latencies[at & good])
        windows = np.minimum((due / self.seconds * _WINDOWS).astype(int), _WINDOWS - 1)
        for number in np.unique(windows).tolist():
            window, at = self.windows[number], windows == number
            window.errors += _errors(samples[at])
            _add_times(window, samples[at & good])

    def end(self, now: float) -> None:
        """Notes that the level was ended before its time."""
        self.seconds = min(self.seconds, max(now - self.begin, 1e-3))
        del self.series[math.ceil(self.seconds) :]

    @property
    def goodput(self) -> float:
        """Good replies a second."""
        return self.all.replied / self.seconds

    @property
    def offered(self) -> float:
        """Calls that came due a second."""
        return self.counts.planned / self.seconds

    def client(self) -> ClientUse:
        """Returns how busy this client was."""
        cpu = []
        for readings in self._cpu:
            (first, used), (last, at_last) = readings[0] if readings else (0, 0), readings[-1] if readings else (0, 0)
            cpu.append((at_last - used) / (last - first) if last > first else 0.0)
        late = int(self._late.counts[np.searchsorted(VALUES, LATE_SECONDS, side="right") :].sum())
        return ClientUse(tuple(cpu), milliseconds(self._late), late, milliseconds(self._lag))

    def outages(self) -> list[Outage]:
        """Returns the times, of a second or more, in which no server was there."""
        # By seconds that calls ended in; those in which none did say nothing.
        told = [(number, second) for number, second in enumerate(self.series) if second.ok or second.errors]
        found: list[Outage] = []
        begin = None
        calls = 0
        for number, second in told:
            if second.ok or second.unavailable < second.errors:
                if begin is not None:
                    found.append(Outage(begin, number, calls, True))
                begin, calls = None, 0
            else:
                begin, calls = number if begin is None else begin, calls + second.unavailable
        if begin is not None:
            found.append(Outage(begin, self.seconds, calls, False))
        return found


def milliseconds(histogram: Histogram) -> dict[str, float]:
    """Returns the mean, the percentiles and the maximum of a histogram in milliseconds; NaN of nothing."""
    found = {"mean": histogram.mean()}
    found |= {f"p{percent:g}": histogram.percentile(percent) for percent in PERCENTILES}
    found["max"] = histogram.max if len(histogram) else math.nan
    return {name: value * 1e3 for name, value in found.items()}


def _add_times(timed: Timed, samples: NDArray[np.void]) -> None:
    timed.ok += len(samples)
    timed.response.record(samples["ended"] - samples["due"])
    timed.service.record(samples["ended"] - samples["sent"])


def _errors(samples: NDArray[np.void]) -> Counter[str]:
    codes, numbers = np.unique(samples["code"], return_counts=True)
    return Counter({CODES[code]: int(n) for code, n in zip(codes, numbers, strict=True) if code not in (OK, CUT_OFF)})
