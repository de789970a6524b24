"""The search service's RPCs: messages to the core and back, and nothing else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any, TypeAlias

import grpc

from lookalike.search.v1 import search_pb2 as pb
from lookalike.search.v1 import search_pb2_grpc
from search_service import convert
from search_service.milvus_rows import MAX_ATTRIBUTES_BYTES
from search_service.milvus_schema import MAX_SOURCE_BYTES
from search_service.naming import MAX_ID_BYTES
from search_service.service import Outcome, SearchService
from search_service.settings import SearchSettings
from search_service.upsert_stream import StreamedItem, upsert_stream
from service_kit.errors import InvalidArgument, Unimplemented

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["SearchService"].full_name

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
        return pb.DescribeCollectionResponse(
            collection=convert.collection_to(state), limits=self._limits(), backend=self._backend
        )

    async def ListCollections(self, request: pb.ListCollectionsRequest, context: Context) -> pb.ListCollectionsResponse:
        states = await self._service.list_collections(deadline=self._deadline(context))
        return pb.ListCollectionsResponse(collections=[convert.collection_to(state) for state in states])

    async def DeleteCollection(
        self, request: pb.DeleteCollectionRequest, context: Context
    ) -> pb.DeleteCollectionResponse:
        if request.HasField("version"):
            raise Unimplemented("this server deletes whole collections only: leave version out")
        await self._service.delete_collection(request.name, deadline=self._deadline(context))
        return pb.DeleteCollectionResponse()

    async def Upsert(self, request: pb.UpsertRequest, context: Context) -> pb.UpsertResponse:
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
            list(request.ids.ids) if target == "ids" else convert.filter_from(request.filter),
            deadline=self._deadline(context),
        )
        return pb.DeleteResponse(deleted_count=deleted)

    async def Count(self, request: pb.CountRequest, context: Context) -> pb.CountResponse:
        count = await self._service.count(
            request.collection,
            request.tenant,
            convert.filter_from(request.filter),
            deadline=self._deadline(context),
        )
        return pb.CountResponse(count=count)

    async def Search(self, request: pb.SearchRequest, context: Context) -> pb.SearchResponse:
        result = await self._service.search(
            request.collection,
            request.tenant,
            convert.query_from(request.query),
            convert.params_from(request.params),
            deadline=self._deadline(context),
        )
        return convert.search_response_to(result, request.params)

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
            max_batch_queries=0,
            max_top_k=settings.max_top_k,
            max_ef=settings.max_ef,
            max_id_bytes=MAX_ID_BYTES,
            max_attributes_bytes=MAX_ATTRIBUTES_BYTES,
            max_source_bytes=MAX_SOURCE_BYTES,
            max_filter_bytes=settings.max_filter_bytes,
            max_message_bytes=settings.max_message_bytes,
        )
