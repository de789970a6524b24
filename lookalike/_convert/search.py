"""Calls to the search service: their requests, and what the replies mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime

from google.protobuf import timestamp_pb2

from lookalike import types as t
from lookalike.call import Call
from lookalike.errors import from_status
from lookalike.search.v1 import search_pb2 as pb
from lookalike.values import from_fields, to_fields

# ---- Calls


def create_collection(
    name: str, space: t.VectorSpace | None, index: t.IndexSpec | None, multi_tenant: bool
) -> Call[t.Collection]:
    request = pb.CreateCollectionRequest(name=name, space=_space(space), index=_index(index), multi_tenant=multi_tenant)
    return Call("CreateCollection", request, lambda response: collection(response.collection))


def describe_collection(name: str) -> Call[t.CollectionDescription]:
    return Call("DescribeCollection", pb.DescribeCollectionRequest(name=name), collection_description)


def list_collections() -> Call[list[t.Collection]]:
    return Call(
        "ListCollections",
        pb.ListCollectionsRequest(),
        lambda response: [collection(message) for message in response.collections],
    )


def delete_collection(name: str, version: int | None) -> Call[None]:
    return Call("DeleteCollection", pb.DeleteCollectionRequest(name=name, version=version), lambda _: None)


def create_version(
    name: str, space: t.VectorSpace | None, index: t.IndexSpec | None, require_embedder: bool = False
) -> Call[t.CollectionVersion]:
    request = pb.CreateCollectionVersionRequest(
        name=name, space=_space(space), index=_index(index), require_embedder=require_embedder
    )
    return Call("CreateCollectionVersion", request, lambda response: collection_version(response.version))


def switch_version(name: str, version: int) -> Call[t.Collection]:
    request = pb.SwitchCollectionVersionRequest(name=name, version=version)
    return Call("SwitchCollectionVersion", request, lambda response: collection(response.collection))


def fill_version(
    name: str,
    version: int,
    items: Sequence[t.FillItem],
    surplus_ids: Sequence[str],
    tenant: str,
    build_index: bool = False,
) -> Call[t.FillResult]:
    request = pb.FillCollectionVersionRequest(
        name=name,
        tenant=tenant,
        version=version,
        items=[pb.FillItem(item=_item(each.item), update_time=_timestamp(each.update_time)) for each in items],
        surplus_ids=_ids(surplus_ids),
        build_index=build_index,
    )
    return Call("FillCollectionVersion", request, fill_result)


def upsert(
    collection: str, items: Sequence[t.Item], if_content_changed: bool, tenant: str
) -> Call[list[t.UpsertResult]]:
    request = pb.UpsertRequest(
        collection=collection,
        tenant=tenant,
        items=[_item(item) for item in items],
        if_content_changed=if_content_changed,
    )
    return Call("Upsert", request, lambda response: [upsert_result(message) for message in response.results])


def upsert_stream_request(
    collection: str, sequence: int, item: t.Item, if_content_changed: bool, tenant: str
) -> pb.UpsertStreamRequest:
    return pb.UpsertStreamRequest(
        collection=collection,
        tenant=tenant,
        sequence=sequence,
        item=_item(item),
        if_content_changed=if_content_changed,
    )


def delete(
    collection: str, ids: Sequence[str] | None, filter: str | None, filter_values: t.Attributes | None, tenant: str
) -> Call[int]:
    if (ids is None) == (filter is None):
        raise ValueError("a deletion needs either ids or a filter")
    if ids is not None:
        request = pb.DeleteRequest(collection=collection, tenant=tenant, ids=pb.IdList(ids=_ids(ids)))
    else:
        request = pb.DeleteRequest(collection=collection, tenant=tenant, filter=_filter(filter or "", filter_values))
    return Call("Delete", request, lambda response: int(response.deleted_count))


def get(collection: str, ids: Sequence[str], tenant: str, options: t.GetOptions) -> Call[t.GetResult]:
    _require_known(options, t.GetOptions)
    request = pb.GetRequest(
        collection=collection,
        tenant=tenant,
        ids=_ids(ids),
        output=_output(options),
        read_your_writes=options.get("read_your_writes", False),
    )
    return Call("Get", request, get_result)


def count(
    collection: str, filter: str, filter_values: t.Attributes | None, tenant: str, version: int | None = None
) -> Call[int]:
    request = pb.CountRequest(
        collection=collection, tenant=tenant, filter=_filter(filter, filter_values), version=version
    )
    return Call("Count", request, lambda response: int(response.count))


def scan(
    collection: str,
    filter: str,
    filter_values: t.Attributes | None,
    tenant: str,
    options: t.GetOptions,
    version: int | None = None,
    all_tenants: bool = False,
) -> Call[Iterator[t.Record]]:
    _require_known(options, t.GetOptions)
    request = pb.ScanRequest(
        collection=collection,
        tenant=tenant,
        filter=_filter(filter, filter_values),
        output=_output(options),
        read_your_writes=options.get("read_your_writes", False),
        version=version,
        all_tenants=all_tenants,
    )
    return Call("Scan", request, lambda response: map(record, response.records))


def search(
    collection: str,
    image: bytes | None,
    vector: t.Embedding | None,
    id: str | None,
    tenant: str,
    options: t.SearchOptions,
) -> Call[t.SearchResult]:
    _require_known(options, t.SearchOptions)
    query = _query(t.Query(image, vector, id))
    request = pb.SearchRequest(collection=collection, tenant=tenant, query=query, params=_params(options))
    return Call("Search", request, search_result)


def search_batch(
    collection: str, queries: Sequence[t.Query], tenant: str, options: t.SearchOptions
) -> Call[t.SearchBatchResult]:
    _require_known(options, t.SearchOptions)
    messages = [_query(query) for query in queries]
    request = pb.SearchBatchRequest(collection=collection, tenant=tenant, queries=messages, params=_params(options))
    return Call("SearchBatch", request, search_batch_result)


def query_bytes(query: t.Query) -> int:
    """Returns the size of what a query searches by."""
    if query.image is not None:
        return len(query.image)
    return query.vector.vector.nbytes if query.vector is not None else 0


# ---- Responses


def collection(message: pb.Collection) -> t.Collection:
    return t.Collection(
        name=message.name,
        multi_tenant=message.multi_tenant,
        serving_version=message.serving_version,
        versions=tuple(collection_version(version) for version in message.versions),
    )


def collection_version(message: pb.CollectionVersion) -> t.CollectionVersion:
    return t.CollectionVersion(
        version=message.version,
        physical_name=message.physical_name,
        space=t.VectorSpace(message.space.model_fingerprint, message.space.dimension),
        index=t.IndexSpec(t.IndexType(message.index.type), message.index.m, message.index.ef_construction),
        state=t.VersionState(message.state),
        row_count=message.row_count,
        indexed_row_count=message.indexed_row_count if message.HasField("indexed_row_count") else None,
        memory_bytes=message.memory_bytes if message.HasField("memory_bytes") else None,
        create_time=_time(message.create_time),
    )


def collection_description(response: pb.DescribeCollectionResponse) -> t.CollectionDescription:
    limits = response.limits
    return t.CollectionDescription(
        collection(response.collection),
        t.SearchLimits(
            max_image_bytes=limits.max_image_bytes,
            max_batch_items=limits.max_batch_items,
            max_batch_queries=limits.max_batch_queries,
            max_top_k=limits.max_top_k,
            max_ef=limits.max_ef,
            max_id_bytes=limits.max_id_bytes,
            max_attributes_bytes=limits.max_attributes_bytes,
            max_source_bytes=limits.max_source_bytes,
            max_filter_bytes=limits.max_filter_bytes,
            max_message_bytes=limits.max_message_bytes,
            max_filter_depth=limits.max_filter_depth,
            max_attributes_depth=limits.max_attributes_depth,
            max_output_attributes=limits.max_output_attributes,
            max_name_bytes=limits.max_name_bytes,
            max_tenant_bytes=limits.max_tenant_bytes,
            max_metadata_bytes=limits.max_metadata_bytes,
            max_caller_calls=limits.max_caller_calls,
            request_seconds=limits.request_seconds,
            stream_idle_seconds=limits.stream_idle_seconds,
        ),
        response.backend,
    )


def upsert_result(message: pb.UpsertResult) -> t.UpsertResult:
    error = from_status(message.error) if message.HasField("error") else None
    return t.UpsertResult(message.id, t.UpsertOutcome(message.outcome), error)


def fill_result(response: pb.FillCollectionVersionResponse) -> t.FillResult:
    results = tuple(upsert_result(message) for message in response.results)
    return t.FillResult(results, response.deleted_count, response.index_built)


def record(message: pb.Record) -> t.Record:
    vector = message.vector
    return t.Record(
        id=message.id,
        attributes=from_fields(message.attributes),
        source=message.source,
        content_sha256=message.content_sha256,
        update_time=_time(message.update_time),
        vector=t.Embedding(vector.values, vector.model_fingerprint) if message.HasField("vector") else None,
        tenant=message.tenant,
    )


def get_result(response: pb.GetResponse) -> t.GetResult:
    return t.GetResult(tuple(record(message) for message in response.records), tuple(response.missing_ids))


def search_result(response: pb.SearchResponse) -> t.SearchResult:
    return t.SearchResult(_hits(response.hits), _served_by(response.served_by), _timings(response.timings))


def search_batch_result(response: pb.SearchBatchResponse) -> t.SearchBatchResult:
    results = tuple(
        from_status(result.error) if result.HasField("error") else _hits(result.hits.hits)
        for result in response.results
    )
    return t.SearchBatchResult(results, _served_by(response.served_by), _timings(response.timings))


# ---- Their parts


def _require_known(options: Mapping[str, object], kind: type) -> None:
    """Does at run time what a type checker does before: a misspelt option must not be ignored."""
    unknown = sorted(options.keys() - kind.__annotations__.keys())
    if unknown:
        raise TypeError(f"unknown option {unknown[0]!r}; there are {', '.join(sorted(kind.__annotations__))}")


def _ids(ids: Sequence[str]) -> Sequence[str]:
    if isinstance(ids, str):  # a string is a sequence too: of ids of one letter
        raise TypeError(f"ids must be a list of strings, not the string {ids!r}")
    return ids


def _space(space: t.VectorSpace | None) -> pb.VectorSpace | None:
    if space is None:
        return None
    return pb.VectorSpace(model_fingerprint=space.fingerprint, dimension=space.dimension)


def _index(index: t.IndexSpec | None) -> pb.IndexSpec | None:
    if index is None:
        return None
    return pb.IndexSpec(type=pb.IndexType.ValueType(index.type), m=index.m, ef_construction=index.ef_construction)


def _vector(embedding: t.Embedding) -> pb.Vector:
    return pb.Vector(values=embedding.vector.tolist(), model_fingerprint=embedding.fingerprint)


def _item(item: t.Item) -> pb.UpsertItem:
    message = pb.UpsertItem(id=item.id, attributes=to_fields(item.attributes), source=item.source)
    if item.image is not None:
        message.image = item.image
    if item.vector is not None:
        message.vector.CopyFrom(_vector(item.vector))
    return message


def _query(query: t.Query) -> pb.Query:
    if query.image is not None:
        return pb.Query(image=query.image)
    if query.vector is not None:
        return pb.Query(vector=_vector(query.vector))
    return pb.Query(id=query.id or "")


def _filter(expression: str, values: t.Attributes | None) -> pb.Filter:
    return pb.Filter(expression=expression, values=to_fields(values or {}))


def _output(options: t.OutputOptions) -> pb.OutputFields:
    attributes = options.get("attributes")
    return pb.OutputFields(
        attributes=_ids(attributes or ()),
        omit_attributes=attributes is not None and not attributes,
        include_vector=options.get("include_vector", False),
    )


def _params(options: t.SearchOptions) -> pb.SearchParams:
    return pb.SearchParams(
        top_k=options.get("top_k"),
        offset=options.get("offset", 0),
        filter=_filter(options.get("filter", ""), options.get("filter_values", {})),
        min_similarity=options.get("min_similarity"),
        max_similarity=options.get("max_similarity"),
        ef=options.get("ef"),
        exact=options.get("exact", False),
        read_your_writes=options.get("read_your_writes", False),
        fold_similarity=options.get("fold_similarity"),
        version=options.get("version"),
        output=_output(options),
    )


def _hits(messages: Sequence[pb.Hit]) -> t.Hits:
    return t.Hits(
        t.Hit(record(message.record), message.similarity, message.distance, tuple(message.folded_ids))
        for message in messages
    )


def _served_by(message: pb.ServedBy) -> t.ServedBy:
    return t.ServedBy(
        version=message.version,
        physical_name=message.physical_name,
        space=t.VectorSpace(message.space.model_fingerprint, message.space.dimension),
        index_type=t.IndexType(message.index_type),
        ef=message.ef if message.HasField("ef") else None,
        consistency=t.Consistency(message.consistency),
    )


def _timings(messages: Sequence[pb.StageTiming]) -> Mapping[str, float]:
    return {message.stage: message.duration.ToTimedelta().total_seconds() for message in messages}


def _timestamp(time: datetime) -> timestamp_pb2.Timestamp:
    message = timestamp_pb2.Timestamp()
    message.FromDatetime(time)
    return message


def _time(message: timestamp_pb2.Timestamp) -> datetime:
    return message.ToDatetime(tzinfo=UTC)
