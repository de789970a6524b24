"""The other ways to search: each finds the nearest rows, as well as it is meant to."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.vectors import Data
from workbench.peers import PEERS, installed

_LEAST = {"Annoy": 0.6, "Faiss HNSW": 0.95, "Faiss IVF-PQ": 0.2, "ScaNN": 0.8}


@pytest.fixture(scope="module")
def given():
    return Data.draw(2000, 50, 30)


@pytest.mark.parametrize("name", PEERS)
def test_an_index_finds_the_nearest_one_by_one_and_many_at_once(name, given):
    module, package, build = PEERS[name]
    if not installed(module):
        pytest.skip(f"{package} is not installed")
    index = build(given.rows)
    nearest = given.nearest(10)
    many = index.many(given.queries, 10)
    one = [list(index.one(query, 10)) for query in index.prepare(given.queries)]
    assert many.shape == (50, 10)
    for found in (many.tolist(), one):
        share = np.mean([len(set(ids) & set(exact)) / 10 for ids, exact in zip(found, nearest.tolist(), strict=True)])
        assert share >= _LEAST.get(name, 1.0)
    assert index.size() > 2000 * 8
    assert index.settings


@pytest.mark.parametrize("dims", [1, 7, 64])
def test_product_quantization_fits_any_length_and_few_rows(dims):
    pytest.importorskip("faiss", reason="faiss-cpu is not installed")
    given = Data.draw(20, 3, dims)
    assert PEERS["Faiss IVF-PQ"][2](given.rows).many(given.queries, 1).shape == (3, 1)
