"""Two results beside each other, with a verdict that respects noise.

The calls of a level lie in twenty windows of equal length. Drawing windows anew, with replacement, a thousand times,
shows how much a figure varies by chance (a bootstrap over blocks, which unlike one over calls keeps calls together that
were slow for the same reason). A figure is better or worse only if 99 % of the changes drawn lie beyond the tolerance.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from workbench.loadtest import summary
from workbench.loadtest.histogram import VALUES, Histogram

Verdict = Literal["better", "worse", "same", "unclear"]
_DRAWS = 1000
_CONFIDENCE = 0.99
_PERCENTILES = (50.0, 90.0, 99.0)
# What makes two tests different ones.
_SAME = (
    ("workload", "operations"),
    ("workload", "images"),
    ("workload", "top_k"),
    ("workload", "batch"),
    ("machine",),
    ("target",),
)


def compare(old: dict[str, Any], new: dict[str, Any], tolerance: float, seed: int) -> dict[str, Any]:
    """Returns how a result compares with an older one.

    Args:
        old: a result, as read from its file.
        new: likewise.
        tolerance: relative differences below this are none.
        seed: of the draws.

    Returns:
        the `verdict`, "better", "worse", "same" or "unclear"; what differs between the tests themselves,
        `differences`; and, of the levels that both have, each figure with its relative `change`, between `low` and
        `high`, and its verdict.
    """
    random = np.random.default_rng(seed)
    before = {summary.title(level): level for level in old["levels"]}
    levels: list[dict[str, Any]] = []
    for level in new["levels"]:
        name = summary.title(level)
        if name in before and not (new["limit"] and old["limit"]):
            levels.append({"level": name, "figures": _figures(before[name], level, tolerance, random)})
    if new["limit"] and old["limit"] and new["limit"]["rate"] and old["limit"]["rate"]:
        levels.append({"level": "limit", "figures": [_limits(old["limit"], new["limit"], tolerance)]})
    differences = [".".join(path) for path in _SAME if _at(old, path) != _at(new, path)]
    verdicts = {figure["verdict"] for level in levels for figure in level["figures"]}
    return {
        "old": old["time"],
        # Tests of different calls say nothing about each other.
        "verdict": "unclear" if "workload.operations" in differences else _overall(verdicts),
        "tolerance": tolerance,
        "differences": differences,
        "levels": levels,
    }


def render(comparison: dict[str, Any]) -> str:
    """Returns a comparison as text."""
    rows = [["level", "figure", "old", "new", "change", "99 % within", "verdict"]]
    for level in comparison["levels"]:
        for figure in level["figures"]:
            within = f"{figure['low']:+.1%} to {figure['high']:+.1%}"
            row = [level["level"], figure["figure"], f"{figure['old']:.4g}", f"{figure['new']:.4g}"]
            rows.append([*row, f"{figure['change']:+.1%}", within, figure["verdict"]])
    lines = [f"\nbeside the test of {comparison['old']}: {comparison['verdict']}"]
    if comparison["differences"]:
        lines.append(f"the tests differ in {', '.join(comparison['differences'])}: compare with care")
    return "\n".join([*lines, summary.columns(rows) if len(rows) > 1 else "no level is in both"])


class _Windows:
    """The windows of a level, and draws of them."""

    def __init__(self, level: dict[str, Any], random: np.random.Generator) -> None:
        windows = [window for window in level["windows"] if window["ok"] or window["errors"]]
        self._histograms = [Histogram.decode(window["histogram"]) for window in windows]
        self._seconds = level["seconds"] * len(windows) / max(1, len(level["windows"]))
        self._ok = np.array([window["ok"] for window in windows], float)
        self._errors = np.array([window["errors"] for window in windows], float)
        count = max(1, len(windows))
        self._draws = (
            random.multinomial(count, np.full(count, 1 / count), _DRAWS) if windows else np.zeros((_DRAWS, 0), int)
        )

    def percentiles(self, percent: float) -> NDArray[np.float64]:
        """Returns a percentile of each draw in seconds, float64 [draws]; NaN of nothing."""
        if not self._histograms:
            return np.full(_DRAWS, np.nan)
        counts = np.stack([histogram.counts for histogram in self._histograms])
        used = np.flatnonzero(counts.any(axis=0))
        if not used.size:
            return np.full(_DRAWS, np.nan)
        sums = np.cumsum(self._draws @ counts[:, used], axis=1)
        ranks = np.maximum(1, np.ceil(percent / 100 * sums[:, -1] - 1e-9))
        found: NDArray[np.float64] = VALUES[used[(sums < ranks[:, None]).sum(axis=1).clip(max=len(used) - 1)]]
        return found

    def rates(self) -> NDArray[np.float64]:
        """Returns the good replies a second of each draw, float64 [draws]."""
        found: NDArray[np.float64] = self._draws @ self._ok / max(self._seconds, 1e-9)
        return found

    def error_shares(self) -> NDArray[np.float64]:
        """Returns the share of errors of each draw, float64 [draws]."""
        failed = self._draws @ self._errors
        found: NDArray[np.float64] = failed / np.maximum(failed + self._draws @ self._ok, 1)
        return found


def _figures(
    old: dict[str, Any], new: dict[str, Any], tolerance: float, random: np.random.Generator
) -> list[dict[str, Any]]:
    before, after = _Windows(old, random), _Windows(new, random)
    found = []
    for percent in _PERCENTILES:
        name = f"p{percent:g}"
        values = old["response_ms"][name], new["response_ms"][name]
        if None not in values:
            ratios = after.percentiles(percent) / before.percentiles(percent) - 1
            found.append(_judged(f"{name} ms", *values, ratios, tolerance, more_is_better=False))
    values = old["rates"]["goodput"], new["rates"]["goodput"]
    if values[0] and values[1]:
        ratios = after.rates() / np.maximum(before.rates(), 1e-9) - 1
        found.append(_judged("replies/s", *values, ratios, tolerance, more_is_better=True))
    shares = old["counts"]["error_share"] or 0.0, new["counts"]["error_share"] or 0.0
    # Shares are compared by their difference: there may have been none. A thousandth is the least that matters.
    differences = after.error_shares() - before.error_shares()
    found.append(_judged("errors", *shares, differences, 0.001, more_is_better=False, change=shares[1] - shares[0]))
    return found


def _limits(old: dict[str, Any], new: dict[str, Any], tolerance: float) -> dict[str, Any]:
    """Compares limits: each lies between the highest rate that held and the lowest that did not."""
    low = new["rate"] / (old["broken"] or old["rate"]) - 1
    high = (new["broken"] or new["rate"]) / old["rate"] - 1
    return _judged("max rate", old["rate"], new["rate"], np.array([low, high]), tolerance, more_is_better=True)


def _judged(
    name: str,
    old: float,
    new: float,
    changes: NDArray[np.float64],
    tolerance: float,
    *,
    more_is_better: bool,
    change: float | None = None,
) -> dict[str, Any]:
    tail = (1 - _CONFIDENCE) / 2
    low, high = (float(value) for value in np.nanquantile(changes, (tail, 1 - tail)))
    verdict: Verdict = "unclear"
    if low > tolerance:
        verdict = "better" if more_is_better else "worse"
    elif high < -tolerance:
        verdict = "worse" if more_is_better else "better"
    elif low >= -tolerance and high <= tolerance:
        verdict = "same"
    change = new / old - 1 if change is None else change
    return {"figure": name, "old": old, "new": new, "change": change, "low": low, "high": high, "verdict": verdict}


def _overall(verdicts: set[Any]) -> Verdict:
    if "worse" in verdicts:
        return "worse"
    if "better" in verdicts:
        return "better"
    return "same" if verdicts == {"same"} else "unclear"


def _at(result: dict[str, Any], path: tuple[str, ...]) -> Any:
    value: Any = result
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value
