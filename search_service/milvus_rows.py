"""Rows and vectors, checked and put in the form that Milvus takes, and read back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from search_service.milvus_schema import MAX_SOURCE_BYTES, MAX_TEXT_BYTES
from search_service.naming import check_id, primary_key, row_id_of
from search_service.records import CollectionVersion, OutputField, Row, StoredRow, Vector, VectorSpace
from service_kit.errors import FailedPrecondition, InvalidArgument

MAX_ATTRIBUTES_BYTES = 64 << 10
# What a row takes besides its vector, attributes and texts, at most.
_ROW_OVERHEAD_BYTES = 512
# Milvus' names of the fields, where they differ from ours.
_COLUMNS: dict[OutputField, str] = {"model_fingerprint": "model_fp"}


def check_space(version: CollectionVersion, space: VectorSpace) -> None:
    """Raise FailedPrecondition unless vectors of `space` may be compared with those of `version`."""
    if space != version.space:
        raise FailedPrecondition(
            f"vectors of model {space.fingerprint} ({space.dimension} dimensions) do not belong in collection "
            f"{version.collection!r} version {version.number}, which holds those of model {version.space.fingerprint} "
            f"({version.space.dimension} dimensions): use an embedder with that model, or fill a new version of the "
            "collection with the new model and switch to it"
        )


def unit_vectors(vectors: Vector, dimension: int) -> Vector:
    """The vectors, float32 [N, D], scaled to length 1.

    Raises:
        InvalidArgument: another shape, or a vector with NaN, with infinity, or of length zero.
    """
    array = np.asarray(vectors, dtype=np.float32)
    if array.ndim != 2 or array.shape[1] != dimension:
        raise InvalidArgument(f"vectors have shape {list(array.shape)}, but the collection needs [N, {dimension}]")
    # A sum is finite only if all its terms are, and zero only (of squares) if all are.
    squares = np.einsum("nd,nd->n", array, array, dtype=np.float64)
    if not np.isfinite(squares).all():
        raise InvalidArgument(f"vector {_first(~np.isfinite(squares))} holds NaN or infinity: send finite numbers")
    if not squares.all():
        raise InvalidArgument(f"vector {_first(squares == 0)} is zero, and has no direction to compare: send another")
    unit: Vector = (array / np.sqrt(squares)[:, np.newaxis]).astype(np.float32)
    return unit


def check_row(version: CollectionVersion, space: VectorSpace, row: Row) -> None:
    """Raise FailedPrecondition or InvalidArgument unless `row`, whose vector is of `space`, can be stored."""
    check_space(version, space)
    encode_rows(version, "", [row], 0)


def encode_rows(version: CollectionVersion, tenant: str, rows: Sequence[Row], updated_ms: int) -> list[dict[str, Any]]:
    """The rows for `MilvusClient.upsert`, every field set.

    Raises:
        InvalidArgument: naming the row and what is wrong with it. Nothing is to be written then.
    """
    if len({row.id for row in rows}) < len(rows):
        # Which one would win differs between Milvus Lite and the server.
        raise InvalidArgument("an id occurs twice in one upsert: send each id once")
    vectors = unit_vectors(_stacked(rows, version.space.dimension), version.space.dimension)
    return [
        {
            "id": primary_key(check_id(row.id), tenant),
            "tenant": tenant,
            "model_fp": version.space.fingerprint,
            "content_sha256": _text(row, "content_sha256", row.content_sha256, MAX_TEXT_BYTES),
            "source": _text(row, "source", row.source, MAX_SOURCE_BYTES),
            "updated_ms": updated_ms,
            "attributes": _attributes(row),
            "vector": vector,
        }
        for row, vector in zip(rows, vectors, strict=True)
    ]


def encoded_bytes(row: Mapping[str, Any]) -> int:
    """About how many bytes an encoded row takes in a message. Never less."""
    texts = sum(len(row[name].encode()) for name in ("id", "source", "attributes"))
    return int(row["vector"].nbytes) + texts + _ROW_OVERHEAD_BYTES


def stored_bytes(row: StoredRow) -> int:
    """About how many bytes a stored row takes in a message."""
    texts = sum(len((text or "").encode()) for text in (row.id, row.source))
    attributes = len(json.dumps(row.attributes, ensure_ascii=False).encode()) if row.attributes else 0
    return texts + attributes + (0 if row.vector is None else row.vector.nbytes) + _ROW_OVERHEAD_BYTES


def max_stored_bytes(version: CollectionVersion, output: Sequence[OutputField]) -> int:
    """The most that a stored row with these fields can take in a message, about."""
    sizes = {"attributes": MAX_ATTRIBUTES_BYTES, "source": MAX_SOURCE_BYTES, "vector": 4 * version.space.dimension}
    return sum(sizes.get(name, 0) for name in output) + _ROW_OVERHEAD_BYTES


def columns(output: Sequence[OutputField]) -> list[str]:
    """The fields of Milvus behind those that a caller asked for. The id comes anyway."""
    return ["id", *(_COLUMNS.get(name, name) for name in output)]


def decode_row(version: CollectionVersion, entity: Mapping[str, Any], output: Sequence[OutputField]) -> StoredRow:
    """A row of a query or a hit of a search."""
    values = {name: entity[_COLUMNS.get(name, name)] for name in output}
    if "vector" in values:
        values["vector"] = np.asarray(values["vector"], dtype=np.float32)
    return StoredRow(id=row_id_of(entity["id"], multi_tenant=version.multi_tenant), **values)


def _stacked(rows: Sequence[Row], dimension: int) -> Vector:
    for row in rows:
        if row.vector.shape != (dimension,):
            shape = list(row.vector.shape)
            raise InvalidArgument(
                f"the vector of id {row.id!r} has shape {shape}, but the collection needs [{dimension}]"
            )
    return np.stack([row.vector for row in rows])


def _attributes(row: Row) -> str:
    """The attributes as JSON text, so that what was checked is what is sent."""
    if not isinstance(row.attributes, Mapping) or not all(isinstance(key, str) for key in row.attributes):
        raise InvalidArgument(f"the attributes of id {row.id!r} are no JSON object: use string keys")
    try:
        encoded = json.dumps(dict(row.attributes), ensure_ascii=False, allow_nan=False)
        size = len(encoded.encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgument(f"the attributes of id {row.id!r} are no JSON: {error}") from error
    if size > MAX_ATTRIBUTES_BYTES:
        raise InvalidArgument(
            f"the attributes of id {row.id!r} have {size} bytes, more than {MAX_ATTRIBUTES_BYTES}: keep less"
        )
    return encoded


def _text(row: Row, name: str, text: str, max_bytes: int) -> str:
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise InvalidArgument(f"the {name} of id {row.id!r} holds a lone surrogate: it must be valid UTF-8") from error
    if size > max_bytes:
        raise InvalidArgument(f"the {name} of id {row.id!r} has {size} bytes, more than {max_bytes}: shorten it")
    return text


def _first(mask: Any) -> int:
    return int(np.flatnonzero(mask)[0])
