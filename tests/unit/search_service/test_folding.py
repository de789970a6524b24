"""Folding: greedy, from the best hit down."""

from __future__ import annotations

import numpy as np
import pytest

from search_service.folding import fold
from search_service.records import Hit, StoredRow


def hits(*degrees: float) -> list[Hit]:
    """Hits in the plane at these angles to the query, named by them."""
    return [
        Hit(
            float(np.cos(np.radians(angle))),
            StoredRow(
                f"{angle:g}",
                vector=np.array([np.cos(np.radians(angle)), np.sin(np.radians(angle))], dtype=np.float32),
            ),
        )
        for angle in degrees
    ]


def folded(found: list[Hit]) -> list[tuple[str, tuple[str, ...]]]:
    return [(hit.row.id, hit.folded_ids) for hit in found]


def test_a_hit_is_folded_into_the_best_that_stays_and_is_near_enough() -> None:
    # 14 is near to -8 in no way, and near to 6 only after 6 has been folded itself: so it stays.
    found = fold(hits(0, 6, -8, 14, -17, 22), np.cos(np.radians(10)), 9)
    assert folded(found) == [("0", ("6", "-8")), ("14", ("22",)), ("-17", ())]


def test_equal_vectors_are_folded_even_at_a_similarity_of_one() -> None:
    vector = np.random.default_rng(0).standard_normal(2048).astype(np.float32)
    vector /= np.linalg.norm(vector)
    other = -vector
    found = [Hit(1.0, StoredRow(name, vector=vector)) for name in "abc"] + [Hit(-1.0, StoredRow("d", vector=other))]
    assert folded(fold(found, 1.0, 10)) == [("a", ("b", "c")), ("d", ())]


@pytest.mark.parametrize("wanted", [1, 3, 8])
def test_the_hits_that_stay_do_not_depend_on_how_many_are_wanted(wanted: int) -> None:
    rng = np.random.default_rng(1)
    many = hits(*sorted(rng.uniform(0, 90, 200), key=abs))
    all_kept = fold(many, 0.99, 200)
    assert len(all_kept) > 8
    assert [hit.row.id for hit in fold(many, 0.99, wanted)] == [hit.row.id for hit in all_kept[:wanted]]
    kept = {hit.row.id for hit in all_kept}
    gone = [row_id for hit in all_kept for row_id in hit.folded_ids]
    assert len(gone) == len(set(gone))
    assert kept | set(gone) == {hit.row.id for hit in many}
    assert kept.isdisjoint(gone)


def test_nothing_folds_to_nothing() -> None:
    assert fold([], 0.9, 10) == []
