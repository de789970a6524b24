"""Between the messages of the contract and the values of the core."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import cast

import numpy as np
from google.protobuf import duration_pb2, timestamp_pb2

from lookalike.search.v1 import search_pb2 as pb
from lookalike.values import from_fields, to_fields
from search_service import filters
from search_service.filling import FillItem
from search_service.filters import Filter
from search_service.milvus_catalog import MAX_DIMENSION
from search_service.milvus_rows import MAX_ATTRIBUTES_BYTES
from search_service.milvus_schema import MAX_SOURCE_BYTES
from search_service.naming import MAX_ID_BYTES
from search_service.records import (
    ALL_BUT_VECTOR,
    CollectionState,
    Embedding,
    Hit,
    IndexSpec,
    IndexType,
    OutputField,
    Role,
    StoredRow,
    VectorSpace,
    VersionState,
)
from search_service.searcher import DEFAULT_TOP_K, Query, SearchParams, SearchResult, StoredId
from search_service.upsert_stream import StreamedItem
from search_service.writes import Item, Outcome
from service_kit.errors import InvalidArgument, ServiceError, Unimplemented
from service_kit.status import to_status

_INDEX_TYPES: dict[IndexType, pb.IndexType.ValueType] = {
    "FLAT": pb.INDEX_TYPE_FLAT,
    "HNSW": pb.INDEX_TYPE_HNSW,
    "HNSW_SQ8": pb.INDEX_TYPE_HNSW_SQ8,
}
_KNOWN_INDEX_TYPES = {number: name for name, number in _INDEX_TYPES.items()}
_STATES: dict[Role, pb.VersionState.ValueType] = {
    "serving": pb.VERSION_STATE_SERVING,
    "filling": pb.VERSION_STATE_FILLING,
    "retired": pb.VERSION_STATE_RETIRED,
}
MAX_OUTPUT_ATTRIBUTES = 256
_SCAN_BYTES = 1 << 20
# What is far too large is refused before it is converted, which takes longer than anything else. A value is at most so
# many times longer in a message than as JSON.
_MOST_PER_BYTE = 4
_MAX_ITEM_BYTES = _MOST_PER_BYTE * MAX_ATTRIBUTES_BYTES + MAX_SOURCE_BYTES + MAX_ID_BYTES + 64
_OUTCOMES = {
    "stored": pb.UPSERT_OUTCOME_STORED,
    "unchanged": pb.UPSERT_OUTCOME_UNCHANGED,
    "superseded": pb.UPSERT_OUTCOME_SUPERSEDED,
}


# ---- From messages


def space_from(message: pb.VectorSpace) -> VectorSpace:
    """Returns a vector space; the store checks it."""
    return VectorSpace(message.model_fingerprint, message.dimension)


def index_from(message: pb.IndexSpec) -> IndexSpec | None:
    """Returns an index, with defaults in the place of what is unset; None where it is the service's choice."""
    default = IndexSpec()
    if message.type == pb.INDEX_TYPE_UNSPECIFIED:
        if not (message.m or message.ef_construction):
            return None
        index_type = default.type  # the parameters are its own
    elif message.type in _KNOWN_INDEX_TYPES:
        index_type = _KNOWN_INDEX_TYPES[message.type]
    else:
        raise Unimplemented(f"this server has the index types {', '.join(_INDEX_TYPES)} only")
    return IndexSpec(index_type, message.m or default.m, message.ef_construction or default.ef_construction)


def item_from(message: pb.UpsertItem) -> Item | InvalidArgument:
    """Returns a row to be stored, or what is wrong with it."""
    match message.WhichOneof("content"):
        case "image":
            content: bytes | Embedding | InvalidArgument = message.image
            size = len(message.image)
        case "vector":
            content = _vector_from(message.vector)
            size = message.vector.ByteSize()
        case _:
            return InvalidArgument(f"item {message.id[:80]!r} has no content: set image or vector")
    if isinstance(content, InvalidArgument):
        return content
    if (rest := message.ByteSize() - size) > _MAX_ITEM_BYTES:
        return InvalidArgument(
            f"item {message.id[:80]!r} has {rest} bytes beside its content: its attributes may have "
            f"{MAX_ATTRIBUTES_BYTES} as JSON, its source {MAX_SOURCE_BYTES} and its id {MAX_ID_BYTES}"
        )
    return Item(message.id, content, from_fields(message.attributes), message.source)


def fill_item_from(message: pb.FillItem) -> FillItem | InvalidArgument:
    """Returns a row of the serving version for another one, or what is wrong with it."""
    item = item_from(message.item)
    if isinstance(item, InvalidArgument):
        return item
    if not message.HasField("update_time"):
        return InvalidArgument(f"item {item.id!r} has no update_time: set that of the serving row")
    try:
        return FillItem(item, message.update_time.ToMilliseconds())
    except ValueError as error:
        return InvalidArgument(f"item {item.id!r} has no update_time that there could be: {error}")


def version_from(message: pb.CountRequest | pb.ScanRequest | pb.SearchParams) -> int | None:
    """Returns the number of the version to read, or None for the serving one."""
    return message.version if message.HasField("version") else None


def streamed_item_from(message: pb.UpsertStreamRequest) -> StreamedItem:
    """Returns a message of a stream."""
    return StreamedItem(
        message.collection,
        message.tenant,
        message.sequence,
        message.item.id,
        item_from(message.item),
        message.if_content_changed,
        message.ByteSize(),
    )


def query_from(message: pb.Query) -> Query | InvalidArgument:
    """Returns what to search by, or what is wrong with it."""
    match message.WhichOneof("by"):
        case "image":
            return message.image
        case "vector":
            return _vector_from(message.vector)
        case "id":
            return StoredId(message.id)
        case _:
            return InvalidArgument("the query is empty: set image, vector or id")


def params_from(message: pb.SearchParams, max_filter_bytes: int) -> SearchParams:
    """Returns how to search."""
    return SearchParams(
        top_k=message.top_k if message.HasField("top_k") else DEFAULT_TOP_K,
        offset=message.offset,
        filter=filter_from(message.filter, max_filter_bytes),
        min_similarity=message.min_similarity if message.HasField("min_similarity") else None,
        max_similarity=message.max_similarity if message.HasField("max_similarity") else None,
        ef=message.ef if message.HasField("ef") else None,
        exact=message.exact,
        read_your_writes=message.read_your_writes,
        fold_similarity=message.fold_similarity if message.HasField("fold_similarity") else None,
        output=output_from(message.output),
        version=version_from(message),
    )


def filter_from(message: pb.Filter, max_bytes: int) -> Filter | None:
    """Returns a filter, or None where every row is meant; one of at most so many bytes, which are counted later."""
    if not message.expression and not message.values:
        return None
    if (size := message.ByteSize()) > _MOST_PER_BYTE * max_bytes:
        raise InvalidArgument(f"filter has {size} bytes as a message, of more than {max_bytes} as text: shorten it")
    # Objects, which a filter has no place for, are refused when it is rendered.
    return Filter(message.expression, cast(dict[str, filters.Value], from_fields(message.values)))


def output_from(message: pb.OutputFields) -> tuple[OutputField, ...]:
    """Returns the fields to fetch; which of the attributes are wanted, `record_to` picks."""
    if len(message.attributes) > MAX_OUTPUT_ATTRIBUTES:
        raise InvalidArgument(
            f"{len(message.attributes)} attributes are named for the reply: name at most {MAX_OUTPUT_ATTRIBUTES}, or "
            "none for all"
        )
    left_out = ("attributes",) if message.omit_attributes else ()
    fields = tuple(name for name in ALL_BUT_VECTOR if name not in left_out)
    return (*fields, "vector") if message.include_vector else fields


def _vector_from(message: pb.Vector) -> Embedding | InvalidArgument:
    if len(message.values) > MAX_DIMENSION:
        return InvalidArgument(
            f"a vector has {len(message.values)} components: collections have at most {MAX_DIMENSION}"
        )
    return Embedding(np.array(message.values, dtype=np.float32), message.model_fingerprint)


# ---- To messages


def result_to(item_id: str, outcome: Outcome) -> pb.UpsertResult:
    """Returns what became of one row."""
    if isinstance(outcome, ServiceError):
        return pb.UpsertResult(id=item_id, outcome=pb.UPSERT_OUTCOME_FAILED, error=to_status(outcome))
    return pb.UpsertResult(id=item_id, outcome=_OUTCOMES[outcome])


def record_to(row: StoredRow, output: pb.OutputFields) -> pb.Record:
    """Returns a stored row, with the attributes that `output` names."""
    attributes = row.attributes or {}
    if output.attributes:
        attributes = {name: attributes[name] for name in output.attributes if name in attributes}
    record = pb.Record(
        id=row.id,
        attributes=to_fields(attributes),
        source=row.source or "",
        content_sha256=row.content_sha256 or "",
        update_time=_timestamp(row.updated_ms or 0),
        tenant=row.tenant,
    )
    if row.vector is not None:
        record.vector.model_fingerprint = row.model_fingerprint or ""
        record.vector.values.extend(row.vector.tolist())
    return record


def scan_responses_to(rows: Iterable[StoredRow], output: pb.OutputFields) -> Iterator[pb.ScanResponse]:
    """Yields the rows in messages of about 1 MiB: many gRPC clients take 4 MiB at most."""
    response, size = pb.ScanResponse(), 0
    for row in rows:
        record = record_to(row, output)
        if size and size + record.ByteSize() > _SCAN_BYTES:
            yield response
            response, size = pb.ScanResponse(), 0
        response.records.append(record)
        size += record.ByteSize()
    if size:
        yield response


def search_response_to(result: SearchResult, params: pb.SearchParams) -> pb.SearchResponse:
    """Returns the answer to a search. Raises what its query failed with."""
    [outcome] = result.outcomes
    if isinstance(outcome, ServiceError):
        raise outcome
    return pb.SearchResponse(
        hits=[_hit_to(hit, params.output) for hit in outcome],
        served_by=_served_by_to(result, params),
        timings=_timings_to(result.timings),
    )


def search_batch_response_to(result: SearchResult, params: pb.SearchParams) -> pb.SearchBatchResponse:
    """Returns the answer to a batch of searches."""

    def outcome_to(outcome: Sequence[Hit] | ServiceError) -> pb.SearchBatchResult:
        if isinstance(outcome, ServiceError):
            return pb.SearchBatchResult(error=to_status(outcome))
        return pb.SearchBatchResult(hits=pb.HitList(hits=[_hit_to(hit, params.output) for hit in outcome]))

    return pb.SearchBatchResponse(
        results=[outcome_to(outcome) for outcome in result.outcomes],
        served_by=_served_by_to(result, params),
        timings=_timings_to(result.timings),
    )


def collection_to(state: CollectionState) -> pb.Collection:
    """Returns a collection with its versions."""
    serving = state.serving
    return pb.Collection(
        name=state.name,
        multi_tenant=any(version.version.multi_tenant for version in state.versions),
        serving_version=serving.version.number if serving else 0,
        versions=[_version_to(version, _STATES[state.role(version)]) for version in state.versions],
    )


def _hit_to(hit: Hit, output: pb.OutputFields) -> pb.Hit:
    # |a - b|^2 = 2 - 2 a.b for vectors of length 1; rounding may leave the similarity just above 1.
    distance = math.sqrt(max(0.0, 2.0 - 2.0 * hit.similarity))
    record = record_to(hit.row, output)
    return pb.Hit(record=record, similarity=hit.similarity, distance=distance, folded_ids=hit.folded_ids)


def _served_by_to(result: SearchResult, params: pb.SearchParams) -> pb.ServedBy:
    version = result.version
    return pb.ServedBy(
        version=version.number,
        physical_name=version.physical_name,
        space=_space_to(version.space),
        index_type=pb.INDEX_TYPE_FLAT if result.exact else _INDEX_TYPES[version.index.type],
        ef=result.ef,
        consistency=pb.CONSISTENCY_STRONG if params.read_your_writes else pb.CONSISTENCY_BOUNDED,
    )


def _version_to(state: VersionState, role: pb.VersionState.ValueType) -> pb.CollectionVersion:
    version = state.version
    graph = version.index.is_graph
    return pb.CollectionVersion(
        version=version.number,
        physical_name=version.physical_name,
        space=_space_to(version.space),
        index=pb.IndexSpec(
            type=_INDEX_TYPES[version.index.type],
            m=version.index.m if graph else 0,
            ef_construction=version.index.ef_construction if graph else 0,
        ),
        state=role,
        row_count=state.rows,
        indexed_row_count=state.indexed_rows,
        memory_bytes=state.memory_bytes,
        create_time=_timestamp(version.created_ms),
    )


def _space_to(space: VectorSpace) -> pb.VectorSpace:
    return pb.VectorSpace(model_fingerprint=space.fingerprint, dimension=space.dimension)


def _timestamp(milliseconds: int) -> timestamp_pb2.Timestamp:
    timestamp = timestamp_pb2.Timestamp()
    timestamp.FromMilliseconds(milliseconds)
    return timestamp


def _timings_to(timings: Mapping[str, float]) -> Sequence[pb.StageTiming]:
    return [
        pb.StageTiming(stage=stage, duration=duration_pb2.Duration(nanos=int(seconds % 1 * 1e9), seconds=int(seconds)))
        for stage, seconds in timings.items()
    ]
