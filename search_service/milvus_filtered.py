"""Searches under a filter on a server's HNSW index, which by itself loses rows there.

While its graph is walked, most ways lead to rows that the filter leaves out: Milvus 2.3 finds 0.91 of the nearest rows
where a tenth is left (`ef` 256), and no `ef` finds more than about 0.97. (Where less than some 7 % is left, it compares
with each of them.) So the filter is applied afterwards: first the nearest rows are looked for without it, then, of
these, those that it keeps. If they are as many as are wanted, they are the nearest there are. If not, the filter is
selective, and Milvus searches under it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import numpy as np

from search_service.milvus_calls import id_in
from search_service.records import Hit, OutputField, Vector

# Searches by vectors: under an expression, for so many rows, with these fields.
Search = Callable[[Vector, str, int, tuple[OutputField, ...]], Awaitable[list[list[Hit]]]]

# A filter that keeps a tenth leaves more than twice the rows wanted.
_ROWS_FOR_EACH = 25
_MOST_ROWS = 1_000
_IDS = 4_000  # in one expression


def near_rows(wanted: int) -> int | None:
    """How many rows to look for without the filter; None where that would be too many."""
    rows = wanted * _ROWS_FOR_EACH
    return rows if rows <= _MOST_ROWS else None


async def search(
    run: Search, queries: Vector, expression: str, wanted: int, rows: int, output: tuple[OutputField, ...]
) -> list[list[Hit]]:
    """Returns the `wanted` nearest rows to each query that fulfil the expression.

    Args:
        run: searches in Milvus.
        queries: float32 [nq, D].
        expression: not empty; of a collection without tenants.
        wanted: hits of each query.
        rows: what `near_rows` tells.
        output: fields of the hits.
    """
    found: dict[int, list[Hit]] = {}
    size = max(1, _IDS // rows)
    for start in range(0, len(queries), size):
        part = queries[start : start + size]
        near = [{hit.row.id for hit in hits} for hits in await run(part, "", rows, ())]
        ids = sorted(set().union(*near))
        if not ids:
            continue
        among = await run(part, f"({expression}) and ({id_in(ids)})", wanted, output)
        for number, (hits, own) in enumerate(zip(among, near, strict=True), start):
            # Rows near to other queries are among them, and all nearer ones if these are the query's own.
            if len(hits) == wanted and all(hit.row.id in own for hit in hits):
                found[number] = hits
    if rest := [number for number in range(len(queries)) if number not in found]:
        found.update(zip(rest, await run(queries[np.array(rest)], expression, wanted, output), strict=True))
    return [found[number] for number in range(len(queries))]
