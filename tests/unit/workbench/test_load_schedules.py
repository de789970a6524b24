"""When calls are due, and what each carries: by the seed alone."""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lookalike.embedder.v1 import embedder_pb2
from lookalike.search.v1 import search_pb2

pytest.importorskip("hdrh", reason="the load test needs hdrhistogram: pip install 'lookalike[loadtest]'")

from workbench.errors import CommandError
from workbench.loadtest import quantities
from workbench.loadtest.operations import Chooser, Workload, build
from workbench.loadtest.payloads import Images, from_folder, parse_sizes, random_vectors, synthetic
from workbench.loadtest.schedule import Schedule, parse_profile, read_trace, steady
from workbench.loadtest.worker import _Share


def _times(schedule: Schedule) -> NDArray[np.float64]:
    return np.concatenate(list(schedule.times()))


def test_constant_arrivals_are_evenly_spaced() -> None:
    times = _times(steady(250, 4, "constant", 1))
    assert len(times) == 1000
    assert np.allclose(np.diff(times), 1 / 250)
    assert times[0] == 0


def test_poisson_arrivals_have_independent_gaps_and_the_rate_asked_for() -> None:
    times = _times(steady(200, 100, "poisson", 7))
    gaps = np.diff(times)
    assert len(times) == pytest.approx(20_000, rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, abs=0.03)
    assert np.corrcoef(gaps[:-1], gaps[1:])[0, 1] == pytest.approx(0.0, abs=0.03)


def test_a_schedule_is_the_same_for_the_same_seed_alone() -> None:
    assert np.array_equal(_times(steady(50, 5, "poisson", 1)), _times(steady(50, 5, "poisson", 1)))
    assert not np.array_equal(_times(steady(50, 5, "poisson", 1))[:50], _times(steady(50, 5, "poisson", 2))[:50])


def test_a_profile_of_steps_and_ramps_has_its_rate_at_each_time() -> None:
    times = _times(Schedule(parse_profile("100@2s,0..400@4s,400..0@2s,50@1s"), "constant"))
    counts = np.histogram(times, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])[0]
    # Areas below the profile, second by second.
    assert np.abs(counts - [100, 100, 50, 150, 250, 350, 300, 100, 50]).max() <= 1
    assert (np.diff(times) > 0).all()


@pytest.mark.parametrize("text", ["", "100", "100@", "fast@3s", "0@3s", "10@0s", "1..2..3@1s"])
def test_what_is_no_profile_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        parse_profile(text)


def test_a_trace_is_replayed_from_its_first_time(tmp_path: Path) -> None:
    file = tmp_path / "trace"
    file.write_text("# recorded\n1000.5\n1000.25\n1003.0 # last\n\n")
    schedule = Schedule(trace=read_trace(file))
    assert _times(schedule).tolist() == [0.0, 0.25, 2.75]
    file.write_text("1\ntwo\n")
    with pytest.raises(CommandError, match="line 2: 'two'"):
        read_trace(file)


def test_processes_share_the_calls_without_gap_or_overlap() -> None:
    schedule = steady(3000, 3, "poisson", 5)
    whole = list(enumerate(_times(schedule).tolist()))
    parts = [list(_Share(process, 3).due(schedule)) for process in range(3)]
    assert sorted(call for part in parts for call in part) == whole
    assert [_Share(process, 3).of(10) for process in range(3)] == [4, 3, 3]


@pytest.mark.parametrize(
    ("text", "found"),
    [("50", [50.0]), ("1,2.5", [1.0, 2.5]), ("10:30:10", [10.0, 20.0, 30.0]), ("1:16:x4", [1.0, 4.0, 16.0])],
)
def test_levels_are_numbers_steps_or_factors(text: str, found: list[float]) -> None:
    assert quantities.levels(text) == found


@pytest.mark.parametrize("text", ["", "x", "1:2", "1:10:x1", "0", "-5", "5:1:1", "1:100000:1"])
def test_what_is_no_level_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        quantities.levels(text)


def test_durations_and_shares_have_units() -> None:
    assert [quantities.duration(text) for text in ("100ms", "1.5s", "2m", "3")] == [0.1, 1.5, 120.0, 3.0]
    assert [quantities.share(text) for text in ("0.1%", "0.5")] == [0.001, 0.5]
    for wrong in ("5 parsecs", "", "0s", "-1s"):
        with pytest.raises(argparse.ArgumentTypeError):
            quantities.duration(wrong)


# ---- What calls carry

_WORKLOAD = Workload(
    (("embed", 3.0), ("search-image", 1.0), ("search-vector", 1.0), ("upsert-image", 1.0), ("upsert-vector", 1.0)),
    images=Images((b"one image", b"another one"), (1.0, 3.0), "made"),
    vectors=random_vectors(5, 4, 1),
    fingerprint="f" * 8,
    collections=("a", "b"),
    tenants=("t", "u"),
    filters=("", 'attributes["n"] > 1'),
    top_k=(5, 10),
    batch=3,
    rows=100,
    ef=99,
    seed=4,
)


def test_choices_depend_on_the_seed_and_the_number_alone_and_keep_the_weights() -> None:
    forwards, backwards = Chooser(_WORKLOAD), Chooser(_WORKLOAD)
    numbers = range(9000)
    there = [forwards(number) for number in numbers]
    assert there == [backwards(number) for number in reversed(numbers)][::-1]
    share = sum(choice.operation == 0 for choice in there) / len(there)
    assert share == pytest.approx(3 / 7, abs=0.03)
    assert sum(choice.image for choice in there) / len(there) == pytest.approx(0.75, abs=0.03)
    assert {choice.collection for choice in there} == {"a", "b"}


def test_requests_are_messages_of_the_contract_with_images_of_their_own() -> None:
    choose, operations = Chooser(_WORKLOAD), build(_WORKLOAD)
    assert _WORKLOAD.images is not None
    seen = set()
    for choice in islice(map(choose, range(400)), 400):
        name, request = _WORKLOAD.names[choice.operation], operations[choice.operation].request(choice)
        file = _WORKLOAD.images.files[choice.image]
        if name == "embed":
            image = embedder_pb2.EmbedRequest.FromString(request).image
            assert image.startswith(file)
            assert image not in seen
            seen.add(image)
        elif name.startswith("search"):
            search = search_pb2.SearchRequest.FromString(request)
            assert (search.collection, search.tenant) == (choice.collection, choice.tenant)
            assert (search.params.top_k, search.params.ef) == (choice.top_k, 99)
            assert search.params.filter.expression == choice.filter
            if name == "search-image":
                assert search.query.image.startswith(file)
            else:
                assert search.query.vector.model_fingerprint == _WORKLOAD.fingerprint
                assert len(search.query.vector.values) == 4
        else:
            items = search_pb2.UpsertRequest.FromString(request).items
            assert len({item.id for item in items}) == 3
            assert all(item.id.startswith("loadtest-") and int(item.id[9:]) < 100 for item in items)


def test_a_batch_with_a_bad_item_ends_with_that_items_code() -> None:
    operations = build(_WORKLOAD)
    reply = search_pb2.UpsertResponse(results=[search_pb2.UpsertResult(), search_pb2.UpsertResult()])
    assert operations[3].outcome(reply.SerializeToString()) == 0
    reply.results[1].error.code = 3
    assert operations[3].outcome(reply.SerializeToString()) == 3


def test_synthetic_images_are_of_the_sizes_asked_for_and_by_the_seed() -> None:
    import io

    from PIL import Image

    images = synthetic(parse_sizes("64x48=3,128x32"), 1)
    sizes = [Image.open(io.BytesIO(file)).size for file in images.files]
    assert set(sizes) == {(64, 48), (128, 32)}
    weights = {size: sum(w for s, w in zip(sizes, images.weights, strict=True) if s == size) for size in set(sizes)}
    assert weights == {(64, 48): pytest.approx(3.0), (128, 32): pytest.approx(1.0)}
    assert images == synthetic(parse_sizes("64x48=3,128x32"), 1)
    assert len(set(images.files)) == len(images.files)


def test_images_of_a_folder_are_chosen_by_the_seed(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number:02}.jpg").write_bytes(bytes([number]) * 10)
    few = from_folder(tmp_path, 5, 3)
    assert len(few.files) == 5
    assert few == from_folder(tmp_path, 5, 3)
    assert few != from_folder(tmp_path, 5, 4)
