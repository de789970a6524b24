"""What one version of a collection looks like in Milvus: its fields, its index, and what its properties tell."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from pymilvus import DataType, MilvusClient

from search_service.naming import MAX_ID_BYTES, MAX_TENANT_BYTES, TENANT_SEPARATOR, parse_physical_name
from search_service.records import CollectionVersion, IndexSpec, VectorSpace

# Cosine needs no normalised vectors, and Lite and servers alike return it as a similarity, larger is nearer.
METRIC = "COSINE"
# What pages get, which cannot ask for another. Searches ask for their own.
CONSISTENCY = "Strong"
MAX_SOURCE_BYTES = 4096
MAX_TEXT_BYTES = 128
SCHEMA_VERSION = 1
# The key of the collection's properties. Not the description: Milvus Lite forgets that.
_PROPERTY = "lookalike"


def schema(version: CollectionVersion) -> Any:
    """The fields: all always sent, none dynamic, because an upsert on Milvus Lite keeps keys that were left out."""
    fields = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
    key_bytes = MAX_ID_BYTES + (MAX_TENANT_BYTES + len(TENANT_SEPARATOR) if version.multi_tenant else 0)
    fields.add_field("id", DataType.VARCHAR, is_primary=True, max_length=key_bytes)
    fields.add_field("tenant", DataType.VARCHAR, max_length=MAX_TENANT_BYTES)
    fields.add_field("model_fp", DataType.VARCHAR, max_length=MAX_TEXT_BYTES)
    fields.add_field("content_sha256", DataType.VARCHAR, max_length=MAX_TEXT_BYTES)
    fields.add_field("source", DataType.VARCHAR, max_length=MAX_SOURCE_BYTES)
    fields.add_field("updated_ms", DataType.INT64)
    fields.add_field("attributes", DataType.JSON)
    fields.add_field("vector", DataType.FLOAT_VECTOR, dim=version.space.dimension)
    return fields


def index(version: CollectionVersion) -> Any:
    """The index of the vector field."""
    spec = version.index
    params: dict[str, Any] = {"M": spec.m, "efConstruction": spec.ef_construction} if spec.is_graph else {}
    index_type: str = spec.type
    if spec.type == "HNSW_SQ8":
        # Without `refine`: that keeps a second, finer copy of the vectors in memory.
        index_type, params = "HNSW_SQ", {**params, "sq_type": "SQ8"}
    indexes = MilvusClient.prepare_index_params()
    indexes.add_index("vector", index_type=index_type, metric_type=METRIC, params=params)
    return indexes


def properties(version: CollectionVersion) -> dict[str, str]:
    """What must be known after a restart and is not in the name: above all the whole fingerprint."""
    told = {
        "schema": SCHEMA_VERSION,
        "space": asdict(version.space),
        "index": asdict(version.index),
        "multi_tenant": version.multi_tenant,
        "created_ms": version.created_ms,
    }
    return {_PROPERTY: json.dumps(told)}


def version_of(described: Mapping[str, Any]) -> CollectionVersion | None:
    """The version that `describe_collection` described, or None when the collection is not one of ours."""
    physical = described["collection_name"]
    parsed = parse_physical_name(physical)
    told = json.loads(described.get("properties", {}).get(_PROPERTY, "null"))
    if parsed is None or told is None or told["schema"] != SCHEMA_VERSION:
        return None
    name, number = parsed
    return CollectionVersion(
        collection=name,
        number=number,
        physical_name=physical,
        space=VectorSpace(**told["space"]),
        index=IndexSpec(**told["index"]),
        multi_tenant=told["multi_tenant"],
        created_ms=told["created_ms"],
    )
