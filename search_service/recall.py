"""Recall at k, how much of the exact answer an approximate one has: one definition for the service and its tools."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

# Of rows so nearly as similar as the one at rank k it is chance which of them an answer has.
TIE = 1e-6

Ranked: TypeAlias = Sequence[tuple[str, float]]
"""Ids of rows and their similarities to a query, the most similar first."""


def recall_at_k(found: Ranked, exact: Ranked, k: int) -> float | None:
    """Returns the share of the `k` most similar rows that were found, 0 to 1.

    Where there are fewer than `k` rows, it is the share of those. A row that is as similar as the last one of the exact
    answer, within `TIE`, is as good as that one.

    Args:
        found: the approximate answer.
        exact: the exact answer.
        k: how many rows of each are compared, at most.

    Returns:
        the recall; None where the exact answer is empty, so that there was nothing to be found.
    """
    truth = exact[:k]
    if not truth:
        return None
    ids = {row_id for row_id, _ in truth}
    last = truth[-1][1]
    hits = sum(row_id in ids or abs(similarity - last) <= TIE for row_id, similarity in found[:k])
    return min(hits, len(truth)) / len(truth)
