"""The search service's RPCs: messages to the core and back, and nothing else."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, TypeAlias

import grpc

from lookalike.search.v1 import search_pb2 as pb
from lookalike.search.v1 import search_pb2_grpc
from search_service import convert
from search_service.milvus_rows import MAX_ATTRIBUTES_BYTES, MAX_ATTRIBUTES_DEPTH
from search_service.milvus_schema import MAX_SOURCE_BYTES
from search_service.naming import MAX_ID_BYTES, MAX_NAME_BYTES, MAX_TENANT_BYTES
from search_service.records import StoredRow
from search_service.service import SearchService
from search_service.settings import SearchSettings
from search_service.upsert_stream import StreamedItem, upsert_stream
from search_service.writes import Outcome
from service_kit import identity
from service_kit.access import Needs
from service_kit.errors import DeadlineExceeded, InvalidArgument, PermissionDenied
from service_kit.identity import Role

_SCAN_ROWS = 500  # turned into messages at a time
SERVICE_NAME = pb.DESCRIPTOR.services_by_name["SearchService"].full_name

_READ, _WRITE, _ADMIN = map(Needs, (Role.READ, Role.WRITE, Role.ADMIN))
# Callers bound to tenants are told of collections what `_shown` lets them know.
_DESCRIBE = Needs(Role.READ, shared=True)
ACCESS = {
    SERVICE_NAME: {
        "CreateCollection": _ADMIN,
        "DescribeCollection": _DESCRIBE,
        "ListCollections": _DESCRIBE,
        "DeleteCollection": _ADMIN,
        "CreateCollectionVersion": _ADMIN,
        "SwitchCollectionVersion": _ADMIN,
        "FillCollectionVersion": _ADMIN,
        "Upsert": _WRITE,
        "UpsertStream": _WRITE,
        "Get": _READ,
        "Delete": _WRITE,
        "Count": _READ,
        "Scan": _READ,
        "Search": _READ,
        "SearchBatch": _READ,
    }
}

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class SearchRpc(search_pb2_grpc.SearchServiceServicer):
    """Serves the contract lookalike.search.v1.SearchService; its .proto file says what each call does."""

    def __init__(self, service: SearchService, settings: SearchSettings, backend: str, draining: asyncio.Event) -> None:
        self._service = service
        self._settings = settings
        self._backend = backend
        self._draining = draining

    async def CreateCollection(
        self, request: pb.CreateCollectionRequest, context: Context
    ) -> pb.CreateCollectionResponse:
        state = await self._service.create_collection(
            request.name,
            convert.space_from(request.space) if request.HasField("space") else None,
            convert.index_from(request.index),
            multi_tenant=request.multi_tenant,
            deadline=self._deadline(context),
        )
        return pb.CreateCollectionResponse(collection=convert.collection_to(state))

    async def DescribeCollection(
        self, request: pb.DescribeCollectionRequest, context: Context
    ) -> pb.DescribeCollectionResponse:
        state = await self._service.describe_collection(request.name, deadline=self._deadline(context))
        collection = _shown(convert.collection_to(state))
        if collection is None:
            raise PermissionDenied(
                f"collection {request.name!r} is not multi-tenant, and {identity.current().name!r} is bound to tenants"
            )
        return pb.DescribeCollectionResponse(collection=collection, limits=self._limits(), backend=self._backend)

    async def ListCollections(self, request: pb.ListCollectionsRequest, context: Context) -> pb.ListCollectionsResponse:
        states = await self._service.list_collections(deadline=self._deadline(context))
        shown = (_shown(convert.collection_to(state)) for state in states)
        return pb.ListCollectionsResponse(collections=[each for each in shown if each is not None])

    async def DeleteCollection(
        self, request: pb.DeleteCollectionRequest, context: Context
    ) -> pb.DeleteCollectionResponse:
        version = request.version if request.HasField("version") else None
        await self._service.delete_collection(request.name, version, deadline=self._deadline(context))
        return pb.DeleteCollectionResponse()

    async def CreateCollectionVersion(
        self, request: pb.CreateCollectionVersionRequest, context: Context
    ) -> pb.CreateCollectionVersionResponse:
        number, state = await self._service.create_version(
            request.name,
            convert.space_from(request.space) if request.HasField("space") else None,
            convert.index_from(request.index),
            require_embedder=request.require_embedder,
            deadline=self._deadline(context),
        )
        versions = convert.collection_to(state).versions
        return pb.CreateCollectionVersionResponse(version=next(each for each in versions if each.version == number))

    async def SwitchCollectionVersion(
        self, request: pb.SwitchCollectionVersionRequest, context: Context
    ) -> pb.SwitchCollectionVersionResponse:
        state = await self._service.switch_version(request.name, request.version, deadline=self._deadline(context))
        return pb.SwitchCollectionVersionResponse(collection=convert.collection_to(state))

    async def FillCollectionVersion(
        self, request: pb.FillCollectionVersionRequest, context: Context
    ) -> pb.FillCollectionVersionResponse:
        self._service.check_fill(len(request.items), len(request.surplus_ids), build_index=request.build_index)
        filled = await self._service.fill_version(
            request.name,
            request.tenant,
            request.version,
            [convert.fill_item_from(item) for item in request.items],
            request.surplus_ids,
            build_index=request.build_index,
            deadline=self._deadline(context),
        )
        results = [
            convert.result_to(each.item.id, outcome)
            for each, outcome in zip(request.items, filled.outcomes, strict=True)
        ]
        return pb.FillCollectionVersionResponse(
            results=results, deleted_count=filled.deleted, index_built=filled.index_built
        )

    async def Upsert(self, request: pb.UpsertRequest, context: Context) -> pb.UpsertResponse:
        self._service.check_count("items", len(request.items))
        items = [convert.item_from(item) for item in request.items]
        outcomes = await self._service.upsert(
            request.collection,
            request.tenant,
            items,
            if_content_changed=request.if_content_changed,
            deadline=self._deadline(context),
        )
        results = [convert.result_to(item.id, outcome) for item, outcome in zip(request.items, outcomes, strict=True)]
        return pb.UpsertResponse(results=results)

    async def UpsertStream(  # type: ignore[override]  # gRPC takes either form
        self, request_iterator: AsyncIterator[pb.UpsertStreamRequest], context: Context
    ) -> None:
        # A coroutine that writes, instead of a generator: it ends when the call ends, wherever it waits.
        async def write(item: StreamedItem, outcome: Outcome) -> None:
            result = convert.result_to(item.id, outcome)
            await context.write(pb.UpsertStreamResponse(sequence=item.sequence, result=result))

        await upsert_stream(
            self._service,
            (convert.streamed_item_from(request) async for request in request_iterator),
            write,
            self._settings,
            deadline=partial(self._deadline, context),
            draining=self._draining,
        )

    async def Get(self, request: pb.GetRequest, context: Context) -> pb.GetResponse:
        rows = await self._service.get(
            request.collection,
            request.tenant,
            request.ids,
            convert.output_from(request.output),
            read_your_writes=request.read_your_writes,
            deadline=self._deadline(context),
        )
        found = [(row_id, rows.get(row_id)) for row_id in dict.fromkeys(request.ids)]
        return pb.GetResponse(
            records=[convert.record_to(row, request.output) for _, row in found if row is not None],
            missing_ids=[row_id for row_id, row in found if row is None],
        )

    async def Delete(self, request: pb.DeleteRequest, context: Context) -> pb.DeleteResponse:
        target = request.WhichOneof("target")
        if target is None:
            raise InvalidArgument("nothing to delete is named: set ids or filter")
        deleted = await self._service.delete(
            request.collection,
            request.tenant,
            list(request.ids.ids)
            if target == "ids"
            else convert.filter_from(request.filter, self._settings.max_filter_bytes),
            deadline=self._deadline(context),
        )
        return pb.DeleteResponse(deleted_count=deleted)

    async def Count(self, request: pb.CountRequest, context: Context) -> pb.CountResponse:
        count = await self._service.count(
            request.collection,
            request.tenant,
            convert.filter_from(request.filter, self._settings.max_filter_bytes),
            version_number=convert.version_from(request),
            deadline=self._deadline(context),
        )
        return pb.CountResponse(count=count)

    async def Scan(self, request: pb.ScanRequest, context: Context) -> None:  # type: ignore[override]
        remaining = context.time_remaining()
        if request.all_tenants and request.tenant:
            raise InvalidArgument(f"all tenants are asked for, and tenant {request.tenant!r} is named: leave one out")
        pages = self._service.scan(
            request.collection,
            None if request.all_tenants else request.tenant,
            convert.filter_from(request.filter, self._settings.max_filter_bytes),
            convert.output_from(request.output),
            version_number=convert.version_from(request),
            # A scan takes as long as there are rows: without a deadline of its own only its steps have one.
            deadline=math.inf if remaining is None else time.monotonic() + remaining,
        )
        async with aclosing(pages):
            async for page in pages:
                for start in range(0, len(page), _SCAN_ROWS):
                    rows = page[start : start + _SCAN_ROWS]
                    for response in await asyncio.to_thread(_scan_responses, rows, request.output):
                        await self._write(context, response)

    async def _write(self, context: Context, response: pb.ScanResponse) -> None:
        seconds = self._settings.default_timeout
        try:
            async with asyncio.timeout(seconds):
                await context.write(response)
        except TimeoutError as error:
            raise DeadlineExceeded(f"the scan was not read for {seconds} s: read it faster") from error

    async def Search(self, request: pb.SearchRequest, context: Context) -> pb.SearchResponse:
        result = await self._service.search(
            request.collection,
            request.tenant,
            [convert.query_from(request.query)],
            convert.params_from(request.params, self._settings.max_filter_bytes),
            deadline=self._deadline(context),
        )
        return convert.search_response_to(result, request.params)

    async def SearchBatch(self, request: pb.SearchBatchRequest, context: Context) -> pb.SearchBatchResponse:
        self._service.check_queries(len(request.queries))
        result = await self._service.search(
            request.collection,
            request.tenant,
            [convert.query_from(query) for query in request.queries],
            convert.params_from(request.params, self._settings.max_filter_bytes),
            deadline=self._deadline(context),
        )
        # In a thread: there may be thousands of hits.
        return await asyncio.to_thread(convert.search_batch_response_to, result, request.params)

    def _deadline(self, context: Context) -> float:
        """Returns the call's deadline on the scale of time.monotonic()."""
        remaining = context.time_remaining()
        timeout = self._settings.default_timeout if remaining is None else remaining
        return time.monotonic() + timeout

    def _limits(self) -> pb.Limits:
        settings = self._settings
        return pb.Limits(
            max_image_bytes=settings.max_image_bytes,
            max_batch_items=settings.max_batch_items,
            max_batch_queries=settings.max_batch_queries,
            max_top_k=settings.max_top_k,
            max_ef=settings.max_ef,
            max_id_bytes=MAX_ID_BYTES,
            max_attributes_bytes=MAX_ATTRIBUTES_BYTES,
            max_source_bytes=MAX_SOURCE_BYTES,
            max_filter_bytes=settings.max_filter_bytes,
            max_message_bytes=settings.max_message_bytes,
            max_filter_depth=settings.max_filter_depth,
            max_attributes_depth=MAX_ATTRIBUTES_DEPTH,
            max_output_attributes=convert.MAX_OUTPUT_ATTRIBUTES,
            max_name_bytes=MAX_NAME_BYTES,
            max_tenant_bytes=MAX_TENANT_BYTES,
            max_metadata_bytes=settings.max_metadata_bytes,
            max_caller_calls=settings.max_caller_rpcs,
            request_seconds=settings.request_timeout,
            stream_idle_seconds=settings.stream_idle_timeout,
        )


def _shown(collection: pb.Collection) -> pb.Collection | None:
    """Returns what the caller is told of a collection, None if nothing.

    Callers bound to tenants see multi-tenant collections alone, and not how many rows all tenants have together.
    """
    if identity.current().tenants is None:
        return collection
    if not collection.multi_tenant:
        return None
    for version in collection.versions:
        for count in ("row_count", "indexed_row_count", "memory_bytes"):
            version.ClearField(count)
    return collection


def _scan_responses(rows: Sequence[StoredRow], output: pb.OutputFields) -> list[pb.ScanResponse]:
    return list(convert.scan_responses_to(rows, output))
