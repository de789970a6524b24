"""The result of a load test as JSON. docs/load-testing.md describes it; `SCHEMA` grows when a reader must change."""

from __future__ import annotations

import json
import math
import os
import platform
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hdrh.histogram import HdrHistogram

from workbench import machine
from workbench.errors import CommandError
from workbench.loadtest.load import ClosedLoop, Load, OpenLoop
from workbench.loadtest.operations import Workload
from workbench.loadtest.record import Counts, Record, Timed, milliseconds
from workbench.loadtest.schedule import describe

SCHEMA = 1
_LAST = ("total", "network and client")
_PACKAGES = ("lookalike", "grpcio", "protobuf", "numpy")


def of_level(record: Record, *, complete: bool, limits: list[str]) -> dict[str, Any]:
    """Returns what the result says of a level."""
    use = record.client()
    return {
        "load": of_load(record.job.load),
        "seconds": record.seconds,
        "complete": complete,
        "counts": of_counts(record.counts),
        "rates": {"offered": record.offered, "goodput": record.goodput},
        **of_timed(record.all),
        "operations": {
            name: {"ok": timed.ok, "errors": dict(timed.errors), "goodput": timed.replied / record.seconds}
            | of_timed(timed)
            for name, timed in zip(record.names, record.operations, strict=True)
        },
        "details": record.details,
        "outages": [asdict(outage) for outage in record.outages()],
        "client": {"limit": bool(limits), "reasons": limits, **asdict(use)},
        "series": {
            "due": [second.due for second in record.series],
            "ok": [second.ok for second in record.series],
            "errors": [second.errors for second in record.series],
            "in_flight": [second.in_flight for second in record.series],
            "p50_ms": [second.percentile(50) * 1e3 for second in record.series],
            "p99_ms": [second.percentile(99) * 1e3 for second in record.series],
        },
        "windows": [
            {"ok": window.ok, "errors": window.errors.total(), "histogram": window.response.encode()}
            for window in record.windows
        ],
    }


def of_load(load: Load) -> dict[str, Any]:
    """Returns what the result says of the calls that were wanted."""
    if isinstance(load, ClosedLoop):
        return {"kind": "closed", "callers": load.callers, "warm_up_seconds": load.warm_up_seconds}
    assert isinstance(load, OpenLoop)
    schedule = load.schedule
    return {
        "kind": "open",
        "arrivals": "trace" if schedule.trace is not None else schedule.arrivals,
        "rate": schedule.rate,
        "profile": describe(schedule.segments) if schedule.trace is None else None,
        "warm_up_seconds": load.warm_up_seconds,
    }


def of_counts(counts: Counts) -> dict[str, Any]:
    """Returns the counts: planned = sent + unsent, sent = ok + errors + cut_off."""
    return {
        "planned": counts.planned,
        "sent": counts.sent,
        "unsent": counts.unsent,
        "unsent_crowded": counts.crowded,
        "unsent_overdue": counts.overdue,
        "ok": counts.ok,
        "errors": dict(sorted(counts.errors.items())),
        "cut_off": counts.cut_off,
        "error_share": counts.error_share,
    }


def of_timed(timed: Timed) -> dict[str, Any]:
    """Returns latencies and their histogram."""
    return {
        "response_ms": milliseconds(timed.response),
        "service_ms": milliseconds(timed.service),
        "stages_ms": {
            name: milliseconds(timed.stages[name])
            for name in sorted(timed.stages, key=lambda name: name in _LAST and 1 + _LAST.index(name))
        },
        "histogram": timed.response.encode(),
        "service_histogram": timed.service.encode(),
    }


def of_workload(workload: Workload) -> dict[str, Any]:
    """Returns what the result says of what was sent."""
    images = workload.images
    return {
        "operations": dict(workload.operations),
        "images": images and {"source": images.source, "count": len(images.files), "mean_bytes": images.mean_bytes},
        "vectors": None if workload.vectors is None else list(workload.vectors.shape),
        "collections": list(workload.collections),
        "tenants": len([name for name in workload.tenants if name]),
        "filters": [expression for expression in workload.filters if expression],
        "top_k": list(workload.top_k),
        "ef": workload.ef,
        "batch": workload.batch,
        "seed": workload.seed,
    }


def surroundings() -> dict[str, Any]:
    """Returns when, where and how the test is run."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": ["lookalike", *sys.argv[1:]],
        "machine": {
            "processor": machine.processor(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "system": platform.platform(),
        },
        "versions": {"python": platform.python_version()} | {name: machine.version(name) for name in _PACKAGES},
    }


def write(path: Path, result: dict[str, Any]) -> None:
    """Writes a plain result."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read(path: Path) -> dict[str, Any]:
    """Reads a result.

    Raises:
        CommandError: the file is none, or of another schema.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        schema = result["schema"]
        levels: list[Any] = result["levels"]
    except (ValueError, KeyError, TypeError) as error:
        raise CommandError(f"{path} is not the result of a load test: {error}") from error
    if schema != SCHEMA or not levels:
        raise CommandError(f"{path} has schema {schema} and {len(levels)} levels; this program reads schema {SCHEMA}")
    found: dict[str, Any] = result
    return found


def write_hdr(path: Path, began: datetime, levels: list[dict[str, Any]]) -> None:
    """Writes the histograms as an HdrHistogram log: an interval for each level and operation, tagged with both."""
    lines = ["#[Histogram log format version 1.3]", f"#[StartTime: {began.timestamp():.3f} (seconds since epoch)]"]
    lines.append('"StartTimestamp","Interval_Length","Interval_Max","Interval_Compressed_Histogram"')
    start = 0.0
    for number, level in enumerate(levels, 1):
        for name, operation in level["operations"].items():
            text = operation["histogram"]
            top = HdrHistogram.decode(text).get_max_value() / 1e3
            lines.append(f"Tag={name}.{number},{start:.3f},{level['seconds']:.3f},{top:.3f},{text}")
        start += level["seconds"]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def plain(value: Any) -> Any:
    """Returns a value as JSON has it: six digits of each number, and None for what is no number."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
