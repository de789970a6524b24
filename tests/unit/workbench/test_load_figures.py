"""The figures of load tests: histograms, counts, gates, the limit, the comparison, the servers' metrics."""

from __future__ import annotations

import argparse
import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest

pytest.importorskip("hdrh", reason="the load test needs hdrhistogram: pip install 'lookalike[loadtest]'")

from hdrh.histogram import HdrHistogram
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client import Histogram as PrometheusHistogram

from workbench.loadtest import compare, gates, limit, prometheus, result
from workbench.loadtest.histogram import Histogram
from workbench.loadtest.limit import Judge, Probe, Verdict
from workbench.loadtest.load import SAMPLE, Batch, Job, OpenLoop
from workbench.loadtest.operations import CODES, CUT_OFF
from workbench.loadtest.record import Record
from workbench.loadtest.schedule import steady
from workbench.loadtest.settings import FindMax


def test_a_histogram_is_the_one_that_hdrhistogram_makes() -> None:
    values = np.exp(np.random.default_rng(1).uniform(np.log(2e-6), np.log(3000), 5000))
    ours, theirs = Histogram(), HdrHistogram(1, 3_600_000_000, 3)
    ours.record(values)
    for value in np.rint(values * 1e6):
        theirs.record_value(int(value))
    for percent in (10, 50, 90, 99, 99.9):
        assert ours.percentile(percent) == pytest.approx(theirs.get_value_at_percentile(percent) / 1e6)
        assert ours.percentile(percent) == pytest.approx(np.percentile(values, percent), rel=0.02, abs=1e-6)
    again = HdrHistogram.decode(ours.encode())
    assert again.get_total_count() == 5000
    assert np.array_equal(Histogram.decode(ours.encode()).counts, ours.counts)


def test_nothing_has_no_percentile() -> None:
    assert math.isnan(Histogram().percentile(99))
    assert math.isnan(Histogram().mean())


# ---- Counts


def _batch(samples: list[tuple[float, float, float, int, int, bool]], **more: Any) -> Batch:
    fields: dict[str, Any] = {"planned": sum(sample[5] for sample in samples), "crowded": 0, "overdue": 0} | more
    array, none = np.array(samples, SAMPLE), np.array([])
    defaults: dict[str, Any] = {"process": 0, "stages": [], "recall": [], "details": {}, "lags": none, "cpu": 0.0}
    return Batch(samples=array, **{**defaults, "in_flight": 0, "time": 1e9, **fields})


def _record(seconds: float = 10.0, rate: float = 10.0) -> Record:
    return Record(Job(OpenLoop(steady(rate, seconds, "constant", 1)), 100.0, 5.0, 100), ["embed"], 1)


def test_counts_add_up_and_the_warm_up_is_not_in_them() -> None:
    record = _record()
    unavailable = CODES.index("UNAVAILABLE")
    record.add(_batch([(99.0, 99.0, 99.5, 0, 0, False), (99.9, 99.9, 100.4, 0, 0, False)]))
    record.add(_batch([(100.0, 100.1, 100.3, 0, 0, True), (101.0, 101.0, 101.5, 0, unavailable, True)]))
    record.add(_batch([(102.0, 102.0, 102.5, 0, CUT_OFF, True)], planned=4, crowded=2, overdue=1))
    counts = record.counts
    assert (counts.planned, counts.sent, counts.unsent, counts.ok, counts.cut_off) == (6, 3, 3, 1, 1)
    assert counts.errors == {"UNAVAILABLE": 1}
    assert counts.add_up
    assert record.all.response.percentile(50) == pytest.approx(0.3, rel=0.01)  # from when it was due
    assert record.all.service.percentile(50) == pytest.approx(0.2, rel=0.01)
    # A reply within the time counts for the throughput, also to a call of the warm-up.
    assert record.goodput == pytest.approx(2 / 10)


def test_an_outage_lasts_from_the_last_good_reply_to_the_next() -> None:
    record = _record()
    unavailable = CODES.index("UNAVAILABLE")
    ends = [(100.5, 0), (101.5, unavailable), (102.5, unavailable), (103.5, 0), (109.5, unavailable)]
    record.add(_batch([(end, end, end, 0, code, True) for end, code in ends]))
    first, second = record.outages()
    assert (first.begin, first.end, first.calls, first.over) == (1, 3, 2, True)
    assert (second.begin, second.over) == (9, False)


# ---- Gates


@pytest.mark.parametrize(
    ("text", "failed"),
    [("p99>150ms", True), ("p50>150ms", False), ("errors>0.1%", True), ("rate<100", True), ("embed.p99>1s", False)],
)
def test_a_condition_is_met_or_not(text: str, failed: bool) -> None:
    record = _record()
    slow, internal = [(100.0, 100.0, 100.2, 0, 0, True)] * 5, CODES.index("INTERNAL")
    quick = [(100.0, 100.0, 100.01, 0, 0, True)] * 95
    record.add(_batch([*slow, *quick, (100.0, 100.0, 100.0, 0, internal, True)]))
    bound = gates.parse_gate(text)
    assert bound.holds(gates.figure(record, bound)) is failed


@pytest.mark.parametrize(
    "text", ["p99", "p99=1s", "p99>fast", "speed>1", "nothing.p99>1s", "embed.recall<1", "errors>200%"]
)
def test_what_is_no_condition_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        gates.parse_gate(text)


def test_an_objective_is_the_most_that_is_allowed() -> None:
    p99, errors = gates.parse_objective("p99=100ms, errors=0.1%")
    assert p99.holds(0.1)
    assert not p99.holds(0.11)
    assert not p99.holds(math.nan)
    assert (errors.figure, errors.value) == ("errors", 0.001)


# ---- The limit

_FIND = FindMax(gates.parse_objective("p99=100ms,errors=1%"), None, 1e4, 1.0, 10, 0.02, "constant")


def _judged(latency: Callable[[float], float], code: Callable[[float], int] = lambda due: 0) -> tuple[Verdict, Judge]:
    """Judges a rate of 100/s, of which a call that is due at a time has a latency and a code."""
    return _judge(100, [(due, due + latency(due), code(due)) for due in np.arange(0, 10, 0.01).tolist()])


def _judge(rate: float, calls: list[tuple[float, float, int]]) -> tuple[Verdict, Judge]:
    """Judges a rate by calls: when each was due and ended, in seconds from the begin, and its code."""
    load, begin = OpenLoop(steady(rate, 10, "constant", 1)), 50.0
    judge = Judge(_FIND, load, begin, ["embed"])
    verdict: Verdict | None = None
    for now in np.arange(begin + 0.25, begin + 13, 0.25).tolist():
        ended = [call for call in calls if now - 0.25 < begin + call[1] <= now]
        samples = [(begin + due, begin + due, begin + end, 0, code, True) for due, end, code in ended]
        judge.add(_batch(samples, time=now))
        if verdict := judge.verdict(now):
            break
    assert verdict is not None
    return verdict, judge


def test_a_rate_holds_after_three_stable_windows() -> None:
    verdict, judge = _judged(lambda due: 0.02)
    assert verdict == "holds"
    assert len(judge.windows) == 3


def test_a_rate_that_starts_badly_may_hold_when_it_has_settled() -> None:
    verdict, judge = _judged(lambda due: 0.3 if due < 2 else 0.02)
    assert verdict == "holds"
    assert len(judge.windows) == 5


def test_a_rate_fails_that_breaks_the_objective_in_three_windows() -> None:
    assert _judged(lambda due: 0.15)[0] == "fails"
    assert _judged(lambda due: 0.02, lambda due: 8 if int(due * 100) % 20 == 0 else 0)[0] == "fails"


def test_a_growing_backlog_is_not_taken_for_a_rate_that_holds() -> None:
    # A server of 95/s: each second 50 ms are added; the first windows are within the objective.
    assert _judged(lambda due: 0.005 + 0.05 * due)[0] == "fails"


def test_noise_within_the_objective_is_no_reason_to_fail() -> None:
    random = np.random.default_rng(3)
    assert _judged(lambda due: float(random.choice([0.01, 0.05, 0.09])))[0] == "holds"


@pytest.mark.parametrize("capacity", [7.3, 130.0, 999.0, 50_000.0])
def test_the_search_closes_in_on_the_limit(capacity: float) -> None:
    found = limit.search(_FIND, 50.0, lambda rate: Probe("holds" if rate <= capacity else "fails", [], False))
    expected = min(capacity, _FIND.most)
    assert found.rate == pytest.approx(expected, rel=0.025)
    assert len(found.tried) < 20


@pytest.mark.parametrize("first", [Probe("unstable", [], False), Probe("fails", [], True)])
def test_a_doubtful_run_is_given_another_chance(first: Probe) -> None:
    outcomes = iter([first, Probe("holds", [], False)])
    assert limit.search(_FIND, 1e4, lambda rate: next(outcomes)).rate == 1e4


@pytest.mark.parametrize("queue_seconds", [0.05, 0.3])
def test_the_capacity_of_a_single_queue_is_found_within_three_percent(queue_seconds: float) -> None:
    capacity = 333.0

    def probe(rate: float) -> Probe:
        free, calls = 0.0, []
        for due in np.arange(0, 10, 1 / rate).tolist():
            done = max(free, due) + 1 / capacity
            refused = done - due > queue_seconds
            free = free if refused else done
            calls.append((due, due if refused else done, 8 if refused else 0))
        verdict, judge = _judge(rate, calls)
        return Probe(verdict, judge.last_figures(), False)

    found = limit.search(_FIND, 40.0, probe)
    assert found.rate == pytest.approx(capacity, rel=0.03), found.tried


def test_the_knee_is_where_power_is_greatest() -> None:
    rates = [10.0, 20, 40, 60, 80, 90, 95]
    # A single queue of 100/s with random service times: the knee is at half of its capacity.
    means = [1 / (100 - rate) for rate in rates]
    assert limit.knee(rates, means) in {2, 3}
    assert limit.knee([1.0, 2.0], [1.0, 1.0]) is None


# ---- The comparison


def _result(seed: int, scale: float = 1.0, spread: float = 0.2, errors: int = 0) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    record = _record(20.0, 100.0)
    samples = []
    for window in range(20):
        slow = random.lognormal(0, spread)  # what is slow together
        times = np.linspace(100 + window, 100.99 + window, 100)
        ends = times + 0.01 * scale * slow * random.lognormal(0, 0.3, 100)
        samples += [(due, due, end, 0, 0, True) for due, end in zip(times.tolist(), ends.tolist(), strict=True)]
    samples += [(due, due, due, 0, 2, True) for due in np.linspace(100, 119.9, errors).tolist()]
    record.add(_batch(samples))
    level = result.of_level(record, complete=True, limits=[])
    plain: dict[str, Any] = result.plain({"time": "then", "levels": [level], "limit": None})
    return plain


def _verdicts(old: dict[str, Any], new: dict[str, Any]) -> dict[str, str]:
    found = compare.compare(old, new, 0.05, 1)
    return {figure["figure"]: figure["verdict"] for figure in found["levels"][0]["figures"]}


def test_twice_the_latency_is_worse_and_half_is_better() -> None:
    assert _verdicts(_result(1), _result(2, 2.0))["p50 ms"] == "worse"
    assert _verdicts(_result(1), _result(2, 0.5))["p99 ms"] == "better"
    assert _verdicts(_result(1), _result(2, errors=100))["errors"] == "worse"


def test_noise_alone_is_never_worse() -> None:
    found = [_verdicts(_result(seed), _result(seed + 100)) for seed in range(12)]
    wrong = [verdicts for verdicts in found if {"worse", "better"} & set(verdicts.values())]
    assert len(wrong) <= 1, wrong  # of each figure, one in a hundred is drawn


def test_calm_results_that_are_equal_are_the_same() -> None:
    assert _verdicts(_result(1, spread=0.005), _result(2, spread=0.005))["p50 ms"] == "same"


# ---- The servers' metrics


@pytest.fixture
def metrics() -> Iterator[tuple[str, CollectorRegistry]]:
    """A /metrics page, and the API of a Prometheus that has read it every second."""
    registry = CollectorRegistry()
    history: list[tuple[float, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            text = generate_latest(registry)
            if url.path == "/api/v1/query":
                assert "embedder_" in parse_qs(url.query)["query"][0]
                text = _as_range(history).encode()
            history.append((time.time(), generate_latest(registry).decode()))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", registry
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _as_range(history: list[tuple[float, str]]) -> str:
    from prometheus_client.parser import text_string_to_metric_families

    series: dict[tuple[tuple[str, str], ...], list[list[Any]]] = {}
    for moment, text in history:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                key = tuple(sorted({**sample.labels, "__name__": sample.name}.items()))
                series.setdefault(key, []).append([moment, str(sample.value)])
    found = [{"metric": dict(key), "values": values} for key, values in series.items()]
    return json.dumps({"status": "success", "data": {"resultType": "matrix", "result": found}})


def test_metrics_are_those_of_the_time_of_the_level(metrics: tuple[str, CollectorRegistry]) -> None:
    url, registry = metrics
    wait = PrometheusHistogram("embedder_queue_wait_seconds", "h", buckets=(0.01, 0.1, 1), registry=registry)
    depth = Gauge("embedder_queue_depth", "g", registry=registry)
    total = Counter("embedder_images_total", "c", ["outcome"], registry=registry)
    other = Counter("python_things_total", "c", registry=registry)
    for _ in range(50):
        wait.observe(0.9)  # before the level
    total.labels("ok").inc(50)
    with prometheus.reading([f"{url}/metrics"], time.monotonic()) as reading:
        deadline = time.monotonic() + 5
        while not reading._series[f"{url}/metrics"] and time.monotonic() < deadline:
            threading.Event().wait(0.01)
        begin = time.monotonic()
        for _ in range(10):
            wait.observe(0.05)
        depth.set(7)
        total.labels("ok").inc(10)
        other.inc()
    for found in (reading.result(begin, time.monotonic()), _from_api(url, begin)):
        assert found is not None
        assert found["problems"] == []
        (histogram,) = found["histograms"]
        assert (histogram["count"], histogram["mean"]) == (10, pytest.approx(0.05))
        assert 0.01 <= histogram["p50"] <= 0.1
        assert [gauge["max"] for gauge in found["gauges"]] == [7]
        assert [counter["increase"] for counter in found["counters"]] == [10]


def _from_api(url: str, begin: float) -> dict[str, Any] | None:
    with prometheus.reading([url], begin) as reading:
        pass
    return reading.result(begin, time.monotonic())


def test_metrics_that_cannot_be_read_are_said_and_do_not_end_the_test() -> None:
    with prometheus.reading(["http://127.0.0.1:9/metrics"], time.monotonic()) as reading:
        pass
    found = reading.result(time.monotonic(), time.monotonic())
    assert found is not None
    assert "http://127.0.0.1:9/metrics" in found["summary"][0]
