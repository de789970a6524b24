"""Folding: of hits that are nearly the same, only the best stays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from search_service.records import Hit

# Rounding takes the cosine of equal vectors a little below 1.
_ROUNDING = 1e-6


def fold(hits: Sequence[Hit], similarity: float, wanted: int) -> list[Hit]:
    """Folds each hit into the best one that stays and is at least so similar to it.

    Greedy, from the best down: so the first hits that stay are the same however many follow.

    Args:
        hits: the best first, each with the vector of its row, float32 [D], of length 1.
        similarity: the cosine from which on two hits are one.
        wanted: how many may stay, at most.

    Returns:
        the hits that stay, the best first; their `folded_ids` name what was folded into them, the best first.
    """
    vectors = np.array([hit.row.vector for hit in hits], dtype=np.float32)
    free = np.ones(len(hits), dtype=bool)
    kept: list[Hit] = []
    for position, hit in enumerate(hits):
        if len(kept) == wanted:
            break
        if not free[position]:
            continue
        rest = slice(position + 1, None)
        alike = free[rest] & (vectors[rest] @ vectors[position] >= similarity - _ROUNDING)
        free[rest] &= ~alike
        folded = tuple(hits[position + 1 + offset].row.id for offset in np.flatnonzero(alike).tolist())
        kept.append(replace(hit, folded_ids=folded))
    return kept
