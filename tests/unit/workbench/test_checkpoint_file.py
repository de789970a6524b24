"""The checkpoint of an ingest: what it has is true, whatever happened to the file."""

import random

import pytest

from workbench.checkpoint import Checkpoint
from workbench.errors import CommandError

_OURS = {"collection": "photos", "inputs": ["/a"]}


def _known(path, ids, belongs_to=_OURS):
    with Checkpoint(path, belongs_to) as checkpoint:
        return {id: outcome for id in ids if (outcome := checkpoint.outcome(id))}, len(checkpoint)


def _written(path, batches=20, size=7):
    ids = {}
    with Checkpoint(path, _OURS) as checkpoint:
        for batch in range(batches):
            some = [f"{batch}/{n}" for n in range(size)]
            outcome = "unchanged" if batch % 3 == 0 else "stored"
            checkpoint.add(outcome, some)
            ids.update(dict.fromkeys(some, outcome))
    return ids


def test_it_knows_what_was_acknowledged(tmp_path):
    path = tmp_path / "checkpoint"
    ids = _written(path)
    assert _known(path, [*ids, "other"]) == (ids, len(ids))


def test_it_is_small(tmp_path):
    _written(tmp_path / "checkpoint", batches=100, size=128)
    assert (tmp_path / "checkpoint").stat().st_size < 17 * 12_800


def test_cut_off_anywhere_it_has_a_beginning_of_what_was_written_and_goes_on(tmp_path):
    path = tmp_path / "checkpoint"
    ids = _written(path)
    data = path.read_bytes()
    for length in random.Random(0).sample(range(len(data)), 60):
        path.write_bytes(data[:length])
        known, _ = _known(path, ids)
        assert list(known.items()) == list(ids.items())[: len(known)]
        assert len(known) % 7 == 0
        with Checkpoint(path, _OURS) as checkpoint:
            checkpoint.add("stored", ["after"])
        assert _known(path, [*known, "after"])[0] == {**known, "after": "stored"}


def test_after_damage_nothing_is_believed(tmp_path):
    path = tmp_path / "checkpoint"
    ids = _written(path)
    data = bytearray(path.read_bytes())
    for position in random.Random(0).sample(range(data.index(b"\n") + 1, len(data)), 60):
        damaged = data.copy()
        damaged[position] ^= 1
        path.write_bytes(damaged)
        known, _ = _known(path, ids)
        assert list(known.items()) == list(ids.items())[: len(known)]
        assert len(known) < len(ids)


@pytest.mark.parametrize(("name", "value"), [("collection", "other"), ("inputs", ["/a", "/b"])])
def test_that_of_another_ingest_is_refused(tmp_path, name, value):
    path = tmp_path / "checkpoint"
    _written(path)
    before = path.read_bytes()
    with pytest.raises(CommandError, match=f"belongs to another ingest, with {name}"):
        _known(path, [], {**_OURS, name: value})
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"{}\n", b"something else\n", b"something else", b"\xff\n"])
def test_another_file_is_refused_and_left_alone(tmp_path, content):
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    with pytest.raises(CommandError, match="is not a checkpoint"):
        _known(path, [])
    assert path.read_bytes() == content


def test_two_ingests_do_not_share_one(tmp_path):
    path = tmp_path / "checkpoint"
    with Checkpoint(path, _OURS), pytest.raises(CommandError, match="in use by another ingest"):
        _known(path, [])
