"""The client of the search service."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import Unpack

import grpc

from lookalike import types as t
from lookalike._convert import search as convert
from lookalike.connection import Connection
from lookalike.errors import LookalikeError, translated
from lookalike.search.v1 import search_pb2 as pb
from lookalike.search.v1.search_pb2_grpc import SearchServiceStub


class Client(Connection):
    """Stores images in collections and searches them. Safe to share between threads.

    Every method raises `LookalikeError` if the call failed, and ValueError or TypeError for arguments that no service
    could take. Calls that fail as UNAVAILABLE are tried again for a second or two, where that can do no harm.

    In a collection created with `multi_tenant`, `tenant` names whose rows a call works on; elsewhere it stays empty.
    Filters compare fields with values, as in `attributes["year"] > {year}`; values are best given apart, by name.

    Args:
        target: the search service, a gRPC name such as "127.0.0.1:50052" or "dns:///lookalike-search:50052".
        timeout: deadline of every call in seconds.

    >>> with Client("127.0.0.1:50052") as client:
    ...     client.create_collection("photos", if_not_exists=True)
    ...     client.upsert("photos", [Item("cat.jpg", image=Path("cat.jpg").read_bytes())])
    ...     result = client.search("photos", image=Path("query.jpg").read_bytes(), top_k=5)
    ...     for hit in result.hits:
    ...         print(hit.id, hit.similarity, hit.distance)
    """

    def __init__(self, target: str = "127.0.0.1:50052", *, timeout: float = 30.0) -> None:
        super().__init__(target, timeout)
        self._stub = SearchServiceStub(self._channel)

    # ---- Collections

    def create_collection(
        self,
        name: str,
        *,
        space: t.VectorSpace | None = None,
        index: t.IndexSpec | None = None,
        multi_tenant: bool = False,
        if_not_exists: bool = False,
    ) -> t.Collection:
        """Creates an empty collection.

        Args:
            name: a letter, then letters, digits and single underscores, at most 128 characters.
            space: where its vectors live; None means the space of the embedder's model.
            index: how vectors are indexed; None means the service's choice, as `IndexType` tells.
            multi_tenant: whether rows belong to tenants. Cannot be changed later.
            if_not_exists: returns the collection that has the name, whatever it is like, instead of ALREADY_EXISTS.
        """
        try:
            request = convert.create_collection_request(name, space, index, multi_tenant)
            return convert.collection(self._call(self._stub.CreateCollection, request).collection)
        except LookalikeError as error:
            if if_not_exists and error.code is grpc.StatusCode.ALREADY_EXISTS:
                return self.describe_collection(name).collection
            raise

    def describe_collection(self, name: str) -> t.CollectionDescription:
        """Describes a collection: its model, index, rows and versions; and the limits on requests."""
        request = pb.DescribeCollectionRequest(name=name)
        return convert.collection_description(self._call(self._stub.DescribeCollection, request))

    def list_collections(self) -> list[t.Collection]:
        """Lists all collections, by name."""
        response = self._call(self._stub.ListCollections, pb.ListCollectionsRequest())
        return [convert.collection(message) for message in response.collections]

    def delete_collection(self, name: str, *, version: int | None = None) -> None:
        """Deletes a collection with all its rows; or one version of it, which must not be the serving one."""
        self._call(self._stub.DeleteCollection, pb.DeleteCollectionRequest(name=name, version=version))

    def create_collection_version(
        self,
        name: str,
        *,
        space: t.VectorSpace | None = None,
        index: t.IndexSpec | None = None,
        require_embedder: bool = False,
    ) -> t.CollectionVersion:
        """Creates a further version of a collection, empty, for another model or index.

        From now on all writes go to it as well, while the version that serves answers searches as before.

        Args:
            name: the collection.
            space: where its vectors live; None means the space of the (first) embedder's model.
            index: how vectors are indexed; None means the service's choice, as `IndexType` tells.
            require_embedder: fails as FAILED_PRECONDITION if the service has no embedder for the space. Without one no
                image can be stored while the version is being filled.

        >>> version = client.create_collection_version("photos")
        >>> client.switch_collection_version("photos", version.version)  # when it has been filled
        """
        request = convert.create_version_request(name, space, index, require_embedder)
        return convert.collection_version(self._call(self._stub.CreateCollectionVersion, request).version)

    def switch_collection_version(self, name: str, version: int) -> t.Collection:
        """Lets another version serve, at once and without downtime: the way forward, and back."""
        request = pb.SwitchCollectionVersionRequest(name=name, version=version)
        return convert.collection(self._call(self._stub.SwitchCollectionVersion, request).collection)

    def fill_version(
        self,
        name: str,
        version: int,
        items: Sequence[t.FillItem],
        *,
        surplus_ids: Sequence[str] = (),
        tenant: str = "",
    ) -> t.FillResult:
        """Copies rows of the serving version into another one: how a new version gets the rows from before it.

        Safe beside other writes: a row that was written or deleted meanwhile, or is there already, stays as it is. Rows
        copied have the attributes, source, hash and update time of the serving ones. `lookalike reindex` does this for
        a whole collection.

        Args:
            version: where to write; not the serving version.
            items: the rows; as many as `SearchLimits.max_batch_items`, and no more bytes than `max_message_bytes`.
            surplus_ids: rows to delete from that version alone, unless the serving version has them.
        """
        request = convert.fill_version_request(name, version, items, surplus_ids, tenant)
        return convert.fill_result(self._call(self._stub.FillCollectionVersion, request))

    # ---- Writes

    def upsert(
        self, collection: str, items: Sequence[t.Item], *, if_content_changed: bool = False, tenant: str = ""
    ) -> list[t.UpsertResult]:
        """Stores rows, replacing those with the same ids entirely.

        Args:
            items: the rows; as many as `SearchLimits.max_batch_items`, and no more bytes than `max_message_bytes`.
            if_content_changed: leaves rows alone that hold the same image, attributes and source.

        Returns:
            What became of each item, in their order. One that failed never harms the others.
        """
        request = convert.upsert_request(collection, items, if_content_changed, tenant)
        response = self._call(self._stub.Upsert, request)
        return [convert.upsert_result(message) for message in response.results]

    def upsert_stream(
        self,
        collection: str,
        items: Iterable[t.Item],
        *,
        if_content_changed: bool = False,
        tenant: str = "",
        timeout: float | None = None,
    ) -> Iterator[t.UpsertResult]:
        """Stores any number of rows; yields what became of each, in their order, when the database has acknowledged it.

        Items are asked for, in a thread, only as fast as the service stores them, and only as long as the results are
        read. An error ends the stream; what had no result by then may or may not be stored: send it again. To stop
        early, close the generator.

        Args:
            items: the rows. Of several with the same id the last is stored.
            if_content_changed: leaves rows alone that hold the same image, attributes and source.
            timeout: deadline of the whole stream in seconds; the client's holds for single calls.

        >>> for result in client.upsert_stream("photos", (Item(str(p), image=p.read_bytes()) for p in paths)):
        ...     print(result.id, result.outcome.name, result.error or "")
        """
        requests = (
            convert.upsert_stream_request(collection, sequence, item, if_content_changed, tenant)
            for sequence, item in enumerate(items)
        )
        method = partial(self._stub.UpsertStream, timeout=timeout)
        # Closed with this generator, and not whenever it is collected.
        with closing(self._stream(method, requests)) as responses:
            for response in responses:
                yield convert.upsert_result(response.result)

    def delete(
        self,
        collection: str,
        *,
        ids: Sequence[str] | None = None,
        filter: str | None = None,
        filter_values: t.Attributes | None = None,
        tenant: str = "",
    ) -> int:
        """Deletes the rows with these ids, or those that a filter selects, and returns how many there were.

        >>> client.delete("photos", filter='attributes["year"] < {year}', filter_values={"year": 1990})
        """
        request = convert.delete_request(collection, ids, filter, filter_values or {}, tenant)
        response: pb.DeleteResponse = self._call(self._stub.Delete, request)
        return response.deleted_count

    # ---- Reads

    def get(
        self, collection: str, ids: Sequence[str], *, tenant: str = "", **options: Unpack[t.GetOptions]
    ) -> t.GetResult:
        """Fetches rows by id; `options` say which parts of them and how fresh, see `GetOptions`."""
        return convert.get_result(self._call(self._stub.Get, convert.get_request(collection, ids, tenant, options)))

    def count(
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
        response: pb.CountResponse = self._call(self._stub.Count, request)
        return response.count

    def scan(
        self,
        collection: str,
        *,
        filter: str = "",
        filter_values: t.Attributes | None = None,
        tenant: str = "",
        all_tenants: bool = False,
        version: int | None = None,
        **options: Unpack[t.GetOptions],
    ) -> Iterator[t.Record]:
        """Yields the rows that a filter selects, or all, in no particular order.

        Every write acknowledged before the scan is seen; later ones may be. A scan takes as long as there are rows: the
        client's timeout does not hold for it, while the service gives each step a timeout of its own. To stop early,
        close the generator. A scan that fails has yielded some rows before.

        Args:
            all_tenants: yields the rows of all tenants of a multi-tenant collection, see `Record.tenant`.
            version: the version to scan; None means the serving one.
            options: which parts of the rows, see `GetOptions`.

        >>> for record in client.scan("photos", include_vector=True):
        ...     print(record.id, record.vector)
        """
        request = convert.scan_request(
            collection, filter, filter_values or {}, tenant, options, version=version, all_tenants=all_tenants
        )
        call = self._stub.Scan(request)
        try:
            with translated():
                for response in call:
                    yield from map(convert.record, response.records)
        finally:
            call.cancel()  # does nothing after the end

    def search(
        self,
        collection: str,
        *,
        image: bytes | None = None,
        vector: t.Embedding | None = None,
        id: str | None = None,
        tenant: str = "",
        **options: Unpack[t.SearchOptions],
    ) -> t.SearchResult:
        """Finds the stored rows most similar to an image, a vector or a stored row.

        Args:
            image: the bytes of an image file.
            vector: a vector; one of another model than the collection's is refused as FAILED_PRECONDITION.
            id: a stored row, which is left out of its own hits.
            options: how to search: `top_k`, `filter`, `min_similarity` and more, see `SearchOptions`.

        >>> client.search("photos", id="cat.jpg", filter='attributes["year"] > {year}', filter_values={"year": 1990})
        """
        request = convert.search_request(collection, image, vector, id, tenant, options)
        return convert.search_result(self._call(self._stub.Search, request))

    def search_batch(
        self, collection: str, queries: Sequence[t.Query], *, tenant: str = "", **options: Unpack[t.SearchOptions]
    ) -> t.SearchBatchResult:
        """Searches by several images, vectors or stored rows at once, which costs less than one by one.

        Args:
            queries: as many as `SearchLimits.max_batch_queries`.
            options: how to search, the same for all: see `SearchOptions`.

        Returns:
            The hits of each query, in their order, or its error. One that failed never harms the others.

        >>> client.search_batch("photos", [Query(id="cat.jpg"), Query(id="dog.jpg")], top_k=5).results
        """
        request = convert.search_batch_request(collection, queries, tenant, options)
        return convert.search_batch_result(self._call(self._stub.SearchBatch, request))
