"""Which queries `lookalike recall` takes, and what it refuses. Its figures are tested on running services."""

import collections
import subprocess
import sys

import pytest

from workbench.recall import sample


def test_a_sample_is_the_same_for_a_seed_whatever_the_order():
    names = [f"{n}.jpg" for n in range(1000)]
    chosen = sample(names, 50, seed=1)
    assert len(set(chosen)) == 50
    assert sample(reversed(names), 50, seed=1) == chosen
    assert sample(names, 50, seed=2) != chosen
    assert sorted(sample(names[:7], 50, seed=1)) == names[:7]
    # Rows that come later push few of them out.
    assert len(set(sample([*names, *(f"new{n}" for n in range(100))], 50, seed=1)) & set(chosen)) > 35


def test_each_part_of_a_collection_gives_its_share():
    names = [f"{n:04d}" for n in range(1000)]
    parts = collections.Counter(int(name) // 250 for seed in range(40) for name in sample(names, 50, seed=seed))
    assert all(400 < parts[part] < 600 for part in range(4)), parts


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--ef", "64,none"), "'none' is not a positive whole number"),
        (("--min-recall", "95"), "'95' is not a number from 0 to 1"),
        (("--queries", "0"), "'0' is not a positive whole number"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, reason):
    command = [sys.executable, "-m", "workbench.main", "recall", "--collection", "photos", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, reason in done.stderr) == (2, True), done.stderr
