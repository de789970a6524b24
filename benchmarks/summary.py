"""The arithmetic of measurements, and the record of where they were made."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from workbench import machine

ROOT = Path(__file__).resolve().parents[1]
_PACKAGES = (
    *("openvino", "tensorflow", "keras", "litserve", "grpcio", "numpy", "pillow"),
    *("pymilvus", "milvus-lite", "faiss-cpu", "annoy"),
)


@dataclass(frozen=True)
class Latency:
    """Percentiles of latencies, in milliseconds; NaN where nothing was measured."""

    p50: float
    p95: float
    p99: float
    max: float


def latency(seconds: NDArray[np.float64]) -> Latency:
    """Returns the percentiles of latencies, float64 [N], in seconds, interpolated between neighbours."""
    if not seconds.size:
        return Latency(math.nan, math.nan, math.nan, math.nan)
    p50, p95, p99, longest = np.percentile(seconds, (50, 95, 99, 100)) * 1e3
    return Latency(float(p50), float(p95), float(p99), float(longest))


def ratio(value: float, base: float | None) -> float:
    """Returns value / base, or NaN where there is no base to compare with."""
    return value / base if base else math.nan


def growth(times: NDArray[np.float64], values: NDArray[np.float64]) -> float:
    """Returns by how much values grow from the first time to the last, on the line that fits them best.

    Args:
        times: float64 [N], at least 2 different ones.
        values: float64 [N], in any unit; the result has the same.
    """
    slope, _ = np.polyfit(times - times[0], values, 1)
    return float(slope * (times[-1] - times[0]))


def surroundings() -> dict[str, Any]:
    """Returns when and where a measurement is made: time, commit, hardware and versions."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "hardware": {
            "processor": machine.processor(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "memory_bytes": psutil.virtual_memory().total,
            "system": platform.platform(),
        },
        "versions": {"python": platform.python_version()} | {name: machine.version(name) for name in _PACKAGES},
    }


def write_json(path: Path, report: dict[str, Any]) -> None:
    """Writes a report; dataclasses become objects, NaN becomes null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_plain(report), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    if hasattr(value, "__dataclass_fields__"):
        value = asdict(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value


def _commit() -> str | None:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return None
