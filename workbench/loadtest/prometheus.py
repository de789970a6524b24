"""The servers' own metrics over the time of a level: from their /metrics pages, or from a Prometheus that has them."""

from __future__ import annotations

import json
import math
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, TypeAlias

from prometheus_client.parser import text_string_to_metric_families

_INTERVAL = 1.0
_TIMEOUT = 5.0
# Our services', and of Milvus what searches and writes are made of.
_PREFIXES = (
    *("embedder_", "search_"),
    *("milvus_proxy_sq_", "milvus_proxy_mutation_", "milvus_querynode_sq_", "milvus_querynode_read_task_"),
)
_TOLD = (
    "queue_wait",
    "stage_duration",
    "batch_images",
    "upstream_duration",
    "milvus_proxy_sq_latency",
    "milvus_querynode_sq_",
)
_GAUGES = frozenset(
    {"embedder_queue_depth", "embedder_inflight_images", "search_milvus_calls_waiting", "search_writes_waiting"}
)
_NOT_TOLD = frozenset({"embedder_stage_duration_seconds{stage=queue}"})  # is queue_wait

_Key: TypeAlias = tuple[str, tuple[tuple[str, str], ...]]
# When it was read, in seconds since 1970, and the value.
_Points: TypeAlias = list[tuple[float, float]]


class Reading:
    """What was read of some addresses."""

    def __init__(self, urls: Sequence[str], begin: float) -> None:
        self._pages = [url for url in urls if urllib.parse.urlsplit(url).path.rstrip("/").endswith("/metrics")]
        self._servers = [url.rstrip("/") for url in urls if url not in self._pages]
        self._series: dict[str, dict[_Key, _Points]] = {url: defaultdict(list) for url in self._pages}
        self._problems: dict[str, str] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._scrape_again_and_again, name="metrics", daemon=True)

    def start(self) -> None:
        """Begins to read pages."""
        if self._pages:
            self._thread.start()

    def stop(self) -> None:
        """Reads them for the last time."""
        self._ended.set()
        if self._pages:
            self._thread.join()

    def result(self, begin: float, end: float) -> dict[str, Any] | None:
        """Returns what happened between two times of the monotonic clock; None if no address was given."""
        if not self._pages and not self._servers:
            return None
        shift = time.time() - time.monotonic()
        sources = dict(self._series)
        for url in self._servers:
            sources[url] = self._query(url, begin + shift, end + shift)
        found = [_figures(url, series, begin + shift) for url, series in sources.items()]
        merged: dict[str, Any] = {
            kind: [entry for figures in found for entry in figures[kind]]
            for kind in ("histograms", "gauges", "counters")
        }
        merged["problems"] = [f"{url}: {problem}" for url, problem in self._problems.items()]
        merged["summary"] = _summary(merged)
        return merged

    def _scrape_again_and_again(self) -> None:
        last = False
        while True:
            for url in self._pages:
                self._scrape(url)
            if last:
                return
            last = self._ended.wait(_INTERVAL)

    def _scrape(self, url: str) -> None:
        try:
            text = _get(url)
            now = time.time()
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    if sample.name.startswith(_PREFIXES):
                        self._series[url][sample.name, tuple(sorted(sample.labels.items()))].append((now, sample.value))
        except (OSError, ValueError) as error:
            self._problems[url] = str(error)

    def _query(self, url: str, begin: float, end: float) -> dict[_Key, _Points]:
        names = "|".join(f"{prefix}.*" for prefix in _PREFIXES)
        # One scrape interval more on either side, so that there is a value from before.
        query = f'{{__name__=~"{names}"}}[{math.ceil(end - begin) + 30}s]'
        series: dict[_Key, _Points] = {}
        try:
            parameters = urllib.parse.urlencode({"query": query, "time": f"{end + 15:.3f}"})
            reply = json.loads(_get(f"{url}/api/v1/query?{parameters}"))
            for entry in reply["data"]["result"]:
                labels = dict(entry["metric"])
                name = labels.pop("__name__")
                if name.startswith(_PREFIXES):
                    series[name, tuple(sorted(labels.items()))] = [(float(t), float(v)) for t, v in entry["values"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._problems[url] = f"not the API of a Prometheus: {error}"
        return series


@contextmanager
def reading(urls: Sequence[str], begin: float) -> Iterator[Reading]:
    """Reads the metrics for as long as the context lasts."""
    found = Reading(urls, begin)
    found.start()
    try:
        yield found
    finally:
        found.stop()


def _get(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise ValueError("an address of metrics begins with http:// or https://")
    with urllib.request.urlopen(url, timeout=_TIMEOUT) as page:  # noqa: S310 - checked above
        text: bytes = page.read()
    return text.decode()


def _figures(url: str, series: dict[_Key, _Points], begin: float) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {"histograms": [], "gauges": [], "counters": []}
    buckets: dict[_Key, list[tuple[float, float]]] = defaultdict(list)
    for (name, labels), points in series.items():
        if name.endswith("_bucket"):
            bound = float(dict(labels)["le"].replace("+Inf", "inf"))
            rest = tuple(pair for pair in labels if pair[0] != "le")
            buckets[name.removesuffix("_bucket"), rest].append((bound, _more(points, begin)))
    for (name, labels), points in series.items():
        if name.endswith(("_bucket", "_created", "_info")):
            continue
        base = name.removesuffix("_count").removesuffix("_sum")
        about = {"source": url, "name": base, "labels": dict(labels)}
        if (base, labels) in buckets:
            if name.endswith("_count") and (count := _more(points, begin)) > 0:
                total = _more(series.get((f"{base}_sum", labels), []), begin)
                steps = sorted(buckets[base, labels])
                quantiles = {f"p{q * 100:g}": _quantile(steps, q) for q in (0.5, 0.99)}
                found["histograms"].append(about | {"count": count, "mean": total / count} | quantiles)
        elif name.endswith(("_total", "_sum", "_count")):
            found["counters"].append(about | {"name": name, "increase": _more(points, begin)})
        else:
            values = [value for moment, value in points if moment >= begin]
            if values:
                found["gauges"].append(about | {"mean": sum(values) / len(values), "max": max(values)})
    return found


def _more(points: _Points, begin: float) -> float:
    """Returns by how much a counter grew from `begin`, or the last reading before it."""
    if not points:
        return 0.0
    first = max(0, bisect_right([moment for moment, _ in points], begin) - 1)
    values = [value for _, value in points[first:]]
    # After a restart it begins again at 0.
    return sum(max(0.0, now - before) if now >= before else now for before, now in pairwise(values))


def _quantile(steps: Sequence[tuple[float, float]], q: float) -> float:
    """Returns a quantile from cumulative buckets, interpolated as Prometheus does."""
    rank, below, lower = q * steps[-1][1], 0.0, 0.0
    for bound, count in steps:
        if count >= rank:
            return lower if math.isinf(bound) else lower + (bound - lower) * (rank - below) / max(count - below, 1e-12)
        below, lower = count, bound
    return lower


def _summary(figures: dict[str, Any]) -> list[str]:
    """Returns the figures that tell where time went, a line each."""
    lines: list[str] = []
    for entry in figures["histograms"]:
        name = label(entry)
        if any(part in entry["name"] for part in _TOLD) and name not in _NOT_TOLD:
            scale, unit = (1e3, " ms") if entry["name"].endswith("_seconds") else (1.0, "")
            mean, p99 = entry["mean"] * scale, entry["p99"] * scale
            lines.append(f"{name}: {entry['count']:,.0f}, mean {mean:.3g}{unit}, p99 about {p99:.3g}{unit}")
    lines += [
        f"{label(entry)}: mean {entry['mean']:.3g}, most {entry['max']:.3g}"
        for entry in figures["gauges"]
        if entry["name"] in _GAUGES
    ]
    return [*lines, *figures["problems"]]


def label(entry: dict[str, Any]) -> str:
    """Returns the name of a figure with its labels, without those that only say where it was read."""
    told = [
        f"{key}={value}" for key, value in entry["labels"].items() if key not in {"instance", "job", "node_id", "pod"}
    ]
    return f"{entry['name']}{{{','.join(told)}}}" if told else str(entry["name"])
