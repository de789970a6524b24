"""The figures of a load test as text for a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

_COLUMNS = ("p50", "p90", "p95", "p99", "p99.9", "max")


def render(result: dict[str, Any]) -> str:
    """Returns the summary of a result."""
    if result["limit"]:
        parts = [curve(result), *(_level(level) for level in result["levels"] if at_limit(result, level))]
        parts.append(_limit(result["limit"]))
    else:
        parts = [_level(level) for level in result["levels"]]
    if result["knee"] is not None:
        level = result["levels"][result["knee"]]
        parts.append(f"knee      {title(level)}: {level['rates']['goodput']:,.1f} good replies/s")
    parts += [
        f"{'FAIL' if gate['failed'] else 'ok  '}      {gate['condition']}  ({gate['figure']})"
        for gate in result["gates"]
    ]
    parts += [f"warning   {warning}" for warning in result["warnings"]]
    return "\n".join(parts)


def title(level: dict[str, Any]) -> str:
    """Returns how a level is called."""
    load = level["load"]
    if load["kind"] == "closed":
        return f"{load['callers']} caller{'s' if load['callers'] > 1 else ''}"
    return f"{load['rate']:,.4g} calls/s ({load['arrivals']})"


def counts(level: dict[str, Any]) -> str:
    """Returns the counts of a level in a line."""
    found = level["counts"]
    sums = f"{found['planned']:,} planned = {found['sent']:,} sent + {found['unsent']:,} unsent"
    errors = "".join(f" + {number:,} {code}" for code, number in found["errors"].items())
    cut_off = f" + {found['cut_off']:,} cut off" if found["cut_off"] else ""
    return f"{sums}; {found['sent']:,} sent = {found['ok']:,} ok{errors}{cut_off}"


def at_limit(result: dict[str, Any], level: dict[str, Any]) -> bool:
    """Whether a level is the one that the search for the limit found."""
    return result["limit"]["rate"] is not None and level["load"]["rate"] == result["limit"]["rate"]


def curve(result: dict[str, Any]) -> str:
    """Returns the levels as a table, a row each."""
    verdicts = {tried["rate"]: tried["verdict"] for tried in (result["limit"] or {"tried": []})["tried"]}
    rows = [["load", "verdict", "replies/s", "p50 ms", "p99 ms", "errors"]]
    for level in result["levels"]:
        response = level["response_ms"]
        share = level["counts"]["error_share"]
        row = [title(level), verdicts.get(level["load"].get("rate"), ""), f"{level['rates']['goodput']:,.1f}"]
        rows.append([*row, ms(response["p50"]), ms(response["p99"]), "-" if share is None else f"{share:.2%}"])
    return "\n" + columns(rows)


def _level(level: dict[str, Any]) -> str:
    rates = level["rates"]
    lines = [
        f"\n{title(level)}, {level['seconds']:.1f} s" + ("" if level["complete"] else ", ended before its time"),
        f"  rate    {rates['offered']:,.1f} calls/s came due, {rates['goodput']:,.1f} good replies/s",
        f"  counts  {counts(level)}",
        _table(level),
    ]
    stages = _stages(level)
    if stages:
        lines.append(stages)
    if recall := level.get("recall"):
        mean, worst = recall["mean"], recall["worst"]
        lines.append(f"  recall  {mean:.4f} in the mean, {worst:.4f} at worst, of {recall['compared']} searches")
    lines += [f"  server  {line}" for line in (level.get("servers") or {}).get("summary", [])]
    for outage in level["outages"]:
        end = f"until {outage['end']:.0f} s" if outage["over"] else "until the end"
        why = level["details"].get("UNAVAILABLE", "")
        lines.append(
            f"  DOWN    from {outage['begin']:.0f} s {end} no server answered: {outage['calls']:,} calls ({why})"
        )
    for code, message in level["details"].items():
        if code != "UNAVAILABLE" or not level["outages"]:
            lines.append(f"  {code}: {message}")
    use = level["client"]
    cpu = ", ".join(f"{cores:.0%}" for cores in use["cpu"])
    late = use["late_ms"]
    lines.append(
        f"  client  {cpu} of a core; calls sent late by {ms(late['p50'])} ms (p50), {ms(late['p99'])} ms (p99); "
        f"{use['late']:,} by more than 20 ms"
    )
    return "\n".join(lines)


def _table(level: dict[str, Any]) -> str:
    rows = [["  ms", "", "ok", "mean", *_COLUMNS]]
    named = list(level["operations"].items())
    if len(named) > 1:
        named.append(("all", level | {"ok": level["counts"]["ok"]}))
    for name, timed in named:
        kinds = [("response", "response_ms"), ("service", "service_ms")]
        for kind, key in kinds[1:] if level["load"]["kind"] == "closed" else kinds:
            figures = timed[key]
            rows.append(
                [f"  {name}", kind, f"{timed['ok']:,}", *(ms(figures[column]) for column in ("mean", *_COLUMNS))]
            )
    return columns(rows)


def _stages(level: dict[str, Any]) -> str:
    rows = [
        [f"  {name}", stage, "", ms(figures["mean"]), *(ms(figures[column]) for column in _COLUMNS)]
        for name, timed in level["operations"].items()
        for stage, figures in timed["stages_ms"].items()
    ]
    return columns([["  stage, ms", "", "", "mean", *_COLUMNS], *rows]) if rows else ""


def _limit(limit: dict[str, Any]) -> str:
    objective = ", ".join(limit["objective"])
    if limit["rate"] is None:
        return f"\nlimit     no rate held {objective}"
    found = f"\nlimit     {limit['rate']:,.1f} calls/s held {objective}"
    if limit["broken"] is not None:
        found += f"; {limit['broken']:,.1f} did not"
    return found + (" (this client was the limit, the services may bear more)" if limit["client_limited"] else "")


def ms(value: float | None) -> str:
    """Returns milliseconds with the digits that matter."""
    if value is None or math.isnan(value):
        return "-"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Returns rows as text in columns: the first two to the left, figures to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if n < 2 else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
