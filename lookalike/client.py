"""The client of the search service."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import Unpack

from lookalike import types as t
from lookalike._convert import search as calls
from lookalike.batches import Batches, is_too_much
from lookalike.connection import Connection
from lookalike.errors import MAYBE_THERE, LookalikeError
from lookalike.search.v1.search_pb2_grpc import SearchServiceStub
from lookalike.security import Security


class Client(Connection):
    """Stores images in collections and searches them. Safe to share between threads.

    Every method raises `LookalikeError` if the call failed, and ValueError or TypeError for arguments that no service
    could take. Where it can do no harm, calls that fail as UNAVAILABLE are tried again for a second or two, and those
    refused with a time to come back (`LookalikeError.retry_after`) are tried again then, if their deadline allows.

    In a collection created with `multi_tenant`, `tenant` names whose rows a call works on; elsewhere it stays empty.
    Filters compare fields with values, as in `attributes["year"] > {year}`; values are best given apart, by name.

    Args:
        target: the search service, a gRPC name such as "127.0.0.1:50052" or "dns:///lookalike-search:50052".
        timeout: deadline of every call in seconds, for all its attempts together; see `with_timeout`.
        retry: False makes every call one attempt, for callers that want to see each refusal.
        security: TLS and a token; None means what the environment says, see `Security.from_environment`.

    >>> with Client("127.0.0.1:50052", timeout=10) as client:
    ...     collection = client.create_collection("photos", if_not_exists=True)
    ...     results = client.upsert("photos", [Item("cat.jpg", image=Path("cat.jpg").read_bytes())])
    ...     result = client.search("photos", image=Path("query.jpg").read_bytes(), top_k=1, read_your_writes=True)
    ...     for hit in result.hits:
    ...         print(hit.id, hit.similarity > 0.9, hit.distance < 0.5)
    cat.jpg True True

    The examples of the methods have such a client, whose collection "photos" has the rows cat.jpg of the year 1991,
    mirrored.jpg, the same cat, of 2005, and rocket.jpg of no year.
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
            if_not_exists: returns the collection that has the name, whatever it is like, instead of ALREADY_EXISTS; and
                instead of PERMISSION_DENIED, for callers who may write but not create.
        """
        try:
            return self._call(calls.create_collection(name, space, index, multi_tenant))
        except LookalikeError as error:
            if if_not_exists and error.code in MAYBE_THERE:
                return self.describe_collection(name).collection
            raise

    def describe_collection(self, name: str) -> t.CollectionDescription:
        """Describes a collection: its model, index, rows and versions; and the limits on requests."""
        return self._call(calls.describe_collection(name))

    def list_collections(self) -> list[t.Collection]:
        """Lists all collections, by name."""
        return self._call(calls.list_collections())

    def delete_collection(self, name: str, *, version: int | None = None) -> None:
        """Deletes a collection with all its rows; or one version of it, which must not be the serving one."""
        self._call(calls.delete_collection(name, version))

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
        >>> version.state.name, version.row_count
        ('FILLING', 0)
        >>> client.switch_collection_version("photos", version.version).serving_version  # when it has been filled
        2
        """
        return self._call(calls.create_version(name, space, index, require_embedder))

    def switch_collection_version(self, name: str, version: int) -> t.Collection:
        """Lets another version serve, at once and without downtime: the way forward, and back."""
        return self._call(calls.switch_version(name, version))

    def fill_version(
        self,
        name: str,
        version: int,
        items: Sequence[t.FillItem],
        *,
        surplus_ids: Sequence[str] = (),
        tenant: str = "",
        build_index: bool = False,
    ) -> t.FillResult:
        """Copies rows of the serving version into another one: how a new version gets the rows from before it.

        Safe beside other writes: a row that was written or deleted meanwhile, or is there already, stays as it is. Rows
        copied have the attributes, source, hash and update time of the serving ones. `lookalike reindex` does this for
        a whole collection.

        Args:
            version: where to write; not the serving version.
            items: the rows; as many as `SearchLimits.max_batch_items`, and no more bytes than `max_message_bytes`.
            surplus_ids: rows to delete from that version alone, unless the serving version has them.
            build_index: has the index built over all rows of that version, which a Milvus server puts off for the
                newest; if the result does not say that it is built, `CollectionVersion.indexed_row_count` tells how far
                it is.
        """
        return self._call(calls.fill_version(name, version, items, surplus_ids, tenant, build_index))

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

        >>> items = [Item("cat.jpg", image=Path("cat.jpg").read_bytes()), Item("text", image=b"not an image")]
        >>> for result in client.upsert("photos", items):
        ...     print(result.id, result.outcome.name, result.error.code.name if result.error else "")
        cat.jpg STORED
        text FAILED INVALID_ARGUMENT
        """
        return self._call(calls.upsert(collection, items, if_content_changed, tenant))

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

        >>> items = (Item(path.name, image=path.read_bytes()) for path in Path().glob("*.jpg"))
        >>> sum(result.error is None for result in client.upsert_stream("photos", items))
        4
        """
        requests = (
            calls.upsert_stream_request(collection, sequence, item, if_content_changed, tenant)
            for sequence, item in enumerate(items)
        )
        method = partial(self._stub.UpsertStream, timeout=timeout)
        # Closed with this generator, and not whenever it is collected.
        with closing(self._stream(method, requests)) as responses:
            for response in responses:
                yield calls.upsert_result(response.result)

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

        >>> client.delete("photos", filter='attributes["year"] < {year}', filter_values={"year": 2000})
        1
        """
        return self._call(calls.delete(collection, ids, filter, filter_values, tenant))

    # ---- Reads

    def get(
        self, collection: str, ids: Sequence[str], *, tenant: str = "", **options: Unpack[t.GetOptions]
    ) -> t.GetResult:
        """Fetches rows by id; `options` say which parts of them and how fresh, see `GetOptions`.

        >>> result = client.get("photos", ["cat.jpg", "lion.jpg"], read_your_writes=True)
        >>> [record.attributes for record in result.records], result.missing_ids
        ([{'year': 1991}], ('lion.jpg',))
        """
        return self._call(calls.get(collection, ids, tenant, options))

    def count(
        self,
        collection: str,
        *,
        filter: str = "",
        filter_values: t.Attributes | None = None,
        tenant: str = "",
        version: int | None = None,
    ) -> int:
        """Counts the rows that a filter selects, or all; every acknowledged write is counted.

        >>> client.count("photos"), client.count("photos", filter='attributes["year"] > 2000')
        (3, 1)
        """
        return self._call(calls.count(collection, filter, filter_values, tenant, version))

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

        >>> sorted(record.id for record in client.scan("photos", attributes=[]))
        ['cat.jpg', 'mirrored.jpg', 'rocket.jpg']
        """
        call = calls.scan(collection, filter, filter_values, tenant, options, version=version, all_tenants=all_tenants)
        # Closed with this generator, and not whenever it is collected.
        with closing(self._read(call)) as pages:
            for page in pages:
                yield from page

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

        >>> client.search("photos", image=Path("query.jpg").read_bytes(), top_k=2).hits.ids
        ['cat.jpg', 'mirrored.jpg']
        >>> later = {"filter": 'attributes["year"] > {year}', "filter_values": {"year": 2000}}
        >>> client.search("photos", image=Path("query.jpg").read_bytes(), **later).hits.ids
        ['mirrored.jpg']
        """
        return self._call(calls.search(collection, image, vector, id, tenant, options))

    def search_batch(
        self, collection: str, queries: Sequence[t.Query], *, tenant: str = "", **options: Unpack[t.SearchOptions]
    ) -> t.SearchBatchResult:
        """Searches by several images, vectors or stored rows at once, which costs less than one by one.

        Args:
            queries: as many as `SearchLimits.max_batch_queries`.
            options: how to search, the same for all: see `SearchOptions`.

        Returns:
            The hits of each query, in their order, or its error. One that failed never harms the others.

        >>> [hits.ids for hits in client.search_batch("photos", [Query(id="cat.jpg")], top_k=1).results]
        [['mirrored.jpg']]
        """
        return self._call(calls.search_batch(collection, queries, tenant, options))

    def search_many(
        self, collection: str, queries: Iterable[t.Query], *, tenant: str = "", **options: Unpack[t.SearchOptions]
    ) -> Iterator[t.Hits | LookalikeError]:
        """Searches by any number of queries; yields the hits, or the error, of each, in their order.

        They are sent in batches that the service takes, two at a time; no more than three are in memory. Each batch has
        the client's timeout. An error of a whole batch ends it; what was found before has been yielded. To stop early,
        close the generator.

        >>> names = ["rocket.jpg", "cat.jpg"]
        >>> queries = (Query(image=Path(name).read_bytes()) for name in names)
        >>> for name, hits in zip(names, client.search_many("photos", queries, top_k=1)):
        ...     print(name, hits.ids)
        rocket.jpg ['rocket.jpg']
        cat.jpg ['cat.jpg']
        """

        def send(part: list[t.Query]) -> list[t.Hits | LookalikeError]:
            try:
                return list(self.search_batch(collection, part, tenant=tenant, **options).results)
            except LookalikeError as error:
                if not is_too_much(error):
                    raise
                if len(part) == 1:
                    return [error]
            half = len(part) // 2
            return [*send(part[:half]), *send(part[half:])]

        limits = self.describe_collection(collection).limits
        batches = Batches[t.Query](limits.max_batch_queries, limits.max_message_bytes, limits.max_image_bytes)
        with closing(self._in_batches(queries, calls.query_bytes, batches, send)) as results:
            yield from results
