"""Lays embeddings out on a plane, near ones together, and on a grid, so that pictures do not cover each other."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

ITERATIONS = 1000
_PERPLEXITY = 30.0
_LEAST = 4  # images that there is something to lay out of
_ITERATION = re.compile(r"Iteration (\d+)")


def layout(vectors: NDArray[np.float32], seed: int, on_progress: Callable[[int], None]) -> NDArray[np.float64]:
    """Runs t-SNE (https://jmlr.org/papers/v9/vandermaaten08a.html).

    Args:
        vectors: float32 [N, D].
        seed: of what is random in it.
        on_progress: called with numbers of iterations that are done, of `ITERATIONS`.

    Returns:
        float64 [N, 2].
    """
    if len(vectors) < _LEAST:
        return np.column_stack([np.arange(len(vectors), dtype=np.float64), np.zeros(len(vectors))])
    from sklearn.manifold import TSNE

    tsne = TSNE(
        perplexity=min(_PERPLEXITY, (len(vectors) - 1) / 3),
        init="pca" if vectors.shape[1] > 1 else "random",
        max_iter=ITERATIONS,
        random_state=seed,
        n_jobs=-1,
        verbose=2,
    )
    # Its only sign of life are the lines that it prints.
    with contextlib.redirect_stdout(_Iterations(on_progress)) as lines:
        points: NDArray[np.float64] = tsne.fit_transform(vectors).astype(np.float64)
        lines.end()
    return points


class _Iterations(io.StringIO):
    """Takes what t-SNE prints, and tells of its iterations."""

    def __init__(self, on_progress: Callable[[int], None]) -> None:
        super().__init__()
        self._on_progress, self._done = on_progress, 0

    def write(self, text: str) -> int:
        for number in _ITERATION.findall(text):
            self._reach(int(number))
        return len(text)

    def end(self) -> None:
        """It may stop early, where nothing changes any more."""
        self._reach(ITERATIONS)

    def _reach(self, iteration: int) -> None:
        if iteration > self._done:
            self._on_progress(iteration - self._done)
            self._done = iteration


def grid(points: NDArray[np.float64]) -> tuple[NDArray[np.int64], int]:
    """Gives each point a cell of its own in a square grid, so that the points move as little as possible in all.

    Returns:
        int64 [N, 2], the row and the column of each, the first row being the top; and the number of cells on a side.
    """
    from scipy.optimize import linear_sum_assignment
    from scipy.spatial.distance import cdist

    side = int(np.ceil(np.sqrt(len(points))))
    spread = np.ptp(points, axis=0)
    placed = (points - points.min(axis=0)) / np.where(spread > 0, spread, 1.0) * (side - 1)
    rows, columns = np.divmod(np.arange(side * side), side)
    cells = np.column_stack([columns, side - 1 - rows])
    _, chosen = linear_sum_assignment(cdist(placed, cells, "sqeuclidean"))
    return np.column_stack([rows[chosen], columns[chosen]]), side
