"""Shards of the images, and the set of ids that a run remembers."""

import random
from collections import Counter

import numpy as np
import pytest

from workbench.id_set import IdSet, id_hash
from workbench.shards import Shard, parse_shard


def test_each_image_is_in_exactly_one_shard_and_they_are_of_one_size():
    sizes = Counter()
    for n in range(20_000):
        taking = [index for index in range(7) if Shard(index, 7).takes(f"cats/{n}.jpg")]
        assert len(taking) == 1
        sizes[taking[0]] += 1
    assert max(sizes.values()) < 1.1 * min(sizes.values())


def test_the_hash_of_an_id_stays_what_it_is():
    # Checkpoints and shards on other machines rely on it.
    assert id_hash("cats/ä.jpg") == 0xC9F3DBF5745480BB


def test_a_shard_is_written_as_it_is_read():
    assert str(parse_shard("3/8")) == "3/8"
    assert parse_shard("auto/8", {"JOB_COMPLETION_INDEX": "5"}) == Shard(5, 8)


@pytest.mark.parametrize("text", ["8/8", "-1/8", "1", "1/", "a/b", "1/0", "auto/8", ""])
def test_what_is_no_shard_is_refused(text):
    with pytest.raises(ValueError, match=r"is not I/N|is not set"):
        parse_shard(text, {})


def test_the_set_has_what_was_added():
    numbers = random.Random(0)
    hashes = [numbers.getrandbits(64) for _ in range(150_000)] + [0, 2**64 - 1]
    known, later = hashes[:1000], hashes[1000:]
    ids = IdSet(np.array(known, np.uint64))
    assert all(ids.add(hash) for hash in later)
    assert not any(ids.add(hash) for hash in hashes[::97])
    assert len(ids) == len(hashes)
    assert all(hash in ids for hash in hashes[::7])
    assert 12345 not in ids
