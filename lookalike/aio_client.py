"""The client of the search service for asyncio."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Unpack

from lookalike import types as t
from lookalike._convert import search as calls
from lookalike.batches import Batches, is_too_much
from lookalike.connection import AsyncConnection, aiter_any
from lookalike.errors import MAYBE_THERE, LookalikeError
from lookalike.search.v1 import search_pb2 as pb
from lookalike.search.v1.search_pb2_grpc import SearchServiceStub
from lookalike.security import Security


class AsyncClient(AsyncConnection):
    """`Client` for asyncio: the same methods, arguments, results and errors. Belongs to one event loop.

    >>> async with AsyncClient("127.0.0.1:50052") as client:
    ...     collection = await client.create_collection("photos", if_not_exists=True)
    ...     results = await client.upsert("photos", [Item("cat.jpg", image=Path("cat.jpg").read_bytes())])
    ...     result = await client.search("photos", image=Path("query.jpg").read_bytes(), top_k=1, read_your_writes=True)
    ...     print(result.hits.ids)
    ['cat.jpg']
    """

    def __init__(
        self,
        target: str = "127.0.0.1:50052",
        *,
        timeout: float = 30.0,
        retry: bool = True,
        security: Security | None = None,
    ) -> None:
        super().__init__(target, timeout, retry, security, SearchServiceStub)

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
            return await self._call(calls.create_collection(name, space, index, multi_tenant))
        except LookalikeError as error:
            if if_not_exists and error.code in MAYBE_THERE:
                return (await self.describe_collection(name)).collection
            raise

    async def describe_collection(self, name: str) -> t.CollectionDescription:
        """Describes a collection: its model, index, rows and versions; and the limits on requests."""
        return await self._call(calls.describe_collection(name))

    async def list_collections(self) -> list[t.Collection]:
        """Lists all collections, by name."""
        return await self._call(calls.list_collections())

    async def delete_collection(self, name: str, *, version: int | None = None) -> None:
        """Deletes a collection with all its rows; or one version of it, which must not be the serving one."""
        await self._call(calls.delete_collection(name, version))

    async def create_collection_version(
        self,
        name: str,
        *,
        space: t.VectorSpace | None = None,
        index: t.IndexSpec | None = None,
        require_embedder: bool = False,
    ) -> t.CollectionVersion:
        """Creates a further version of a collection, empty; see `Client.create_collection_version`."""
        return await self._call(calls.create_version(name, space, index, require_embedder))

    async def switch_collection_version(self, name: str, version: int) -> t.Collection:
        """Lets another version serve, at once and without downtime: the way forward, and back."""
        return await self._call(calls.switch_version(name, version))

    async def fill_version(
        self,
        name: str,
        version: int,
        items: Sequence[t.FillItem],
        *,
        surplus_ids: Sequence[str] = (),
        tenant: str = "",
        build_index: bool = False,
    ) -> t.FillResult:
        """Copies rows of the serving version into another one; see `Client.fill_version`."""
        return await self._call(calls.fill_version(name, version, items, surplus_ids, tenant, build_index))

    # ---- Writes

    async def upsert(
        self, collection: str, items: Sequence[t.Item], *, if_content_changed: bool = False, tenant: str = ""
    ) -> list[t.UpsertResult]:
        """Stores rows, replacing those with the same ids entirely; see `Client.upsert`."""
        return await self._call(calls.upsert(collection, items, if_content_changed, tenant))

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

        >>> items = (Item(path.name, image=path.read_bytes()) for path in Path().glob("*.jpg"))
        >>> [result.error async for result in client.upsert_stream("photos", items)]
        [None, None, None, None]
        """

        async def requests() -> AsyncIterator[pb.UpsertStreamRequest]:
            sequence = 0
            async for item in aiter_any(items):
                yield calls.upsert_stream_request(collection, sequence, item, if_content_changed, tenant)
                sequence += 1

        method = partial(self._stub.UpsertStream, timeout=timeout)
        # Closed with this generator, and not whenever it is collected.
        async with aclosing(self._stream(method, requests())) as responses:
            async for response in responses:
                yield calls.upsert_result(response.result)

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
        return await self._call(calls.delete(collection, ids, filter, filter_values, tenant))

    # ---- Reads

    async def get(
        self, collection: str, ids: Sequence[str], *, tenant: str = "", **options: Unpack[t.GetOptions]
    ) -> t.GetResult:
        """Fetches rows by id; `options` say which parts of them and how fresh, see `GetOptions`."""
        return await self._call(calls.get(collection, ids, tenant, options))

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
        return await self._call(calls.count(collection, filter, filter_values, tenant, version))

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

        >>> sorted([record.id async for record in client.scan("photos")])
        ['cat.jpg', 'mirrored.jpg', 'rocket.jpg']
        """
        call = calls.scan(collection, filter, filter_values, tenant, options, version=version, all_tenants=all_tenants)
        # Closed with this generator, and not whenever it is collected.
        async with aclosing(self._read(call)) as pages:
            async for page in pages:
                for record in page:
                    yield record

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
        return await self._call(calls.search(collection, image, vector, id, tenant, options))

    async def search_batch(
        self, collection: str, queries: Sequence[t.Query], *, tenant: str = "", **options: Unpack[t.SearchOptions]
    ) -> t.SearchBatchResult:
        """Searches by several images, vectors or stored rows at once; see `Client.search_batch`."""
        return await self._call(calls.search_batch(collection, queries, tenant, options))

    async def search_many(
        self,
        collection: str,
        queries: Iterable[t.Query] | AsyncIterable[t.Query],
        *,
        tenant: str = "",
        **options: Unpack[t.SearchOptions],
    ) -> AsyncIterator[t.Hits | LookalikeError]:
        """Searches by any number of queries; yields the hits, or the error, of each; see `Client.search_many`.

        >>> queries = (Query(image=Path(name).read_bytes()) for name in ("rocket.jpg", "cat.jpg"))
        >>> [hits.ids async for hits in client.search_many("photos", queries, top_k=1)]
        [['rocket.jpg'], ['cat.jpg']]
        """

        async def send(part: list[t.Query]) -> list[t.Hits | LookalikeError]:
            try:
                return list((await self.search_batch(collection, part, tenant=tenant, **options)).results)
            except LookalikeError as error:
                if not is_too_much(error):
                    raise
                if len(part) == 1:
                    return [error]
            half = len(part) // 2
            return [*await send(part[:half]), *await send(part[half:])]

        limits = (await self.describe_collection(collection)).limits
        batches = Batches[t.Query](limits.max_batch_queries, limits.max_message_bytes, limits.max_image_bytes)
        async with aclosing(self._in_batches(queries, calls.query_bytes, batches, send)) as results:
            async for result in results:
                yield result
