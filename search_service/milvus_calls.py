"""Calls of Milvus on the rows of one version: what `MilvusConnection.call` runs in a thread.

Each also reads the answer there, because pymilvus decodes it only when it is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from search_service import milvus_rows
from search_service.filters import literal
from search_service.milvus_connection import Call, Client
from search_service.milvus_schema import METRIC
from search_service.records import CollectionVersion, Hit, OutputField, StoredRow, Vector

Consistency = Literal["Strong", "Bounded"]
DELETE_ROWS = 1_000


def id_in(keys: Sequence[str]) -> str:
    """The expression for rows by primary key. pymilvus' own breaks on quotes and line breaks."""
    return f"id in {literal(keys)}"


def upsert(version: CollectionVersion, rows: Sequence[Mapping[str, Any]]) -> Call[int]:
    """Write encoded rows. Returns how many."""

    def call(client: Client, timeout: float) -> int:
        return int(client.upsert(version.physical_name, rows, timeout=timeout)["upsert_count"])

    return call


def delete_some(version: CollectionVersion, expression: str) -> Call[int]:
    """Delete the first rows by id, up to `DELETE_ROWS`. Returns how many: Milvus also counts ids it has not."""

    def call(client: Client, timeout: float) -> int:
        keys = [entity["id"] for entity in _page(client, version, expression, ["id"], DELETE_ROWS, timeout)]
        if keys:
            client.delete(version.physical_name, filter=id_in(keys), timeout=timeout)
        return len(keys)

    return call


def get(
    version: CollectionVersion, keys: Sequence[str], output: Sequence[OutputField], level: Consistency
) -> Call[list[StoredRow]]:
    """Rows by primary key, in no order."""

    def call(client: Client, timeout: float) -> list[StoredRow]:
        found = client.query(
            version.physical_name,
            filter=id_in(keys),
            output_fields=milvus_rows.columns(output),
            consistency_level=level,
            timeout=timeout,
        )
        return [milvus_rows.decode_row(version, entity, output) for entity in found]

    return call


def page(
    version: CollectionVersion, expression: str, output: Sequence[OutputField], limit: int
) -> Call[list[StoredRow]]:
    """The first rows by primary key that fulfil the expression, of all acknowledged ones."""

    def call(client: Client, timeout: float) -> list[StoredRow]:
        found = _page(client, version, expression, milvus_rows.columns(output), limit, timeout)
        return [milvus_rows.decode_row(version, entity, output) for entity in found]

    return call


def count(version: CollectionVersion, expression: str, level: Consistency) -> Call[int]:
    """The number of rows that fulfil the expression; of all when it is empty."""

    def call(client: Client, timeout: float) -> int:
        answer = client.query(
            version.physical_name,
            filter=expression,
            output_fields=["count(*)"],
            consistency_level=level,
            timeout=timeout,
        )
        return int(answer[0]["count(*)"])

    return call


def search(
    version: CollectionVersion,
    queries: Vector,
    top_k: int,
    offset: int,
    expression: str,
    ef: int,
    output: Sequence[OutputField],
    level: Consistency,
) -> Call[list[list[Hit]]]:
    """The hits of each query; `ef` is for graphs alone."""
    params = {"ef": ef} if version.index.is_graph else {}

    def call(client: Client, timeout: float) -> list[list[Hit]]:
        answer = client.search(
            version.physical_name,
            data=list(queries),
            anns_field="vector",
            filter=expression,
            limit=top_k,
            output_fields=milvus_rows.columns(output),
            search_params={"metric_type": METRIC, "params": params, "offset": offset},
            consistency_level=level,
            timeout=timeout,
        )
        return [[_hit(version, hit, output) for hit in hits] for hits in answer]

    return call


def _page(
    client: Client, version: CollectionVersion, expression: str, columns: Sequence[str], limit: int, timeout: float
) -> Sequence[Mapping[str, Any]]:
    answer: Sequence[Mapping[str, Any]] = client.query(
        version.physical_name,
        filter=expression,
        output_fields=list(columns),
        limit=limit,
        # Together: the first by primary key, where a limit alone gives any. pymilvus' iterator breaks on quotes in ids.
        # With them the consistency is that of the collection, whatever is asked for.
        iterator="True",
        reduce_stop_for_best=True,
        timeout=timeout,
    )
    return answer


def _hit(version: CollectionVersion, hit: Mapping[str, Any], output: Sequence[OutputField]) -> Hit:
    # Rounding takes the cosine of a vector with itself a little over 1.
    similarity = min(1.0, max(-1.0, float(hit["distance"])))
    return Hit(similarity, milvus_rows.decode_row(version, hit["entity"], output))
