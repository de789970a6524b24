"""Recall at k, the definition."""

from __future__ import annotations

import pytest

from search_service.recall import Ranked, recall_at_k

EXACT = [("a", 0.9), ("b", 0.8), ("c", 0.7), ("d", 0.6)]


@pytest.mark.parametrize(
    ("found", "k", "recall"),
    [
        (EXACT, 4, 1.0),
        ([("b", 0.8), ("a", 0.9)], 2, 1.0),  # order is no matter
        ([("a", 0.9), ("c", 0.7)], 2, 0.5),
        ([("a", 0.9), ("c", 0.7), ("d", 0.6)], 4, 0.75),  # fewer were found
        ([("c", 0.7), ("a", 0.9)], 1, 0.0),  # what comes after rank k is not looked at
        (EXACT, 9, 1.0),  # there are no more rows
        ([], 2, 0.0),
    ],
)
def test_recall_is_the_share_of_the_nearest_rows_that_was_found(found: Ranked, k: int, recall: float) -> None:
    assert recall_at_k(found, EXACT, k) == recall


def test_rows_that_tie_with_the_last_one_are_as_good_as_it() -> None:
    exact = [("a", 0.9), ("b", 0.8)]
    assert recall_at_k([("a", 0.9), ("twin of b", 0.8 + 9e-7)], exact, 2) == 1
    assert recall_at_k([("a", 0.9), ("near b", 0.8 - 2e-6)], exact, 2) == 0.5
    # A twin of b is no substitute for a, nor do several of them make more than the whole.
    assert recall_at_k([("b", 0.8), ("x", 0.8), ("y", 0.8)], exact[:1], 3) == 0
    assert recall_at_k([("a", 0.9), ("b", 0.8), ("x", 0.8)], exact, 3) == 1


def test_where_there_is_nothing_to_find_there_is_no_recall() -> None:
    assert recall_at_k([("a", 0.9)], [], 10) is None
