"""Rows and vectors, checked and put in the form that Milvus takes, and read back."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from search_service.milvus_schema import MAX_SOURCE_BYTES, MAX_TEXT_BYTES
from search_service.naming import check_id, primary_key, row_id_of, tenant_of
from search_service.records import CollectionVersion, OutputField, Row, StoredRow, Vector, VectorSpace
from service_kit.errors import FailedPrecondition, InvalidArgument

EncodedRow: TypeAlias = Mapping[str, Any]  # by Milvus' names of the fields

MAX_ATTRIBUTES_BYTES = 64 << 10
# protobuf reads messages that nest up to 100 deep: an object in another takes three of it, the longest reply seven.
MAX_ATTRIBUTES_DEPTH = 30
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
    unit, squares = _scaled(array)
    for index in np.flatnonzero(~_usable(squares)):
        raise _no_direction(f"vector {index}", squares[index])
    return unit


def encode_rows(
    version: CollectionVersion, tenant: str, rows: Sequence[Row], updated_ms: int
) -> list[EncodedRow | InvalidArgument]:
    """Each row as `MilvusClient.upsert` takes it, every field set; or what is wrong with it.

    The vectors are of the version's space, see `check_space`.
    """
    dimension = version.space.dimension
    vectors = np.zeros((len(rows), dimension), dtype=np.float32)
    for vector, row in zip(vectors, rows, strict=True):
        if row.vector.shape == vector.shape:
            vector[:] = row.vector
    unit, squares = _scaled(vectors)
    encoded: list[EncodedRow | InvalidArgument] = []
    for row, vector, square in zip(rows, unit, squares.tolist(), strict=True):
        try:
            encoded.append(_encode_row(version, tenant, row, vector, square, updated_ms))
        except InvalidArgument as error:
            encoded.append(error)
    return encoded


def encoded_bytes(row: EncodedRow) -> int:
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
    key, multi_tenant = entity["id"], version.multi_tenant
    return StoredRow(
        id=row_id_of(key, multi_tenant=multi_tenant), tenant=tenant_of(key, multi_tenant=multi_tenant), **values
    )


def _encode_row(
    version: CollectionVersion, tenant: str, row: Row, unit: Vector, square: float, updated_ms: int
) -> EncodedRow:
    key = primary_key(check_id(row.id), tenant)
    if row.vector.shape != unit.shape:
        given, needed = list(row.vector.shape), list(unit.shape)
        raise InvalidArgument(f"the vector of id {row.id!r} has shape {given}, but the collection needs {needed}")
    if not _usable(square):
        raise _no_direction(f"the vector of id {row.id!r}", square)
    return {
        "id": key,
        "tenant": tenant,
        "model_fp": version.space.fingerprint,
        "content_sha256": _text(row, "content_sha256", row.content_sha256, MAX_TEXT_BYTES),
        "source": _text(row, "source", row.source, MAX_SOURCE_BYTES),
        "updated_ms": updated_ms,
        "attributes": _attributes(row),
        "vector": unit,
    }


def _scaled(array: Vector) -> tuple[Vector, NDArray[np.float64]]:
    """The vectors scaled to length 1 where they have a direction, and the squares of their lengths."""
    squares = np.einsum("nd,nd->n", array, array, dtype=np.float64)
    lengths = np.sqrt(np.where(_usable(squares), squares, 1.0))
    unit: Vector = (array / lengths[:, np.newaxis]).astype(np.float32)
    return unit, squares


def _usable(squares: Any) -> Any:
    # A sum is finite only if all its terms are, and zero only (of squares) if all are.
    return (squares > 0) & (squares < math.inf)


def _no_direction(what: str, square: float) -> InvalidArgument:
    if square == 0:
        return InvalidArgument(f"{what} is zero, and has no direction to compare: send another")
    return InvalidArgument(f"{what} holds NaN or infinity: send finite numbers")


def _attributes(row: Row) -> str:
    """The attributes as JSON text, so that what was checked is what is sent."""
    if not isinstance(row.attributes, Mapping) or not all(isinstance(key, str) for key in row.attributes):
        raise InvalidArgument(f"the attributes of id {row.id!r} are no JSON object: use string keys")
    if _deeper(row.attributes, MAX_ATTRIBUTES_DEPTH):
        raise InvalidArgument(
            f"the attributes of id {row.id!r} nest deeper than {MAX_ATTRIBUTES_DEPTH}: keep lists and objects flatter"
        )
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


def _deeper(value: Any, most: int) -> bool:
    """Whether lists and objects nest deeper than this; a value that is neither has depth 0."""
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return False
    return most == 0 or any(_deeper(inner, most - 1) for inner in value)


def _text(row: Row, name: str, text: str, max_bytes: int) -> str:
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise InvalidArgument(f"the {name} of id {row.id!r} holds a lone surrogate: it must be valid UTF-8") from error
    if size > max_bytes:
        raise InvalidArgument(f"the {name} of id {row.id!r} has {size} bytes, more than {max_bytes}: shorten it")
    return text
