"""Hostile images against a real embedder process: each is answered, with a vector or with what is wrong with it.

LOOKALIKE_FUZZ is how many; the first n are always the same. `make fuzz` sends 20,000.
"""

import os
import sys
from collections import Counter

import numpy as np
import pytest
from embedder_process import running
from google.rpc import code_pb2
from hostile_images import hostile_image, real_images

from embedder_service.decode import DEFAULT_MAX_PIXELS

COUNT = int(os.environ.get("LOOKALIKE_FUZZ", "1000"))
BATCH = 50
# What a decode may take: 12 bytes for each pixel, and 50 MB whatever the image.
DECODE = 12 * DEFAULT_MAX_PIXELS + (50 << 20)
# What may remain of it: allocators keep some.
KEPT = 100 << 20


def outcome(result):
    """What became of an image, in a word; fails if it is neither a vector nor the caller's error."""
    if result.HasField("error"):
        assert result.error.code == code_pb2.INVALID_ARGUMENT, result.error
        assert result.error.message
        return "refused"
    vector = np.array(result.embedding.values)
    assert np.isfinite(vector).all()
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-4)
    return "embedded"


@pytest.fixture(scope="module", params=["process", "thread"])
def embedder(bundle, request):
    with running(bundle, "--decode-threads", "1", "--decode-isolation", request.param) as embedder:
        yield embedder


def test_the_real_images_that_hostile_ones_are_made_of_are_all_embedded(embedder):
    results = embedder.embed_batch([data for _, data in real_images()]).results
    assert [outcome(result) for result in results] == ["embedded"] * len(real_images())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_hostile_images_are_answered_one_by_one_in_bounded_memory(embedder):
    sound = [data for _, data in real_images()]
    expected = embedder.embed_batch(sound).results
    before = embedder.memory()
    outcomes = Counter()
    for start in range(0, COUNT, BATCH):
        images = [hostile_image(number) for number in range(start, min(start + BATCH, COUNT))]
        # The call has a deadline: what hangs, or takes too long, fails here.
        results = embedder.embed_batch(images).results
        assert len(results) == len(images)
        outcomes.update(map(outcome, results))
    after, peak = embedder.memory(), embedder.memory("VmHWM")
    print(f"\n{dict(outcomes)}; MiB: {before >> 20} before, {after >> 20} after, {peak >> 20} at the peak")
    assert min(outcomes["embedded"], outcomes["refused"]) > COUNT // 10, "the images do not try both ways"
    assert "embedder_decoders_lost_total{" not in embedder.metrics()
    assert peak < before + DECODE
    assert after < before + KEPT
    # After all that, the server is what it was.
    assert [result.embedding for result in embedder.embed_batch(sound).results] == [
        result.embedding for result in expected
    ]
