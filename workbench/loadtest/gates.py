"""Bounds on the figures of a load test: what `--slo` keeps and what `--fail-if` fails at.

A figure is `p50`, `p99.9`, any other percentile, `mean` or `max` of the response time; `errors`, the share of the
planned calls that were not answered well; `unsent`, the share that was not sent; `rate`, good replies a second;
`recall`; and, of a search for the limit, `max-rate`. In front of it may stand an operation: search-image.p99.
"""

from __future__ import annotations

import argparse
import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from workbench.loadtest.operations import OPERATIONS
from workbench.loadtest.quantities import duration, positive_number, share
from workbench.loadtest.record import Record, Timed

_BOUND = re.compile(
    r"(?:(?P<operation>[a-z-]+)\.)?(?P<figure>[a-z][a-z0-9.-]*?)\s*(?P<relation><=|>=|<|>|=)\s*(?P<value>.+)"
)
_PERCENTILE = re.compile(r"p(\d{1,2}(\.\d+)?)")
_RELATIONS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_SHARES = frozenset({"errors", "unsent", "recall"})
_RATES = frozenset({"rate", "max-rate"})
_OF_ALL = frozenset({"unsent", "recall", "max-rate"})


@dataclass(frozen=True)
class Bound:
    """A relation that a figure has to a value; times are in seconds.

    Attributes:
        text: as the user wrote it.
        operation: whose figure; empty for that of all calls.
        figure: which.
        relation: <, <=, > or >=.
        value: the value.
    """

    text: str
    operation: str
    figure: str
    relation: str
    value: float

    def holds(self, value: float) -> bool:
        """Whether a figure has the relation; NaN has none."""
        return not math.isnan(value) and _RELATIONS[self.relation](value, self.value)


def parse_gate(text: str) -> Bound:
    """Returns the bound of "p99>150ms", "errors>0.1%", "search-image.p95 > 80ms" or "rate<100".

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    match = _BOUND.fullmatch(text.strip())
    if match is None or match["relation"] == "=":
        raise argparse.ArgumentTypeError(f"{text!r} is not a condition: write p99>150ms, errors>0.1% or rate<100")
    return _bound(text, match, match["relation"])


def parse_objective(text: str) -> tuple[Bound, ...]:
    """Returns the bounds of "p99=100ms,errors=0.1%", each of which is the most that is allowed.

    Raises:
        argparse.ArgumentTypeError: it is no objective.
    """
    bounds = []
    for part in text.split(","):
        match = _BOUND.fullmatch(part.strip())
        if match is None or match["relation"] not in {"=", "<="} or match["figure"] in {*_RATES, "recall"}:
            raise argparse.ArgumentTypeError(f"{part!r} is no objective: write p99=100ms,errors=0.1%")
        bounds.append(_bound(part, match, "<="))
    return tuple(bounds)


def _bound(text: str, match: re.Match[str], relation: str) -> Bound:
    operation, figure = match["operation"] or "", match["figure"]
    if operation and (operation not in OPERATIONS or figure in _OF_ALL):
        raise argparse.ArgumentTypeError(f"{text!r}: there is no {figure} of {operation!r} alone")
    if figure in _SHARES:
        value = share(match["value"])
    elif figure in _RATES:
        value = positive_number(match["value"])
    elif figure in {"mean", "max"} or _PERCENTILE.fullmatch(figure):
        value = duration(match["value"])
    else:
        raise argparse.ArgumentTypeError(
            f"{text!r}: there is no figure {figure!r}; there are p50, p99, mean, max, errors, unsent, rate, recall "
            "and max-rate"
        )
    return Bound(text.strip(), operation, figure, relation, value)


def figure(record: Record, bound: Bound, recall: float = math.nan) -> float:
    """Returns the figure of a level that a bound is about; NaN where there is none."""
    timed = record.all
    if bound.operation:
        if bound.operation not in record.names:
            return math.nan
        timed = record.operations[record.names.index(bound.operation)]
    match bound.figure:
        case "errors":
            return _error_share(timed) if bound.operation else record.counts.error_share
        case "unsent":
            return record.counts.unsent / record.counts.planned if record.counts.planned else math.nan
        case "rate":
            return timed.replied / record.seconds
        case "recall":
            return recall
        case _:
            return latency(timed, bound.figure)


def latency(timed: Timed, name: str) -> float:
    """Returns "p99", another percentile, "mean" or "max" of response times in seconds; NaN for other names."""
    if name == "mean":
        return timed.response.mean()
    if name == "max":
        return timed.response.max if len(timed.response) else math.nan
    match = _PERCENTILE.fullmatch(name)
    return timed.response.percentile(float(match[1])) if match else math.nan


def _error_share(timed: Timed) -> float:
    ended = timed.ok + timed.errors.total()
    return timed.errors.total() / ended if ended else math.nan
