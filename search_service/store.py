"""The store: rows of images with their vectors, in versions of collections, in Milvus Lite or a Milvus server.

A collection has a name and numbered versions. Each version is a Milvus collection of its own that holds vectors of
one space; the alias of the name points at the version that serves. A caller first asks for a version (`serving`,
`version`), then reads and writes that very version, so a switch of the alias in between cannot mix two spaces.

Every method takes `deadline`, on the scale of `time.monotonic()`, and ends by then: with its result, or with a
`service_kit.errors.ServiceError`. Besides those named below, that is DeadlineExceeded, Unavailable, ResourceExhausted,
FailedPrecondition or Internal, as `search_service.milvus_errors` tells. NotFound: the version was deleted meanwhile.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Self

import numpy as np

from search_service import milvus_calls, milvus_filtered, milvus_import, milvus_rows
from search_service.filters import Filter, render, string_literal
from search_service.milvus_access import Access
from search_service.milvus_calls import Consistency
from search_service.milvus_catalog import MAX_EF, Catalog
from search_service.milvus_connection import MilvusConnection
from search_service.milvus_errors import TooLarge
from search_service.milvus_exact import Nearest
from search_service.milvus_features import Backend
from search_service.milvus_import import ImportState
from search_service.milvus_joined import Joiner
from search_service.milvus_rows import EncodedRow
from search_service.milvus_security import NO_SECURITY, Security
from search_service.naming import check_id, check_tenant, primary_key
from search_service.records import (
    ALL_BUT_VECTOR,
    CollectionVersion,
    Hit,
    OutputField,
    Row,
    StoredRow,
    Vector,
    VectorSpace,
)
from service_kit.errors import InvalidArgument, ResourceExhausted, Unavailable

# Limits of Milvus.
MAX_TOP_K = 16_384  # offset included
MAX_QUERIES = 1_024  # Milvus allows 16,384, but answers all of them in one message

_OPEN_SECONDS = 60.0
_DEFAULT_EF = 64
# HNSW finds less the more rows a filter leaves out; see "Search" in docs/benchmarks.md.
_DEFAULT_EF_FILTERED = 2048
_BATCH_ROWS = 1_000
_BATCH_BYTES = 16 << 20
_IDS_PER_EXPRESSION = 500
_PAGE_ROWS = 16_000  # Milvus Lite walks over all rows for each page; a server gives at most 16,384
_PAGE_BYTES = 16 << 20
_JOINED_ROWS = 2_000  # each costs some time of its own
_PAGE_GROWTH = 4
_PAGE_SAMPLE = 64  # rows whose size stands for that of their page


class MilvusStore(Catalog):
    """The only door to Milvus: the catalog of collections, and their rows.

    Args:
        uri: a path ending in ".db" for Milvus Lite in this process, or http(s)://host:port of a server.
        security: the token of a server, and how its TLS is checked.
        db_name: the server's database, empty for its default one.
        connect_timeout: seconds to wait for a connection.
        call_timeout: seconds that one attempt of a read may take, within the caller's deadline.
        write_timeout: seconds that one attempt of a write may take, even if its caller has given up.
        attempts: how often a call is tried before its error is given to the caller.
        threads: the most calls at one time.
        joined_queries: vectors of searches that are joined into one call of Milvus, at most; 1 for none.
        max_filter_bytes, max_filter_depth: limits of a caller's filter.
        max_collections: beyond it none is created.
    """

    def __init__(
        self,
        uri: str,
        *,
        security: Security = NO_SECURITY,
        db_name: str = "",
        connect_timeout: float = 5.0,
        call_timeout: float = 10.0,
        write_timeout: float = 60.0,
        attempts: int = 4,
        threads: int = 16,
        joined_queries: int = 64,
        max_filter_bytes: int = 65_536,
        max_filter_depth: int = 32,
        max_collections: int = 1000,
    ) -> None:
        connection = MilvusConnection(
            uri,
            security=security,
            db_name=db_name,
            connect_timeout=connect_timeout,
            call_timeout=call_timeout,
            attempts=attempts,
            threads=threads,
        )
        super().__init__(connection, Access(connection, write_seconds=write_timeout), max_collections)
        self._joiner = Joiner()
        self._joined_queries = joined_queries
        self._max_filter_bytes = max_filter_bytes
        self._max_filter_depth = max_filter_depth

    async def open(self, *, deadline: float) -> None:
        """Connect and load all collections.

        Raises:
            FailedPrecondition: another process holds the file of Milvus Lite, or the address is wrong.
        """
        await self._connection.open(deadline)
        try:
            await self._load_all(deadline)
            version = await self._connection.call(
                "connect", lambda client, timeout: str(client.get_server_version(timeout=timeout)), deadline
            )
        except BaseException:
            await self._connection.close()
            raise
        self.backend = Backend.parse(version, local=self._connection.local)

    async def close(self) -> None:
        """Finish the writes that run, then disconnect. For Milvus Lite this flushes, and gives the file free."""
        await self._access.close()
        await self._connection.close()

    async def __aenter__(self) -> Self:
        await self.open(deadline=time.monotonic() + _OPEN_SECONDS)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def ping(self, *, deadline: float) -> None:
        """Prove that reading works: search one collection that serves; where there is none, list them."""
        for name in sorted(await self._physical_names(deadline)):
            version = await self._described(name, deadline)
            if version is not None:
                query = np.ones((1, version.space.dimension), dtype=np.float32)
                search = milvus_calls.search(version, query, 1, 0, "", _DEFAULT_EF, (), "Bounded")
                try:
                    await self._access.read(version.physical_name, "search", search, deadline)
                except Unavailable:
                    # It may have been restarted or released behind our back, and has to be loaded again.
                    await self._load_all(deadline)
                    await self._access.read(version.physical_name, "search", search, deadline)
                return

    async def upsert(
        self,
        version: CollectionVersion,
        space: VectorSpace,
        rows: Sequence[Row],
        *,
        tenant: str = "",
        updated_ms: int | None = None,
        deadline: float,
    ) -> int:
        """Write rows, replacing those whose ids exist entirely. Returns how many, when Milvus has acknowledged all.

        Args:
            version: where to write.
            space: of the vectors in `rows`.
            rows: any number, each id once. All are checked before the first is written.
            tenant: whose rows; empty unless the collection is multi-tenant.
            updated_ms: when they were written, in milliseconds since 1970; None means now.

        Raises:
            FailedPrecondition: the vectors are of another space than the version.
            InvalidArgument: a row that cannot be stored.
            DeadlineExceeded, Unavailable: some rows may have been written. The same upsert again does no harm.
        """
        milvus_rows.check_space(version, space)
        check_tenant(tenant, multi_tenant=version.multi_tenant)
        updated_ms = time.time_ns() // 1_000_000 if updated_ms is None else updated_ms
        encoded: list[EncodedRow] = []
        for row in await asyncio.to_thread(milvus_rows.encode_rows, version, tenant, rows, updated_ms):
            if isinstance(row, InvalidArgument):
                raise row
            encoded.append(row)
        return await self.write(version, encoded, deadline=deadline)

    async def start_import(self, version: CollectionVersion, path: str, *, deadline: float) -> int:
        """Have a server import a file of rows, by its path in the server's storage; see `milvus_import`.

        Returns the number of the task. A retry may import the rows twice: count them at the end.

        Raises:
            Unimplemented: Milvus Lite has no bulk import.
        """
        self.backend.require("bulk_import")
        return await self._connection.call("import", milvus_import.start(version, path), deadline)

    async def import_state(self, task: int, *, deadline: float) -> ImportState:
        """How far an import is."""
        return await self._connection.call("import state", milvus_import.state(task), deadline)

    async def write(self, version: CollectionVersion, rows: Sequence[EncodedRow], *, deadline: float) -> int:
        """Write rows that `milvus_rows.encode_rows` made for this version; the rest is as with `upsert`."""
        if len({row["id"] for row in rows}) < len(rows):
            # Which one would win differs between Milvus Lite and the server.
            raise InvalidArgument("an id occurs twice in one upsert: send each id once")
        for batch in _batches(rows):
            await self._write_batch(version, batch, deadline)
        return len(rows)

    async def _write_batch(self, version: CollectionVersion, rows: Sequence[EncodedRow], deadline: float) -> None:
        """Writes rows with one message, or where the server takes only smaller ones, with several."""
        try:
            await self._access.write(version.physical_name, "upsert", milvus_calls.upsert(version, rows), deadline)
        except TooLarge:
            if len(rows) == 1:
                raise
            half = len(rows) // 2
            await self._write_batch(version, rows[:half], deadline)
            await self._write_batch(version, rows[half:], deadline)

    async def delete(self, version: CollectionVersion, ids: Sequence[str], *, tenant: str = "", deadline: float) -> int:
        """Delete rows by id. Returns how many there were: ids that do not exist are no error."""
        conditions = map(milvus_calls.id_in, _keys(version, ids, tenant))
        return sum([await self._delete(version, condition, deadline) for condition in conditions])

    async def delete_where(
        self, version: CollectionVersion, condition: Filter, *, tenant: str = "", deadline: float
    ) -> int:
        """Delete the rows that a filter chooses. Returns how many. After an error some may be gone: send it again."""
        expression = self._expression(version, condition, tenant)
        deleted = 0
        with _blaming(condition):
            while count := await self._delete(version, expression, deadline):
                deleted += count
        return deleted

    async def flush(self, version: CollectionVersion, *, deadline: float) -> bool:
        """Have the index built over the rows written so far: a server leaves them out until it flushes by itself.

        Returns:
            whether it is built; a server goes on with that by itself.
        """
        await self._access.flush(version.physical_name, deadline)
        return self._connection.local

    async def get(
        self,
        version: CollectionVersion,
        ids: Sequence[str],
        *,
        output: Sequence[OutputField] = ALL_BUT_VECTOR,
        tenant: str = "",
        read_your_writes: bool = False,
        deadline: float,
    ) -> dict[str, StoredRow]:
        """Rows by id. Ids that do not exist are left out."""
        rows: dict[str, StoredRow] = {}
        for keys in _keys(version, ids, tenant):
            call = milvus_calls.get(version, keys, output, _consistency(read_your_writes))
            found = await self._access.read(version.physical_name, "get", call, deadline)
            rows.update((row.id, row) for row in found)
        return rows

    async def count(
        self,
        version: CollectionVersion,
        condition: Filter | None = None,
        *,
        tenant: str = "",
        read_your_writes: bool = False,
        deadline: float,
    ) -> int:
        """How many rows there are, or how many of them a filter chooses."""
        expression = self._expression(version, condition, tenant)
        call = milvus_calls.count(version, expression, _consistency(read_your_writes))
        with _blaming(condition):
            return await self._access.read(version.physical_name, "count", call, deadline)

    async def scan(
        self,
        version: CollectionVersion,
        condition: Filter | None = None,
        *,
        output: Sequence[OutputField] = ALL_BUT_VECTOR,
        tenant: str | None = "",
        page_rows: int = _PAGE_ROWS,
        page_seconds: float = math.inf,
        deadline: float,
    ) -> AsyncGenerator[list[StoredRow], None]:
        """All acknowledged rows, or those a filter chooses, by id, in pages. Rows written meanwhile may be missed.

        Writes wait for one page at most. Pages have `page_rows` rows, or as many fewer as keep them near 16 MiB: the
        first is sized for the largest rows there can be, the others by the one before. Each may take `page_seconds`.
        The `tenant` None means all tenants of a multi-tenant collection.
        """
        expression = self._expression(version, condition, tenant)
        last = ""
        rows = min(page_rows, max(1, _PAGE_BYTES // milvus_rows.max_stored_bytes(version, output)))
        while True:
            after = _all_of(expression, f"id > {string_literal(last)}")
            call = milvus_calls.page(version, after, output, rows)
            page_deadline = min(deadline, time.monotonic() + page_seconds)
            try:
                with _blaming(condition):
                    page = await self._access.read(version.physical_name, "scan", call, page_deadline)
            except ResourceExhausted:
                if rows == 1:
                    raise
                rows = max(1, rows // _PAGE_GROWTH)  # the rows may have been too large for one message
                continue
            if not page:
                return
            yield page
            # A page of a server may be short without being the last.
            last = primary_key(page[-1].id, page[-1].tenant)
            sample = page[:: max(1, len(page) // _PAGE_SAMPLE)]
            row_bytes = sum(map(milvus_rows.stored_bytes, sample)) / len(sample)
            rows = min(page_rows, rows * _PAGE_GROWTH, max(1, int(_PAGE_BYTES / row_bytes)))

    async def search(
        self,
        version: CollectionVersion,
        space: VectorSpace,
        vectors: Vector,
        *,
        top_k: int,
        offset: int = 0,
        condition: Filter | None = None,
        tenant: str = "",
        ef: int | None = None,
        exact: bool = False,
        output: Sequence[OutputField] = ("attributes",),
        read_your_writes: bool = False,
        deadline: float,
    ) -> list[list[Hit]]:
        """The most similar rows to each query vector, best first.

        Args:
            version: where to search.
            space: of `vectors`.
            vectors: queries, float32 [nq, D], of any length but zero. Many at once cost little more than one.
            top_k: the most hits of a query; with `offset` at most 16,384.
            offset: how many of the best to leave out.
            condition: only rows that this filter chooses.
            tenant: whose rows; empty unless the collection is multi-tenant.
            ef: breadth of the HNSW search, at most 32,768; at least top_k + offset is used. The default is 64, with a
                filter or a tenant 2,048, or 4 (top_k + offset) where that is more.
            exact: compare with every row. On an HNSW index this reads all vectors from Milvus and compares them here,
                in time and traffic proportional to the rows: no `ef` finds a row that the graph does not reach.
            output: fields of the rows to return.
            read_your_writes: see all writes acknowledged so far (consistency Strong: some 200 ms more on a server), and
                not only those of a few seconds ago (Bounded). An exact search on HNSW always does.

        Returns:
            The hits of each query, at most `top_k`.

        Raises:
            FailedPrecondition: the vectors are of another space than the version.
            InvalidArgument: vectors, numbers or a filter that are not allowed.
        """
        milvus_rows.check_space(version, space)
        queries = milvus_rows.unit_vectors(vectors, space.dimension)
        _check_range("number of queries", len(queries), 1, MAX_QUERIES)
        _check_range("top_k", top_k, 1, MAX_TOP_K)
        _check_range("offset", offset, 0, MAX_TOP_K)
        _check_range("top_k + offset", top_k + offset, 1, MAX_TOP_K)
        expression = self._expression(version, condition, tenant)
        if exact and version.index.is_graph:
            return await self._search_exactly(version, queries, top_k, offset, condition, tenant, output, deadline)
        _check_range("ef", 1 if ef is None else ef, 1, MAX_EF)
        breadth = effective_ef(ef, top_k + offset, filtered=bool(expression))
        level = _consistency(read_your_writes)

        wanted = top_k + offset
        by_graph = condition is not None and not (tenant or self._connection.local or version.index.type == "FLAT")
        near_rows = milvus_filtered.near_rows(wanted) if by_graph else None

        async def run(queries: Vector, deadline: float) -> list[list[Hit]]:
            async def part(
                queries: Vector, expression: str, top_k: int, output: Sequence[OutputField], offset: int = 0
            ) -> list[list[Hit]]:
                ef = max(_DEFAULT_EF, top_k) if near_rows and not expression else breadth
                call = milvus_calls.search(version, queries, top_k, offset, expression, ef, output, level)
                return await self._access.read(version.physical_name, "search", call, deadline)

            if near_rows is None:
                return await part(queries, expression, top_k, output, offset)
            found = await milvus_filtered.search(part, queries, expression, wanted, near_rows, tuple(output))
            return [hits[offset:] for hits in found]

        with _blaming(condition):
            if self._joined_queries == 1:
                return await run(queries, deadline)
            kind = (version.physical_name, top_k, offset, expression, breadth, tuple(output), level)
            most = min(self._joined_queries, _JOINED_ROWS // (top_k + offset))
            return await self._joiner.search(kind, queries, run, most=most, deadline=deadline)

    async def _search_exactly(
        self,
        version: CollectionVersion,
        queries: Vector,
        top_k: int,
        offset: int,
        condition: Filter | None,
        tenant: str,
        output: Sequence[OutputField],
        deadline: float,
    ) -> list[list[Hit]]:
        nearest = Nearest(queries, top_k + offset)
        async for page in self.scan(version, condition, output=("vector",), tenant=tenant, deadline=deadline):
            await asyncio.to_thread(nearest.add, page)
        found = [hits[offset:] for hits in nearest.hits()]
        ids = list({hit.row.id for hits in found for hit in hits})
        rows = await self.get(version, ids, output=output, tenant=tenant, read_your_writes=True, deadline=deadline)
        return [[replace(hit, row=rows[hit.row.id]) for hit in hits if hit.row.id in rows] for hits in found]

    async def _delete(self, version: CollectionVersion, expression: str, deadline: float) -> int:
        call = milvus_calls.delete_some(version, expression)
        return await self._access.write(version.physical_name, "delete", call, deadline)

    def _expression(self, version: CollectionVersion, condition: Filter | None, tenant: str | None) -> str:
        if tenant is not None:
            check_tenant(tenant, multi_tenant=version.multi_tenant)
        elif not version.multi_tenant:
            raise InvalidArgument("the collection is not multi-tenant, but all tenants were asked for: leave that out")
        of_tenant = f"tenant == {string_literal(tenant)}" if tenant else ""
        if condition is None:
            return of_tenant
        rendered = render(
            condition,
            max_bytes=self._max_filter_bytes,
            max_depth=self._max_filter_depth,
            id_prefix=primary_key("", tenant or ""),
        )
        return _all_of(of_tenant, rendered)


def effective_ef(ef: int | None, wanted: int, *, filtered: bool) -> int:
    """The breadth of an HNSW search for the best `wanted` rows: `ef` or its default, which a filter makes larger."""
    default = min(MAX_EF, max(_DEFAULT_EF_FILTERED if filtered else _DEFAULT_EF, 4 * wanted))
    return max(ef or default, wanted)


@contextmanager
def _blaming(condition: Filter | None) -> Iterator[None]:
    """Names the filter where Milvus refuses a request that has one: the rest of it has been checked before."""
    try:
        yield
    except InvalidArgument as error:
        if condition is None:
            raise
        raise InvalidArgument(f"{error.message}: check the filter {condition.expression[:200]!r}") from error


def _keys(version: CollectionVersion, ids: Sequence[str], tenant: str) -> Iterator[list[str]]:
    """The primary keys of the rows with these ids, each once, as many at a time as go into an expression."""
    check_tenant(tenant, multi_tenant=version.multi_tenant)
    keys = list(dict.fromkeys(primary_key(check_id(row_id), tenant) for row_id in ids))
    for start in range(0, len(keys), _IDS_PER_EXPRESSION):
        yield keys[start : start + _IDS_PER_EXPRESSION]


def _batches(rows: Sequence[EncodedRow]) -> Iterator[list[EncodedRow]]:
    """The encoded rows, in parts that Milvus takes in one message."""
    batch: list[EncodedRow] = []
    size = 0
    for row in rows:
        row_bytes = milvus_rows.encoded_bytes(row)
        if batch and (len(batch) == _BATCH_ROWS or size + row_bytes > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(row)
        size += row_bytes
    if batch:
        yield batch


def _consistency(read_your_writes: bool) -> Consistency:
    return "Strong" if read_your_writes else "Bounded"


def _all_of(*conditions: str) -> str:
    """All conditions at once; empty ones are left out. Parentheses keep each one to itself."""
    return " and ".join(f"({condition})" for condition in conditions if condition)


def _check_range(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise InvalidArgument(f"{name} is {value}: use {least} to {most}")
