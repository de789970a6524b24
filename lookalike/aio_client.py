"""The client of the search service for asyncio."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Unpack

import grpc

from lookalike import types as t
from lookalike._convert import search as convert
from lookalike.connection import AsyncConnection, aiter_any
from lookalike.errors import LookalikeError, translated
from lookalike.search.v1 import search_pb2 as pb
from lookalike.search.v1.search_pb2_grpc import SearchServiceStub


class AsyncClient(AsyncConnection):
    """`Client` for asyncio: the same methods, arguments, results and errors. Belongs to one event loop.

    >>> async with AsyncClient("127.0.0.1:50052") as client:
    ...     result = await client.search("photos", image=Path("query.jpg").read_bytes(), top_k=5)
    """

    def __init__(self, target: str = "127.0.0.1:50052", *, timeout: float = 30.0) -> None:
        super().__init__(target, timeout)
        self._stub = SearchServiceStub(self._channel)

    # ---- Collections

    async def create_collection(
        self,
        name: str,
        *,
        space: t.VectorSpace | None = None,
        index: t.IndexSpec | None = None,
        multi_tenant: bool = False,
        if_not_exists: bool = False,
    ) -> t.Collection:
        """Creates an empty collection; see `Client.create_collection`."""
        try:
            request = convert.create_collection_request(name, space, index, multi_tenant)
            return convert.collection((await self._call(self._stub.CreateCollection, request)).collection)
        except LookalikeError as error:
            if if_not_exists and error.code is grpc.StatusCode.ALREADY_EXISTS:
                return (await self.describe_collection(name)).collection
            raise

    async def describe_collection(self, name: str) -> t.CollectionDescription:
        """Describes a collection: its model, index, rows and versions; and the limits on requests."""
        request = pb.DescribeCollectionRequest(name=name)
        return convert.collection_description(await self._call(self._stub.DescribeCollection, request))

    async def list_collections(self) -> list[t.Collection]:
        """Lists all collections, by name."""
        response = await self._call(self._stub.ListCollections, pb.ListCollectionsRequest())
        return [convert.collection(message) for message in response.collections]

    async def delete_collection(self, name: str, *, version: int | None = None) -> None:
        """Deletes a collection with all its rows; or one version of it, which must not be the serving one."""
        await self._call(self._stub.DeleteCollection, pb.DeleteCollectionRequest(name=name, version=version))

    async def create_collection_version(
        self,
        name: str,
        *,
        space: t.VectorSpace | None = None,
        index: t.IndexSpec | None = None,
        require_embedder: bool = False,
    ) -> t.CollectionVersion:
        """Creates a further version of a collection, empty; see `Client.create_collection_version`."""
        request = convert.create_version_request(name, space, index, require_embedder)
        return convert.collection_version((await self._call(self._stub.CreateCollectionVersion, request)).version)

    async def switch_collection_version(self, name: str, version: int) -> t.Collection:
        """Lets another version serve, at once and without downtime: the way forward, and back."""
        request = pb.SwitchCollectionVersionRequest(name=name, version=version)
        return convert.collection((await self._call(self._stub.SwitchCollectionVersion, request)).collection)

    async def fill_version(
        self,
        name: str,
        version: int,
        items: Sequence[t.FillItem],
        *,
        surplus_ids: Sequence[str] = (),
        tenant: str = "",
    ) -> t.FillResult:
        """Copies rows of the serving version into another one; see `Client.fill_version`."""
        request = convert.fill_version_request(name, version, items, surplus_ids, tenant)
        return convert.fill_result(await self._call(self._stub.FillCollectionVersion, request))

    # ---- Writes

    async def upsert(
        self, collection: str, items: Sequence[t.Item], *, if_content_changed: bool = False, tenant: str = ""
    ) -> list[t.UpsertResult]:
        """Stores rows, replacing those with the same ids entirely; see `Client.upsert`."""
        request = convert.upsert_request(collection, items, if_content_changed, tenant)
        response = await self._call(self._stub.Upsert, request)
        return [convert.upsert_result(message) for message in response.results]

    async def upsert_stream(
        self,
        collection: str,
        items: Iterable[t.Item] | AsyncIterable[t.Item],
        *,
        if_content_changed: bool = False,
        tenant: str = "",
        timeout: float | None = None,  # noqa: ASYNC109 - the server is told of it
    ) -> AsyncIterator[t.UpsertResult]:
        """Stores any number of rows, as `Client.upsert_stream` does; reading the items should not block.

        >>> async for result in client.upsert_stream("photos", items):
        ...     print(result.id, result.outcome.name, result.error or "")
        """

        async def requests() -> AsyncIterator[pb.UpsertStreamRequest]:
            sequence = 0
            async for item in aiter_any(items):
                yield convert.upsert_stream_request(collection, sequence, item, if_content_changed, tenant)
                sequence += 1

        method = partial(self._stub.UpsertStream, timeout=timeout)
        # Closed with this generator, and not whenever it is collected.
        async with aclosing(self._stream(method, requests())) as responses:
            async for response in responses:
                yield convert.upsert_result(response.result)

    async def delete(
        self,
        collection: str,
        *,
        ids: Sequence[str] | None = None,
        filter: str | None = None,
        filter_values: t.Attributes | None = None,
        tenant: str = "",
    ) -> int:
        """Deletes the rows with these ids, or those that a filter selects, and returns how many there were."""
        request = convert.delete_request(collection, ids, filter, filter_values or {}, tenant)
        response: pb.DeleteResponse = await self._call(self._stub.Delete, request)
        return response.deleted_count

    # ---- Reads

    async def get(
        self, collection: str, ids: Sequence[str], *, tenant: str = "", **options: Unpack[t.GetOptions]
    ) -> t.GetResult:
        """Fetches rows by id; `options` say which parts of them and how fresh, see `GetOptions`."""
        request = convert.get_request(collection, ids, tenant, options)
        return convert.get_result(await self._call(self._stub.Get, request))

    async def count(
        self,
        collection: str,
        *,
        filter: str = "",
        filter_values: t.Attributes | None = None,
        tenant: str = "",
        version: int | None = None,
    ) -> int:
        """Counts the rows that a filter selects, or all; every acknowledged write is counted."""
        request = convert.count_request(collection, filter, filter_values or {}, tenant, version)
        response: pb.CountResponse = await self._call(self._stub.Count, request)
        return response.count

    async def scan(
        self,
        collection: str,
        *,
        filter: str = "",
        filter_values: t.Attributes | None = None,
        tenant: str = "",
        all_tenants: bool = False,
        version: int | None = None,
        **options: Unpack[t.GetOptions],
    ) -> AsyncIterator[t.Record]:
        """Yields the rows that a filter selects, or all, in no particular order; see `Client.scan`.

        >>> async for record in client.scan("photos"):
        ...     print(record.id)
        """
        request = convert.scan_request(
            collection, filter, filter_values or {}, tenant, options, version=version, all_tenants=all_tenants
        )
        call = self._stub.Scan(request)
        try:
            with translated():
                async for response in call:
                    for message in response.records:
                        yield convert.record(message)
        finally:
            call.cancel()  # does nothing after the end

    async def search(
        self,
        collection: str,
        *,
        image: bytes | None = None,
        vector: t.Embedding | None = None,
        id: str | None = None,
        tenant: str = "",
        **options: Unpack[t.SearchOptions],
    ) -> t.SearchResult:
        """Finds the stored rows most similar to an image, a vector or a stored row; see `Client.search`."""
        request = convert.search_request(collection, image, vector, id, tenant, options)
        return convert.search_result(await self._call(self._stub.Search, request))

    async def search_batch(
        self, collection: str, queries: Sequence[t.Query], *, tenant: str = "", **options: Unpack[t.SearchOptions]
    ) -> t.SearchBatchResult:
        """Searches by several images, vectors or stored rows at once; see `Client.search_batch`."""
        request = convert.search_batch_request(collection, queries, tenant, options)
        return convert.search_batch_result(await self._call(self._stub.SearchBatch, request))
