"""The data of the benchmark of the search, and its arithmetic."""

import numpy as np
import pytest

from benchmarks.vectors import BUCKETS, Data, recall
from workbench.peers import best


def test_the_same_data_are_drawn_every_time():
    first, second = Data.draw(50, 5, 8), Data.draw(50, 5, 8)
    for name in ("rows", "buckets", "queries"):
        assert np.array_equal(getattr(first, name), getattr(second, name))
    assert first.rows.dtype == np.float32
    assert np.linalg.norm(first.rows, axis=1) == pytest.approx(1.0)
    assert set(first.buckets.tolist()) <= set(range(BUCKETS))


def test_the_nearest_rows_are_those_of_a_full_sort():
    data = Data.draw(300, 7, 8)
    order = np.argsort(-(data.queries @ data.rows.T), axis=1)
    assert np.array_equal(data.nearest(10), order[:, :10])
    kept = [[row for row in line if data.buckets[row] < 20][:10] for line in order.tolist()]
    assert data.nearest(10, 20).tolist() == kept


def test_of_fewer_rows_than_wanted_all_are_the_best():
    assert best(np.array([[0.1, 0.3, 0.2]], np.float32), 10).tolist() == [[1, 2, 0]]


def test_recall_is_the_share_of_the_nearest_that_was_found():
    nearest = np.array([[1, 2], [3, 4]])
    assert recall([[2, 1], [3, 9]], nearest) == 0.75
    assert recall([[], [4, 3]], nearest) == 0.5
