"""What a level of a load test is: the calls that are wanted, and what a process reports of those it made."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from search_service.recall import Ranked
from workbench.loadtest.schedule import Schedule

SAMPLE = np.dtype(
    [("due", "f8"), ("sent", "f8"), ("ended", "f8"), ("operation", "u1"), ("code", "u1"), ("measured", "?")]
)
"""What became of a call that was sent. Times are on the monotonic clock, in seconds; those of the warm-up are not
`measured`."""


@dataclass(frozen=True)
class OpenLoop:
    """Calls that come at set times, whatever becomes of earlier ones; `warm_up` comes before the schedule's start."""

    schedule: Schedule
    warm_up: Schedule | None = None

    @property
    def seconds(self) -> float:
        """How long it is measured."""
        return self.schedule.seconds

    @property
    def warm_up_seconds(self) -> float:
        """How long it runs before that."""
        return self.warm_up.seconds if self.warm_up else 0.0


@dataclass(frozen=True)
class ClosedLoop:
    """So many callers, each of which waits for an answer before it calls again."""

    callers: int
    seconds: float
    warm_up_seconds: float


Load = OpenLoop | ClosedLoop


@dataclass(frozen=True)
class Job:
    """A level for all processes of a load test; each takes its part of it.

    Attributes:
        load: the calls.
        begin: when the measurement begins, on the monotonic clock; the warm-up comes before.
        timeout: deadline of a call, in seconds from when it is sent.
        most_in_flight: calls that would be more than so many at once, over all processes, are not sent.
    """

    load: Load
    begin: float
    timeout: float
    most_in_flight: int


@dataclass(frozen=True)
class StageSample:
    """The seconds that one answered call spent in the stages of the server, and in all as this client saw it."""

    operation: int
    seconds: float
    stages: dict[str, float]


@dataclass(frozen=True)
class RecallSample:
    """The hits of one search."""

    number: int
    hits: Ranked


@dataclass
class Batch:
    """What one process made in a fraction of a second.

    Attributes:
        process: its number.
        samples: calls that ended, `SAMPLE` [N].
        planned: calls that came due; those of the warm-up do not count, here and in the next two.
        crowded: calls not sent because too many were in flight.
        overdue: calls not sent because this process was too late for them.
        stages: of the calls that asked.
        recall: of the searches whose hits are kept.
        details: the message of the first call that ended with a code.
        lags: seconds by which the process' event loop was late, float64 [N].
        cpu: CPU seconds the process has taken since its start.
        in_flight: calls not answered yet.
        time: now, on the monotonic clock.
        done: whether the level is at its end.
    """

    process: int
    samples: NDArray[np.void]
    planned: int
    crowded: int
    overdue: int
    stages: list[StageSample]
    recall: list[RecallSample]
    details: dict[int, str]
    lags: NDArray[np.float64]
    cpu: float
    in_flight: int
    time: float
    done: bool = field(default=False)
