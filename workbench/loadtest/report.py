"""The HTML report of a load test: the plots that show where the limit is, how long calls took, and why."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from workbench import page
from workbench.charts import COLORS, chart
from workbench.loadtest import prometheus, summary
from workbench.loadtest.histogram import VALUES, Histogram

_MOST_LINES = 6
_WIDE = 15.6
_OTHER = "#8a8f99"
_STYLE = """
h2 { margin: 2.4rem 0 .8rem; font-size: 1.15rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 34rem), 1fr)); gap: 1rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 1rem 1.1rem; overflow-x: auto; }
.wide { grid-column: 1 / -1; }
.card p { margin: .5rem 0 0; color: var(--soft); font-size: .85rem; max-width: 44rem; }
table { border-collapse: collapse; width: 100%; font-size: .85rem; font-variant-numeric: tabular-nums; }
th { color: var(--soft); font-weight: 500; text-align: right; white-space: nowrap; }
th, td { padding: .28rem .6rem; border-bottom: 1px solid var(--line); }
tr:last-child td { border-bottom: 0; }
td { text-align: right; white-space: nowrap; }
th.text, td.text { text-align: left; }
.notes { margin: 0 0 1.5rem; padding: .8rem 1.1rem; border-left: 4px solid var(--other);
  background: var(--card); border-radius: 6px; }
.notes li { margin: .15rem 0; }
.notes ul { margin: 0; padding-left: 1.1rem; }
.good { color: var(--match); font-weight: 600; }
.bad { color: var(--other); font-weight: 600; }
.soft { color: var(--soft); }
code { font-size: .85em; overflow-wrap: anywhere; white-space: normal; }
"""


def write(path: Path, result: dict[str, Any]) -> None:
    """Writes the report of a result."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(result), encoding="utf-8")


def render(result: dict[str, Any]) -> str:
    """Returns the report of a result as HTML."""
    parts = [_notes(result), _gates(result), _comparison(result)]
    levels = result["levels"]
    if levels:
        chosen = _chosen(result)
        name = summary.title(chosen)
        plots = [_throughput(result)] if len(levels) > 1 else []
        plots += [_spectrum(result, chosen), _stages(chosen)]
        parts += [_section("Latency", plots), _section(f"Over time, at {name}", _over_time(chosen))]
        parts += [
            _servers(chosen),
            _section("All levels", [_levels(result)]),
            _section("Operations", [_operations(chosen)]),
        ]
    parts.append(_section("How it was measured", [_about(result)]))
    return page.render("Load test", _lead(result), _facts(result), "\n".join(filter(None, parts)), _STYLE)


def _chosen(result: dict[str, Any]) -> dict[str, Any]:
    """Returns the level that the details are shown of: the limit, or the knee, or the last one."""
    levels: list[dict[str, Any]] = result["levels"]
    if result["limit"]:
        levels = [level for level in levels if summary.at_limit(result, level)] or levels
    elif result["knee"] is not None:
        levels = [levels[result["knee"]]]
    return levels[-1]


def _lead(result: dict[str, Any]) -> str:
    names = " and ".join(result["workload"]["operations"])
    status = {
        "complete": "",
        "interrupted": " It was interrupted; this is what ran.",
        "gave up": " It was ended early.",
    }
    return f"{names}, measured from when each call was due.{status[result['status']]}"


def _facts(result: dict[str, Any]) -> dict[str, str]:
    facts = {"time": result["time"]}
    for name, target in result["target"].items():
        facts[name] = target["address"]
    if result["limit"]:
        rate = result["limit"]["rate"]
        facts["limit"] = "none" if rate is None else f"{rate:,.1f} calls/s"
        facts["objective"] = ", ".join(result["limit"]["objective"])
    if result["levels"]:
        level = _chosen(result)
        facts["load"] = summary.title(level)
        facts["good replies"] = f"{level['rates']['goodput']:,.1f}/s"
        timed = level["response_ms" if level["load"]["kind"] == "open" else "service_ms"]
        facts |= {name: f"{summary.ms(timed[name])} ms" for name in ("p50", "p99", "max")}
        share = level["counts"]["error_share"]
        facts["errors"] = "-" if share is None else f"{share:.2%}"
    return facts


def _notes(result: dict[str, Any]) -> str:
    if not result["warnings"]:
        return ""
    return f'<div class="notes"><ul>{"".join(f"<li>{escape(text)}</li>" for text in result["warnings"])}</ul></div>'


def _gates(result: dict[str, Any]) -> str:
    if not result["gates"]:
        return ""
    rows = [
        [
            f"fails if {gate['condition']}",
            gate["figure"],
            '<span class="bad">failed</span>' if gate["failed"] else _GOOD,
        ]
        for gate in result["gates"]
    ]
    return _section("Conditions", [_table(["condition", "figure", ""], rows, safe={2})])


_GOOD = '<span class="good">held</span>'
_VERDICTS = {"better": "good", "worse": "bad", "same": "soft", "unclear": "soft"}


def _comparison(result: dict[str, Any]) -> str:
    if not (found := result.get("comparison")):
        return ""
    rows = [
        [
            level["level"],
            figure["figure"],
            f"{figure['old']:.4g}",
            f"{figure['new']:.4g}",
            f"{figure['change']:+.1%}",
            f"{figure['low']:+.1%} to {figure['high']:+.1%}",
            f'<span class="{_VERDICTS[figure["verdict"]]}">{figure["verdict"]}</span>',
        ]
        for level in found["levels"]
        for figure in level["figures"]
    ]
    note = f"beside the test of {found['old']}: {found['verdict']}."
    if found["differences"]:
        note += f" The tests differ in {', '.join(found['differences'])}."
    table = _table(["level", "figure", "old", "new", "change", "99 % within", "verdict"], rows, note, safe={6})
    return _section("Comparison", [table])


# ---- Charts


def _throughput(result: dict[str, Any]) -> str:
    levels = sorted(result["levels"], key=lambda level: float(level["rates"]["goodput"]))
    key = "response_ms" if levels[0]["load"]["kind"] == "open" else "service_ms"
    levels = [level for level in levels if level[key]["p50"] is not None]
    with chart("Latency against throughput") as drawn:
        axes = drawn.axes
        rates = [level["rates"]["goodput"] for level in levels]
        for color, name in zip(COLORS, ("p50", "p95", "p99"), strict=False):
            axes.plot(rates, [level[key][name] for level in levels], color=color, marker="o", markersize=4, label=name)
        if result["knee"] is not None:
            at = result["levels"][result["knee"]]["rates"]["goodput"]
            axes.axvline(at, color=_OTHER, linestyle="--", linewidth=1.2, label="knee")
        if result["limit"] and result["limit"]["rate"]:
            axes.axvline(result["limit"]["rate"], color=COLORS[6], linewidth=1.2, label="limit")
        axes.set_xlabel("good replies a second")
        axes.set_ylabel("ms")
        _log_ms(axes)
        axes.set_xlim(left=0)
        axes.legend(ncols=5, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2, fontsize=9)
    note = "The knee is where throughput by mean response time is greatest: beyond it, load buys less than it costs."
    return _card(drawn.svg, note if result["knee"] is not None else "")


def _spectrum(result: dict[str, Any], chosen: dict[str, Any]) -> str:
    closed = chosen["load"]["kind"] == "closed"
    lines: list[tuple[str, Histogram, str, str]] = []
    for color, (name, timed) in zip(COLORS, list(chosen["operations"].items())[:_MOST_LINES], strict=False):
        service = Histogram.decode(timed["service_histogram"])
        if closed:
            lines.append((name, service, "-", color))
        else:
            lines.append((name, Histogram.decode(timed["histogram"]), "-", color))
            lines.append((f"{name}, service time", service, ":", color))
    with chart(f"Percentiles of the {'service' if closed else 'response'} time, {summary.title(chosen)}") as drawn:
        axes = drawn.axes
        greatest = 2.0
        for name, histogram, style, color in lines:
            total = len(histogram)
            if not total:
                continue
            used = np.flatnonzero(histogram.counts)
            below = np.cumsum(histogram.counts[used]) / total
            # The last call has no share above it: it stands where half a call would be.
            above = np.maximum(1 - below, 0.5 / total)
            axes.plot(1 / above, VALUES[used] * 1e3, linestyle=style, color=color, label=name)
            greatest = max(greatest, 2.0 * total)
        axes.set_xscale("log")
        _log_ms(axes)
        shares = [2.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6]
        axes.xaxis.set_major_locator(FixedLocator([share for share in shares if share <= greatest]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * (1 - 1 / share):.10g} %"))
        axes.set_xlim(1, greatest)
        axes.set_xlabel("share of the calls that took at most so long")
        axes.set_ylabel("ms")
        axes.legend(fontsize=9)
    return _card(drawn.svg, "" if closed else "Where response and service time part, calls waited to be sent.")


def _over_time(level: dict[str, Any]) -> list[str]:
    series = level["series"]
    seconds = np.arange(len(series["ok"])) + 0.5
    ok, errors = np.array(series["ok"], float), np.array(series["errors"], float)
    with chart("Rate", height=2.7) as rate:
        axes = rate.axes
        axes.fill_between(seconds, ok, step="mid", color=COLORS[2], alpha=0.35, linewidth=0)
        axes.step(seconds, ok, where="mid", color=COLORS[2], label="good replies")
        if errors.any():
            axes.fill_between(
                seconds, ok, ok + errors, step="mid", color=COLORS[6], alpha=0.5, linewidth=0, label="errors"
            )
        axes.step(
            seconds, series["due"], where="mid", color=_OTHER, linewidth=1, linestyle="--", label="sent, by when due"
        )
        axes.set_ylabel("calls a second")
        _time_axis(axes, level, bottom=0)
    with chart("Response time, by when calls were due", height=2.7) as latency:
        for name, color in (("p50", COLORS[0]), ("p99", COLORS[3])):
            values = [math.nan if value is None else value for value in series[f"{name}_ms"]]
            latency.axes.plot(seconds, values, color=color, marker="." if len(values) < 60 else "", label=name)
        latency.axes.set_ylabel("ms")
        _log_ms(latency.axes)
        _time_axis(latency.axes, level)
    with chart("Calls in flight", width=_WIDE, height=2.0) as flight:
        flight.axes.step(seconds, series["in_flight"], where="mid", color=COLORS[4])
        _time_axis(flight.axes, level, bottom=0)
    return [_card(rate.svg), _card(latency.svg), _card(flight.svg, wide=True)]


def _time_axis(axes: Any, level: dict[str, Any], bottom: float | None = None) -> None:
    axes.set_xlim(0, max(1.0, level["seconds"]))
    axes.set_xlabel("seconds")
    if bottom is not None:
        axes.set_ylim(bottom=bottom)
    if len(axes.get_legend_handles_labels()[0]) > 1:
        axes.legend(ncols=3, fontsize=9, loc="lower right", bbox_to_anchor=(1, 0.98), borderaxespad=0)


def _stages(level: dict[str, Any]) -> str:
    bars = {name: _parts(timed["stages_ms"]) for name, timed in level["operations"].items() if timed["stages_ms"]}
    if not bars:
        return ""
    stages = list(dict.fromkeys(stage for parts in bars.values() for stage in parts))
    stages.sort(key=("elsewhere in the server", "network and client").__contains__)
    with chart("Where the time went, mean, ms", width=_WIDE, height=1.6 + 0.4 * len(bars)) as drawn:
        axes = drawn.axes
        left = np.zeros(len(bars))
        colors = iter(COLORS)
        for stage in stages:
            values = np.array([parts.get(stage, 0.0) for parts in bars.values()])
            color = _OTHER if stage == "network and client" else next(colors, _OTHER)
            axes.barh(list(bars), values, left=left, color=color, label=f"{stage}, {values.max():.2g} ms", height=0.55)
            left += values
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.legend(ncols=9, fontsize=9, loc="upper left", bbox_to_anchor=(0, -0.35), borderaxespad=0)
    note = "As the server tells it, of the calls that asked; the rest of the time is the network and this client."
    return _card(drawn.svg, note, wide=True)


def _parts(stages: dict[str, dict[str, float | None]]) -> dict[str, float]:
    """Returns the mean of each stage in milliseconds, and what the server took in none of them."""
    means = {name: figures["mean"] or 0.0 for name, figures in stages.items()}
    outside = means.pop("network and client", 0.0)
    total = means.pop("total", sum(means.values()))
    rest = total - sum(means.values())
    return means | ({"elsewhere in the server": rest} if rest > 0 else {}) | {"network and client": outside}


def _log_ms(axes: Any) -> None:
    """Makes the y axis logarithmic where the values need it, with plain numbers."""
    low, high = axes.dataLim.intervaly
    if low > 0 and high / low > 8:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        if high / low < 100:
            axes.yaxis.set_major_locator(FixedLocator([n * 10**e for e in range(-3, 7) for n in (1, 2, 5)]))
            axes.set_ylim(low * 0.9, high * 1.15)
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(bottom=0)


# ---- Tables


def _levels(result: dict[str, Any]) -> str:
    head = ["load", "verdict", "planned", "sent", "unsent", "ok", "errors", "cut off", "replies/s"]
    head += ["p50", "p90", "p99", "p99.9", "max ms", "late p99", "CPU", "recall"]
    verdicts = {tried["rate"]: tried["verdict"] for tried in (result["limit"] or {"tried": []})["tried"]}
    skipped = {
        head.index(name) for name, there in (("verdict", verdicts), ("recall", _any_recall(result))) if not there
    }
    rows = []
    for level in result["levels"]:
        counts, use = level["counts"], level["client"]
        key = "response_ms" if level["load"]["kind"] == "open" else "service_ms"
        errors = ", ".join(f"{number:,} {code}" for code, number in counts["errors"].items()) or "0"
        rows.append(
            [
                summary.title(level),
                verdicts.get(level["load"].get("rate"), ""),
                *(f"{counts[name]:,}" for name in ("planned", "sent", "unsent", "ok")),
                errors,
                f"{counts['cut_off']:,}",
                f"{level['rates']['goodput']:,.1f}",
                *(summary.ms(level[key][name]) for name in ("p50", "p90", "p99", "p99.9", "max")),
                summary.ms(use["late_ms"]["p99"]),
                " ".join(f"{cores:.0%}" for cores in use["cpu"]),
                f"{level['recall']['mean']:.4f}" if level["recall"] else "",
            ]
        )
    shown = [[cell for column, cell in enumerate(row) if column not in skipped] for row in (head, *rows)]
    note = "planned = sent + unsent; sent = ok + errors + cut off. Late: p99 in ms of how late calls were sent. "
    note += "CPU: of this client's processes, in shares of a core."
    return _table(shown[0], shown[1:], note)


def _any_recall(result: dict[str, Any]) -> bool:
    return any(level["recall"] for level in result["levels"])


def _operations(level: dict[str, Any]) -> str:
    head = ["operation", "", "ok", "replies/s", "mean", "p50", "p90", "p95", "p99", "p99.9", "max ms"]
    rows = []
    for name, timed in level["operations"].items():
        for kind, key in (("response", "response_ms"), ("service", "service_ms")):
            figures = (
                summary.ms(timed[key][column]) for column in ("mean", "p50", "p90", "p95", "p99", "p99.9", "max")
            )
            rows.append([name, kind, f"{timed['ok']:,}", f"{timed['goodput']:,.1f}", *figures])
        for stage, values in timed["stages_ms"].items():
            figures = (summary.ms(values[column]) for column in ("mean", "p50", "p90", "p95", "p99", "p99.9", "max"))
            rows.append(["", f"stage: {stage}", "", "", *figures])
    return _table(head, rows, summary.title(level), left=2)


def _servers(level: dict[str, Any]) -> str:
    servers = level.get("servers")
    if not servers:
        return ""
    rows = []
    for entry in servers["histograms"]:
        scale, unit = (1e3, "ms") if entry["name"].endswith("_seconds") else (1.0, "")
        figures = (f"{entry[name] * scale:,.3g}" for name in ("mean", "p50", "p99"))
        rows.append([prometheus.label(entry), f"{entry['count']:,.0f}", *figures, "", unit])
    rows += [
        [prometheus.label(entry), "", f"{entry['mean']:,.4g}", "", "", f"{entry['max']:,.4g}", ""]
        for entry in servers["gauges"]
        if entry["max"] != entry["mean"]  # what never changed tells nothing
    ]
    note = "Over the same time. Percentiles of histograms are interpolated within a bucket, so they are coarse."
    note += "".join(f" {problem}." for problem in servers["problems"])
    return _section(
        "The servers' own metrics", [_table(["metric", "count", "mean", "p50", "p99", "max", ""], rows, note)]
    )


def _about(result: dict[str, Any]) -> str:
    workload, connection, machine = result["workload"], result["connection"], result["machine"]
    rows = [
        ["command", f"<code>{escape(' '.join(result['command']))}</code>"],
        ["images", escape(_sentence(workload["images"]))],
        ["vectors", escape(" x ".join(str(n) for n in workload["vectors"] or ["none"]))],
        ["collections", escape(", ".join(workload["collections"]) or "none")],
        ["filters", escape(", ".join(workload["filters"]) or "none")],
        ["seed", str(workload["seed"])],
        ["connection", escape(_sentence(connection))],
        ["client's machine", escape(_sentence(machine))],
        ["versions", escape(_sentence(result["versions"]))],
    ]
    rows += [[name, escape(_sentence(target))] for name, target in result["target"].items()]
    body = "".join(
        f'<tr><td class="text soft">{escape(name)}</td><td class="text wide">{text}</td></tr>' for name, text in rows
    )
    return _card(f"<table>{body}</table>".replace('class="text wide"', 'class="text" style="white-space: normal"'))


def _sentence(values: dict[str, Any] | None) -> str:
    if not values:
        return "none"
    return ", ".join(f"{name} {_text(value)}" for name, value in values.items() if value not in (None, "", {}))


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(
            f"{name}: {_sentence(item) if isinstance(item, dict) else item}" for name, item in value.items()
        )
    return f"{value:,.6g}" if isinstance(value, float) else str(value)


def _table(
    head: Sequence[str], rows: Iterable[Sequence[str]], note: str = "", *, left: int = 1, safe: Iterable[int] = ()
) -> str:
    """Returns a table; its cells are text, but for the columns that are `safe`."""
    trusted = set(safe)

    def cell(tag: str, column: int, text: str) -> str:
        content = text if column in trusted else escape(text)
        kind = ' class="text"' if column < left else ""
        return f"<{tag}{kind}>{content}</{tag}>"

    header = "".join(cell("th", column, text) for column, text in enumerate(head))
    body = "".join(f"<tr>{''.join(cell('td', n, text) for n, text in enumerate(row))}</tr>" for row in rows)
    return _card(f"<table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table>", note)


def _card(content: str, note: str = "", *, wide: bool = False) -> str:
    kind = "card wide" if wide else "card"
    below = f"<p>{escape(note)}</p>" if note else ""
    return f'<div class="{kind}">{content}{below}</div>'


def _section(title: str, cards: Sequence[str]) -> str:
    shown = [card for card in cards if card]
    if not shown:
        return ""
    single = ' style="grid-template-columns: 1fr"' if len(shown) == 1 else ""
    return f'<h2>{escape(title)}</h2><div class="cards"{single}>{"".join(shown)}</div>'
