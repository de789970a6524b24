"""The rows and queries of the benchmark of the search: vectors drawn from a seeded mixture, and who is nearest.

The mixture is meant to be like embeddings of pictures after PCA: 1,000 kinds of picture, each with a Gaussian around a
centre of its own. Centres and spreads alike are larger in the first dimensions than in the last, the standard deviation
falling with the square root of the dimension's number; the spread within a kind is 0.6 of that between the kinds. All
vectors have length 1. Queries come from the same mixture and are none of the rows. Each row has an attribute `bucket`,
an integer of 0 to 99 that knows nothing of its vector, so a filter can keep any percentage of the rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from workbench.peers import Ids, Vectors, best

BUCKETS = 100
_KINDS = 1_000
_SPREAD = 0.6
_SEED = 150
_BLOCK = 100  # queries compared with all rows at a time


@dataclass(frozen=True, eq=False)
class Data:
    """Rows and queries; the id of a row is its number.

    Attributes:
        rows: float32 [N, D], of length 1.
        buckets: int64 [N].
        queries: float32 [Q, D], of length 1.
    """

    rows: Vectors
    buckets: Ids
    queries: Vectors

    @classmethod
    def draw(cls, rows: int, queries: int, dims: int) -> Data:
        """Returns so many rows and queries of `dims` dimensions, the same every time."""
        random = np.random.default_rng(_SEED)
        scale = 1 / np.sqrt(np.arange(1, dims + 1))
        centres = random.standard_normal((_KINDS, dims)) * scale
        kinds = random.integers(_KINDS, size=rows + queries)
        vectors = centres[kinds] + _SPREAD * scale * random.standard_normal((rows + queries, dims))
        vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
        return cls(vectors[:rows], random.integers(BUCKETS, size=rows), vectors[rows:])

    def nearest(self, top_k: int, percent: int = BUCKETS) -> Ids:
        """Returns the ids of the rows nearest to each query, int64 [Q, top_k or all], of those in the first buckets."""
        kept = np.flatnonzero(self.buckets < percent)
        rows = self.rows[kept].T
        blocks = (self.queries[start : start + _BLOCK] @ rows for start in range(0, len(self.queries), _BLOCK))
        return np.concatenate([kept[best(similarities, top_k)] for similarities in blocks])


def recall(found: list[list[int]], nearest: Ids) -> float:
    """Returns the share of the nearest rows that were found, the mean over all queries."""
    shares = [len(set(ids) & set(exact)) / len(exact) for ids, exact in zip(found, nearest.tolist(), strict=True)]
    return float(np.mean(shares))
