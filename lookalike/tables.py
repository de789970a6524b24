"""Rows as arrays of NumPy and tables of pandas."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from lookalike.errors import LookalikeError
from lookalike.types import Embedding, Hit, Hits, Record, UpsertResult

if TYPE_CHECKING:
    import pandas as pd

Row: TypeAlias = Hit | Record | UpsertResult

# The types of pandas in which a value may lack and an integer stays one.
_DTYPES: dict[frozenset[type], str] = {
    frozenset({bool}): "boolean",
    frozenset({int}): "Int64",
    frozenset({float}): "Float64",
    frozenset({str}): "string",
}


def to_numpy(rows: Iterable[Embedding | Record | Hit | LookalikeError]) -> npt.NDArray[np.float32]:
    """Returns the vectors of embeddings, or of rows fetched with `include_vector`, as one matrix, float32 [N, D].

    Raises:
        ValueError: a row has no vector, or there are vectors of several models, which cannot be compared.
        LookalikeError: one of the rows is this error.

    >>> vectors = to_numpy(client.scan("photos", include_vector=True))
    >>> len(vectors), vectors.dtype
    (3, dtype('float32'))
    """
    vectors: list[npt.NDArray[np.float32]] = []
    fingerprints: set[str] = set()
    for row in rows:
        embedding = _embedding(row)
        vectors.append(embedding.vector)
        fingerprints.add(embedding.fingerprint)
    if len(fingerprints) > 1:
        raise ValueError(f"vectors of {len(fingerprints)} models cannot be compared: {', '.join(sorted(fingerprints))}")
    return np.stack(vectors) if vectors else np.empty((0, 0), np.float32)


def to_pandas(rows: Iterable[Row]) -> pd.DataFrame:
    """Returns hits, records or results of upserts as a table, one row each, in their order.

    All have the column `id`, and

    - records: `source`, `content_sha256`, `update_time` (UTC), attributes as `attributes.NAME`; where there are any,
      `tenant` and `vector` (arrays, float32 [D]; `to_numpy` gives a matrix);
    - hits: `similarity`, `distance`, `folded_ids` (tuples), and those of records;
    - results of upserts: `outcome` and `error` (texts).

    A table without rows has these columns only if it is that of `Hits`; otherwise `id` alone.

    Raises:
        ImportError: pandas is not installed; `pip install 'lookalike[pandas]'` does that.

    >>> table = to_pandas(client.search("photos", id="cat.jpg").hits)
    >>> table[["id", "attributes.year"]]
                 id  attributes.year
    0  mirrored.jpg             2005
    1    rocket.jpg             <NA>
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise ImportError("tables need pandas: pip install 'lookalike[pandas]'") from error

    given = list(rows)
    columns: dict[str, Any] = {"id": pd.Series([row.id for row in given], dtype="string")}
    if isinstance(rows, Hits) or any(isinstance(row, Hit) for row in given):
        hits = [row for row in given if isinstance(row, Hit)]
        columns["similarity"] = np.array([hit.similarity for hit in hits], np.float32)
        columns["distance"] = np.array([hit.distance for hit in hits], np.float32)
        columns["folded_ids"] = pd.Series([hit.folded_ids for hit in hits], dtype=object)
        columns |= _record_columns([hit.record for hit in hits])
    elif records := [row for row in given if isinstance(row, Record)]:
        columns |= _record_columns(records)
    elif results := [row for row in given if isinstance(row, UpsertResult)]:
        columns["outcome"] = pd.Series([result.outcome.name for result in results], dtype="string")
        errors = [None if result.error is None else str(result.error) for result in results]
        columns["error"] = pd.Series(errors, dtype="string")
    return pd.DataFrame(columns)


def _record_columns(records: Sequence[Record]) -> dict[str, Any]:
    import pandas as pd

    columns: dict[str, Any] = {
        "source": pd.Series([record.source for record in records], dtype="string"),
        "content_sha256": pd.Series([record.content_sha256 for record in records], dtype="string"),
        "update_time": pd.to_datetime(pd.Series([record.update_time for record in records], dtype=object), utc=True),
    }
    if any(record.tenant for record in records):
        columns["tenant"] = pd.Series([record.tenant for record in records], dtype="string")
    if any(record.vector is not None for record in records):
        vectors = [None if record.vector is None else record.vector.vector for record in records]
        columns["vector"] = pd.Series(vectors, dtype=object)
    for name in dict.fromkeys(name for record in records for name in record.attributes):
        values = [record.attributes.get(name) for record in records]
        kinds = frozenset(type(value) for value in values if value is not None)
        columns[f"attributes.{name}"] = pd.Series(values, dtype=_DTYPES.get(kinds, "object"))
    return columns


def _embedding(row: Embedding | Record | Hit | LookalikeError) -> Embedding:
    match row:
        case LookalikeError():
            raise row
        case Embedding():
            return row
    record = row.record if isinstance(row, Hit) else row
    if record.vector is None:
        raise ValueError(f"row {record.id!r} has no vector: fetch rows with include_vector=True")
    return record.vector
