"""t-SNE and its grid."""

from __future__ import annotations

import numpy as np

from workbench import tsne


def test_each_point_gets_a_cell_of_its_own_near_where_it_was():
    random = np.random.default_rng(1)
    points = random.random((90, 2))
    cells, side = tsne.grid(points)
    assert side == 10
    assert len({tuple(cell) for cell in cells.tolist()}) == 90
    assert cells.min() >= 0
    assert cells.max() < side
    # To the right is to the right, and up is up: the first row is the top.
    assert np.corrcoef(points[:, 0], cells[:, 1])[0, 1] > 0.9
    assert np.corrcoef(points[:, 1], cells[:, 0])[0, 1] < -0.9


def test_groups_stay_together_the_layout_is_the_same_every_time_and_progress_reaches_the_end():
    random = np.random.default_rng(1)
    vectors = np.concatenate([random.standard_normal((40, 6)) + shift for shift in (0, 30)]).astype(np.float32)
    steps: list[int] = []
    points = tsne.layout(vectors, 5, steps.append)
    assert sum(steps) == tsne.ITERATIONS
    assert len(steps) > 2
    apart = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(apart, np.inf)
    assert ((apart.argmin(axis=1) < 40) == (np.arange(80) < 40)).all()
    assert np.array_equal(points, tsne.layout(vectors, 5, lambda _: None))


def test_two_images_are_laid_out_too():
    points = tsne.layout(np.eye(2, dtype=np.float32), 0, lambda _: None)
    assert tsne.grid(points)[1] == 2
