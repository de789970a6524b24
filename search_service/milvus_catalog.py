"""Collections, their versions, and the alias that points at the version that serves."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from search_service import milvus_calls, milvus_schema
from search_service.index_memory import memory_bytes
from search_service.milvus_access import Access
from search_service.milvus_connection import Client, MilvusConnection
from search_service.milvus_features import Backend
from search_service.naming import check_collection_name, check_fingerprint, parse_physical_name, physical_name
from search_service.records import (
    CollectionState,
    CollectionVersion,
    IndexSpec,
    LiveVersions,
    VectorSpace,
    VersionState,
)
from service_kit.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound

DEFAULT_INDEX = IndexSpec()
MAX_DIMENSION = 32_768
MAX_EF = 32_768
MAX_VERSIONS = 8  # every write goes to all of them
# How long another replica's switch of an alias, or new version, may go unnoticed here.
_SERVING_SECONDS = 1.0


class Catalog:
    """What collections there are. For deadlines and errors in common see `search_service.store`."""

    backend: Backend
    """What Milvus there is; known once the store is open."""

    def __init__(self, connection: MilvusConnection, access: Access, max_collections: int) -> None:
        self._connection = connection
        self._max_collections = max_collections
        self._access = access
        self._defining = asyncio.Lock()
        self._serving: dict[str, tuple[CollectionVersion, float]] = {}
        self._live: dict[str, tuple[LiveVersions, float]] = {}
        self._changes = 0
        # Milvus Lite fails to list collections while one is being dropped.
        self._listing: AbstractContextManager[object] = threading.Lock() if connection.local else nullcontext()

    async def create_collection(
        self,
        name: str,
        space: VectorSpace,
        index: IndexSpec = DEFAULT_INDEX,
        *,
        multi_tenant: bool = False,
        deadline: float,
    ) -> CollectionVersion:
        """Create a collection with its first version, which serves.

        Raises:
            AlreadyExists: there is a collection of that name.
            InvalidArgument: a name, fingerprint, dimension or index that is not allowed.
            FailedPrecondition: there are as many collections as there may be.
            Unimplemented: this Milvus does not have that type of index.
        """
        check_collection_name(name)
        async with self._defining:
            await self._require_absent(name, deadline)
            # A version without an alias is what an earlier attempt left that did not come to its end.
            number = max((await self._names_with_room(name, deadline))[name], default=0) + 1
            version = await self._create(name, number, space, index, multi_tenant, deadline)
            await self._point_alias(version, deadline)
            return version

    async def create_hidden(
        self,
        name: str,
        space: VectorSpace,
        index: IndexSpec = DEFAULT_INDEX,
        *,
        multi_tenant: bool = False,
        deadline: float,
    ) -> CollectionVersion:
        """Create the first version of a collection that nobody can use until `publish`, in the place of any before it.

        Raises:
            AlreadyExists, InvalidArgument, Unimplemented: as `create_collection`.
        """
        check_collection_name(name)
        async with self._defining:
            await self._require_absent(name, deadline)
            for physical in (await self._names_with_room(name, deadline))[name].values():
                await self._drop(physical, deadline)
            return await self._create(name, 1, space, index, multi_tenant, deadline)

    async def publish(self, version: CollectionVersion, *, deadline: float) -> None:
        """Let a version that `create_hidden` made serve.

        Raises:
            AlreadyExists: a collection of its name has been created meanwhile.
        """
        async with self._defining:
            await self._require_absent(version.collection, deadline)
            await self._point_alias(version, deadline)

    async def create_version(
        self, name: str, space: VectorSpace, index: IndexSpec = DEFAULT_INDEX, *, deadline: float
    ) -> CollectionVersion:
        """Create the next version of a collection, empty, beside the one that serves.

        Raises:
            NotFound: there is no such collection.
            InvalidArgument: a fingerprint, dimension or index that is not allowed.
            FailedPrecondition: the collection has as many versions as it may have.
        """
        async with self._defining:
            live = await self.live(name, fresh=True, deadline=deadline)
            if len(live.all) >= MAX_VERSIONS:
                raise FailedPrecondition(
                    f"collection {name!r} has {len(live.all)} versions, and may have {MAX_VERSIONS}: delete one that "
                    "does not serve first"
                )
            number = max((await self._physical_names(deadline))[name]) + 1
            version = await self._create(name, number, space, index, live.serving.multi_tenant, deadline)
            self._forget(name)
            return version

    async def switch(self, name: str, number: int, *, deadline: float) -> CollectionVersion:
        """Let another version serve, from the next call of `serving` on. The way back is the same.

        Raises:
            NotFound: there is no such collection or version.
        """
        async with self._defining:
            version = await self.version(name, number, deadline=deadline)
            await self._point_alias(version, deadline)
            return version

    async def serving(self, name: str, *, deadline: float) -> CollectionVersion:
        """The version that serves, as of at most a second ago. Raises NotFound where there is no such collection."""
        version, until = self._serving.get(name, (None, 0.0))
        if version is None or time.monotonic() > until:
            changes = self._changes
            version = await self._described(check_collection_name(name), deadline)
            if version is None:
                self._forget(name)
                raise _no_collection(name)
            if changes == self._changes:  # otherwise what was read may be what a switch has just ended
                self._serving[name] = (version, time.monotonic() + _SERVING_SECONDS)
        return version

    async def live(self, name: str, *, fresh: bool = False, deadline: float) -> LiveVersions:
        """All versions, as of at most a second ago, or `fresh`, as they are now.

        Raises:
            NotFound: there is no such collection.
        """
        live, until = self._live.get(name, (None, 0.0))
        if live is None or fresh or time.monotonic() > until:
            changes = self._changes
            names = (await self._physical_names(deadline))[check_collection_name(name)]
            serving = await self._described(name, deadline)
            if serving is None:
                self._forget(name)
                raise _no_collection(name)
            others = [
                await self._described(names[number], deadline)
                for number in sorted(names)
                if names[number] != serving.physical_name
            ]
            live = LiveVersions(serving, tuple(version for version in others if version is not None))
            if changes == self._changes:
                self._live[name] = (live, time.monotonic() + _SERVING_SECONDS)
        return live

    async def readable(self, name: str, number: int | None, *, deadline: float) -> CollectionVersion:
        """The version to read: the one of that number, as of at most a second ago, or the one that serves.

        Raises:
            NotFound: there is no such collection or version.
        """
        if number is None:
            return await self.serving(name, deadline=deadline)
        live = await self.live(name, deadline=deadline)
        known = next((version for version in live.all if version.number == number), None)
        return known or await self.version(name, number, deadline=deadline)

    async def version(self, name: str, number: int, *, deadline: float) -> CollectionVersion:
        """One version, serving or not. Raises NotFound where there is no such collection or version."""
        names = (await self._physical_names(deadline))[check_collection_name(name)]
        version = await self._described(names[number], deadline) if number in names else None
        if version is None:
            found = ", ".join(map(str, sorted(names))) or "none"
            raise NotFound(f"collection {name!r} has no version {number}: choose one of its versions ({found})")
        return version

    async def describe(self, name: str, *, deadline: float) -> CollectionState:
        """A collection and its versions as they are now. Raises NotFound where there is no such collection."""
        names = (await self._physical_names(deadline))[check_collection_name(name)]
        if not names:
            raise _no_collection(name)
        return await self._collection_state(name, names, deadline)

    async def list_collections(self, *, deadline: float) -> list[CollectionState]:
        """All collections, by name."""
        names = await self._physical_names(deadline)
        return [await self._collection_state(name, names[name], deadline) for name in sorted(names)]

    async def drop(self, name: str, *, deadline: float) -> None:
        """Delete a collection with all its versions. Raises NotFound where there is no such collection."""
        async with self._defining:
            names = (await self._physical_names(deadline))[check_collection_name(name)]
            if not names:
                raise NotFound(f"collection {name!r} does not exist: nothing was deleted")
            # The alias first, so that nobody finds a collection that is half gone.
            await self._connection.call(
                "delete", lambda client, timeout: client.drop_alias(name, timeout=timeout), deadline
            )
            self._forget(name)
            for physical in names.values():
                await self._drop(physical, deadline)

    async def drop_version(self, name: str, number: int, *, deadline: float) -> None:
        """Delete one version.

        Raises:
            NotFound: there is no such collection or version.
            FailedPrecondition: it is the one that serves.
        """
        async with self._defining:
            version = await self.version(name, number, deadline=deadline)
            if version == await self._described(name, deadline):
                raise FailedPrecondition(f"version {number} of collection {name!r} serves: switch to another one first")
            await self._drop(version.physical_name, deadline)
            self._forget(name)

    async def _require_absent(self, name: str, deadline: float) -> None:
        if await self._described(name, deadline) is not None:
            raise AlreadyExists(f"collection {name!r} exists already: use it, delete it, or choose another name")

    def _forget(self, name: str) -> None:
        """Makes the next call that asks for versions read them anew, and what is being read now not be remembered."""
        self._changes += 1
        self._serving.pop(name, None)
        self._live.pop(name, None)

    async def _load_all(self, deadline: float) -> None:
        """Load every version: after a restart of Milvus Lite none is, and none could be searched."""

        def load(client: Client, timeout: float) -> None:
            for physical in client.list_collections(timeout=timeout):
                if parse_physical_name(physical) is not None:
                    client.load_collection(physical, timeout=timeout)

        # It may build indexes, so it gets all the time there is.
        await self._connection.call("load", load, deadline, attempt_seconds=deadline - time.monotonic())

    async def _names_with_room(self, name: str, deadline: float) -> defaultdict[str, dict[int, str]]:
        """As `_physical_names`, where one more collection may be created."""
        names = await self._physical_names(deadline)
        if name not in names and len(names) >= self._max_collections:
            raise FailedPrecondition(
                f"there are {len(names)} collections, and may be {self._max_collections}: delete one, or use tenants"
            )
        return names

    async def _physical_names(self, deadline: float) -> defaultdict[str, dict[int, str]]:
        """The physical names of all versions, by name and number."""

        def list_all(client: Client, timeout: float) -> Sequence[str]:
            with self._listing:
                found: Sequence[str] = client.list_collections(timeout=timeout)
            return found

        found = await self._connection.call("list", list_all, deadline)
        names: defaultdict[str, dict[int, str]] = defaultdict(dict)
        for physical in found:
            if parsed := parse_physical_name(physical):
                name, number = parsed
                names[name][number] = physical
        return names

    async def _described(self, name: str, deadline: float) -> CollectionVersion | None:
        """The version behind a physical name or an alias, if there is one."""
        try:
            described = await self._connection.call(
                "describe", lambda client, timeout: client.describe_collection(name, timeout=timeout), deadline
            )
        except NotFound:
            return None
        return milvus_schema.version_of(described)

    async def _collection_state(self, name: str, names: dict[int, str], deadline: float) -> CollectionState:
        serving = await self._described(name, deadline)
        states = [await self._version_state(names[number], serving, deadline) for number in sorted(names)]
        return CollectionState(name, tuple(state for state in states if state is not None))

    async def _version_state(
        self, physical: str, serving: CollectionVersion | None, deadline: float
    ) -> VersionState | None:
        version = await self._described(physical, deadline)
        if version is None:
            return None

        def call(client: Client, timeout: float) -> VersionState:
            loaded = client.get_load_state(physical, timeout=timeout)["state"].name == "Loaded"
            index = client.describe_index(physical, "vector", timeout=timeout)
            # The statistics of a server still count deleted rows.
            rows = milvus_calls.count(version, "", "Bounded")(client, timeout) if loaded else 0
            return VersionState(
                version=version,
                serving=version == serving,
                loaded=loaded,
                rows=rows,
                index_state=str(index["state"]),
                # Milvus counts deleted and replaced rows, and Milvus Lite those, too, that are not flushed.
                indexed_rows=max(0, min(rows, int(index["indexed_rows"])) - self._access.unflushed(physical)),
                memory_bytes=memory_bytes(version, rows),
            )

        return await self._access.read(physical, "describe", call, deadline)

    async def _create(
        self,
        name: str,
        number: int,
        space: VectorSpace,
        index: IndexSpec,
        multi_tenant: bool,
        deadline: float,
    ) -> CollectionVersion:
        _check(space, index)
        if index.type == "HNSW_SQ8":
            self.backend.require("hnsw_sq")
        version = CollectionVersion(
            collection=name,
            number=number,
            physical_name=physical_name(name, space.fingerprint, number),
            space=space,
            index=index,
            multi_tenant=multi_tenant,
            created_ms=time.time_ns() // 1_000_000,
        )

        def create(client: Client, timeout: float) -> int:
            # Step by step: when an attempt is repeated, the one before may have done some of them.
            if not client.has_collection(version.physical_name, timeout=timeout):
                client.create_collection(
                    version.physical_name,
                    schema=milvus_schema.schema(version),
                    properties=milvus_schema.properties(version),
                    consistency_level=milvus_schema.CONSISTENCY,
                    timeout=timeout,
                )
            if not client.list_indexes(version.physical_name, timeout=timeout):
                client.create_index(version.physical_name, milvus_schema.index(version), timeout=timeout)
            client.load_collection(version.physical_name, timeout=timeout)
            return 0

        # As a write: others see the collection before it is whole, and Milvus Lite would not bear theirs meanwhile.
        await self._access.write(version.physical_name, "create", create, deadline)
        return version

    async def _point_alias(self, version: CollectionVersion, deadline: float) -> None:
        target = {"collection_name": version.physical_name, "alias": version.collection}
        try:
            await self._connection.call(
                "switch", lambda client, timeout: client.alter_alias(**target, timeout=timeout), deadline
            )
        except NotFound:
            await self._connection.call(
                "switch", lambda client, timeout: client.create_alias(**target, timeout=timeout), deadline
            )
        self._forget(version.collection)

    async def _drop(self, physical: str, deadline: float) -> None:
        def drop(client: Client, timeout: float) -> int:
            with self._listing:
                client.drop_collection(physical, timeout=timeout)
            return 0

        await self._access.write(physical, "delete", drop, deadline)


def _no_collection(name: str) -> NotFound:
    return NotFound(f"collection {name!r} does not exist: create it, or list the collections that do")


def _check(space: VectorSpace, index: IndexSpec) -> None:
    check_fingerprint(space.fingerprint)
    if not 2 <= space.dimension <= MAX_DIMENSION:
        raise InvalidArgument(f"dimension {space.dimension} is not allowed: use 2 to {MAX_DIMENSION}")
    # The contract's ranges, narrower than those of Milvus: beyond them an index only gets slow, or useless.
    if not 2 <= index.m <= 100:
        raise InvalidArgument(f"index.m {index.m} is not allowed: use 2 to 100, or leave it out for {DEFAULT_INDEX.m}")
    if not 8 <= index.ef_construction <= 512:
        raise InvalidArgument(
            f"index.ef_construction {index.ef_construction} is not allowed: use 8 to 512, or leave it out for "
            f"{DEFAULT_INDEX.ef_construction}"
        )
