"""Searches under a filter, applied to the nearest rows first; the rows are numbers on a line."""

from __future__ import annotations

import json

import numpy as np
import pytest

from search_service.milvus_filtered import near_rows, search
from search_service.records import Hit, StoredRow

ROWS = 1_000


class Line:
    """Rows 0 to 999 where their numbers say, searched exactly, under `id % N`: the multiples of N."""

    def __init__(self) -> None:
        self.expressions: list[str] = []

    async def __call__(self, queries, expression, top_k, output):
        self.expressions.append(expression)
        rows = range(ROWS)
        if " and (id in " in expression:
            expression, _, ids = expression.removeprefix("(").removesuffix(")").partition(") and (id in ")
            rows = [int(row_id) for row_id in json.loads(ids)]
        if expression:
            rows = [row for row in rows if row % int(expression.removeprefix("id % ")) == 0]
        return [
            [
                Hit(-abs(row - query), StoredRow(str(row)))
                for row in sorted(rows, key=lambda row: abs(row - query))[:top_k]
            ]
            for query in queries[:, 0]
        ]


async def _ids(line: Line, queries: list[float], expression: str, wanted: int) -> list[list[int]]:
    rows = near_rows(wanted)
    assert rows is not None
    found = await search(line, np.array(queries, np.float32)[:, np.newaxis], expression, wanted, rows, ("source",))
    return [[int(hit.row.id) for hit in hits] for hits in found]


async def test_a_filter_that_keeps_enough_of_the_nearest_rows_is_applied_to_them_alone() -> None:
    line = Line()
    assert await _ids(line, [100.2, 500.4], "id % 10", 3) == [[100, 110, 90], [500, 510, 490]]
    assert len(line.expressions) == 2
    assert line.expressions[0] == ""
    assert line.expressions[1].startswith("(id % 10) and (id in ")


async def test_under_a_selective_filter_all_rows_are_searched() -> None:
    line = Line()
    assert await _ids(line, [100.2], "id % 400", 2) == [[0, 400]]
    assert line.expressions[-1] == "id % 400"


async def test_rows_near_to_another_query_are_not_taken_for_the_nearest() -> None:
    # Among the rows near to the two, multiples of 90 are 450 and 540; but 90 and 180 are nearer to 130 than they.
    line = Line()
    assert await _ids(line, [135.2, 495.2], "id % 90", 2) == [[180, 90], [540, 450]]


async def test_many_queries_go_in_parts() -> None:
    line = Line()
    queries = [float(number) for number in range(100, 200)]
    found = await _ids(line, queries, "id % 2", 10)
    assert [hits[0] - query for hits, query in zip(found, queries, strict=True)] == pytest.approx([0, 1] * 50, abs=2)
    assert all(expression.count('"') <= 2 * 4_000 for expression in line.expressions)
    assert len(line.expressions) == 2 * 7  # 16 queries with 250 rows each at a time


def test_many_hits_are_searched_for_under_the_filter() -> None:
    assert near_rows(40) == 1_000
    assert near_rows(41) is None
