"""What a load test is to do, from its flags."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from workbench.loadtest.gates import Bound
from workbench.loadtest.load import Load
from workbench.loadtest.schedule import Arrivals


@dataclass(frozen=True)
class FindMax:
    """The search for the highest rate that keeps an objective.

    Attributes:
        objective: what is to be kept.
        start: calls a second to begin with; None tries what a few callers in a closed loop get.
        most: calls a second at which it stops.
        window: seconds of a window; a rate is judged by three of them.
        most_windows: windows after which a rate that is not stable counts as too much.
        precision: the limit is known when it lies between two rates that differ by this share.
        arrivals: how calls come.
    """

    objective: tuple[Bound, ...]
    start: float | None
    most: float
    window: float
    most_windows: int
    precision: float
    arrivals: Arrivals


@dataclass(frozen=True)
class Settings:
    """How a load test is run.

    Attributes:
        levels: what to run, one after the other.
        find_max: instead of levels, the search for the limit.
        warm_up: seconds before each level.
        timeout: deadline of a call in seconds.
        most_in_flight: calls beyond so many are not sent.
        processes: that send.
        give_up: seconds without a good reply after which a test is ended.
        seed: of all that is drawn.
        prometheus: where to read the servers' metrics.
        fail_if: conditions under which the test fails.
        compare: an earlier result.
        tolerance: relative differences below this are no differences.
        json, html, hdr: files to write.
    """

    levels: tuple[Load, ...]
    find_max: FindMax | None
    warm_up: float
    timeout: float
    most_in_flight: int
    processes: int
    give_up: float
    seed: int
    prometheus: tuple[str, ...] = ()
    fail_if: tuple[Bound, ...] = ()
    compare: Path | None = None
    tolerance: float = 0.05
    json: Path | None = None
    html: Path | None = None
    hdr: Path | None = None
