"""The arithmetic of measurements."""

import json
import math
from dataclasses import dataclass

import numpy as np
import pytest

from benchmarks.embedder import Row, _compared
from benchmarks.processes import Metrics, Usage
from benchmarks.soak import grown
from benchmarks.steadiness import Check, _in_vain
from benchmarks.summary import Latency, growth, latency, ratio, write_json


def test_percentiles_are_in_milliseconds_whatever_the_order():
    seconds = np.random.default_rng(0).permutation(np.arange(101) / 1000)
    assert latency(seconds) == Latency(50.0, 95.0, 99.0, 100.0)


def test_of_nothing_there_are_no_percentiles():
    assert all(math.isnan(value) for value in vars(latency(np.array([]))).values())


def test_a_ratio_to_nothing_is_none():
    assert ratio(3.0, 2.0) == 1.5
    assert math.isnan(ratio(3.0, None))
    assert math.isnan(ratio(3.0, 0.0))


def test_growth_is_that_of_the_line_through_noise():
    times = np.linspace(100.0, 160.0, 500)
    noise = np.random.default_rng(0).normal(0, 1.0, 500)
    assert growth(times, 5 + noise) == pytest.approx(0.0, abs=0.5)
    assert growth(times, 5 + (times - 100) / 6 + noise) == pytest.approx(10.0, abs=0.5)


def test_a_report_has_null_for_what_was_not_measured(tmp_path):
    @dataclass
    class Figure:
        value: float

    write_json(tmp_path / "deep" / "report.json", {"rows": [Figure(math.nan), Figure(1.5)]})
    assert json.loads((tmp_path / "deep" / "report.json").read_text()) == {"rows": [{"value": None}, {"value": 1.5}]}


def _row(server, precision, concurrency, rate, batch=1):
    figures = (1.0, int(rate), rate, Latency(1, 1, 1, 1), 1.0, 1.0, 0.0, 1, 1.0, {}, 1.0)
    return Row(server, "call", precision, concurrency, batch, *figures)


def test_rows_are_compared_with_the_bare_runtime_of_their_precision_and_with_peers_at_their_concurrency():
    rows = [
        _row("bare runtime", "f32", 1, 60.0),
        _row("bare runtime", "f32", 2, 100.0),
        _row("bare runtime", "int8", 1, 150.0),
        _row("bare runtime", "int8", 2, 300.0),
        _row("lookalike", "f32", 1, 50.0),
        _row("lookalike", "int8", 16, 270.0),
        _row("lookalike", "int8", 16, 280.0, batch=32),
        _row("tf_function", "f32", 1, 25.0),
        _row("tf_function", "f32", 16, 27.0),
        _row("litserve", "f32", 16, 30.0),
    ]
    _, _, _, _, alone, many, batches, *_, litserve = _compared(rows)
    assert (alone.to_bare, alone.to_tf_function) == (50 / 60, 2.0)
    assert math.isnan(alone.to_litserve)
    assert (many.to_bare, many.to_tf_function, many.to_litserve) == (0.9, 10.0, 9.0)
    assert math.isnan(batches.to_tf_function)
    assert (litserve.to_bare, litserve.to_litserve) == (0.3, 1.0)


def test_a_check_holds_its_bound_and_fails_where_nothing_was_measured():
    assert Check("p99", 3.0, "<=", 3.0, "ms").passed
    assert not Check("p99", 3.1, "<=", 3.0, "ms").passed
    assert Check("goodput", 0.9, ">=", 0.9, "").passed
    assert not Check("goodput", 0.89, ">=", 0.9, "").passed
    assert not Check("p99", math.nan, "<=", 3.0, "ms").passed
    assert not Check("goodput", math.nan, ">=", 0.9, "").passed


@pytest.mark.parametrize(("name", "step"), [("rss_bytes", 1_000_000), ("threads", 1), ("files", 1)])
def test_a_resource_that_grows_after_the_first_third_is_found(name, step):
    def samples(of):
        flat = {"rss_bytes": 200_000_000, "threads": 16, "files": 16}
        return [Usage(time=float(n), **{**flat, name: flat[name] + of(n)}) for n in range(90)]

    assert all(figure.passed for figure in grown(samples(lambda n: 0)).values())
    assert all(figure.passed for figure in grown(samples(lambda n: step * min(n, 30))).values())  # warming up
    found = grown(samples(lambda n: step * n))
    assert [key for key, figure in found.items() if not figure.passed] == [name]


_PAGE = """
# TYPE embedder_images_total counter
embedder_images_total{{outcome="ok"}} {ok}
embedder_images_total{{outcome="expired"}} 7.0
# TYPE embedder_batch_images histogram
embedder_batch_images_bucket{{le="+Inf"}} {ran}
embedder_batch_images_sum {ran}
embedder_batch_images_count {ran}
"""
_EXPIRED = """# TYPE embedder_expired_images_total counter
embedder_expired_images_total{{stage="queue"}} 7.0
embedder_expired_images_total{{stage="run"}} {run}
"""


def test_images_run_in_vain_are_those_neither_answered_nor_given_up_while_they_ran():
    before = Metrics((_PAGE + _EXPIRED).format(ok=10, ran=12, run=2))
    assert _in_vain(before, Metrics((_PAGE + _EXPIRED).format(ok=110, ran=117, run=7))) == 0
    assert _in_vain(before, Metrics((_PAGE + _EXPIRED).format(ok=110, ran=120, run=7))) == 3
