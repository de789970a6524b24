"""The exact nearest neighbours, by comparing with every vector: what an HNSW index can only come near to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from search_service.records import Hit, StoredRow, Vector


class Nearest:
    """Keeps the `top_k` most similar of all rows shown to it, for each query: float32 [nq, D], all of length 1."""

    def __init__(self, queries: Vector, top_k: int) -> None:
        self._queries = queries
        self._top_k = top_k
        self._ids: NDArray[np.object_] = np.empty((len(queries), 0), dtype=object)
        self._similarities: Vector = np.empty((len(queries), 0), dtype=np.float32)

    def add(self, rows: Sequence[StoredRow]) -> None:
        """Show some more rows, with their vectors."""
        vectors = np.stack([row.vector for row in rows if row.vector is not None])
        similarities = np.concatenate([self._similarities, self._queries @ vectors.T], axis=1)
        ids = np.broadcast_to(np.array([row.id for row in rows], dtype=object), (len(self._queries), len(rows)))
        ids = np.concatenate([self._ids, ids], axis=1)
        # Stable, so that of equal ones those shown first come first.
        best = np.argsort(-similarities, axis=1, kind="stable")[:, : self._top_k]
        self._similarities = np.take_along_axis(similarities, best, axis=1)
        self._ids = np.take_along_axis(ids, best, axis=1)

    def hits(self) -> list[list[Hit]]:
        """The hits of each query, best first, with ids alone."""
        return [
            [Hit(similarity, StoredRow(row_id)) for similarity, row_id in zip(similarities, ids, strict=True)]
            for similarities, ids in zip(self._similarities.clip(-1, 1).tolist(), self._ids.tolist(), strict=True)
        ]
