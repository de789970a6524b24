"""Writes go to every version of a collection, so that any of them can serve from one moment to the next.

An item has to reach the version that serves and those that are being filled, or it fails. It also goes to those that
served before, for a way back that loses nothing: wherever it can be made a row of theirs, which for an image takes an
embedder of their model. Deletions go everywhere.

Versions come and go while a write is under way. So it ends only when the versions, read anew behind it, are those
that it has reached; otherwise it is done again, which does no harm. What is acknowledged is then in every version there
was at that reading, whichever a switch lets serve. A version made later was made when the row was in the serving one
already, for whoever fills it to find.

Writes to a collection of several versions take turns, so that of two with the same id the same one is the last in all
of them. That holds within one process: replicas that write the same id at the same moment may leave versions that
differ in that row until it is written again.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar
from weakref import WeakValueDictionary

from search_service.embedders import Embedders
from search_service.filters import Filter
from search_service.milvus_rows import EncodedRow, check_space, encode_rows
from search_service.naming import check_tenant
from search_service.records import CollectionVersion, Embedding, LiveVersions, Row, VectorSpace
from search_service.store import MilvusStore
from search_service.timings import timed
from service_kit.errors import DeadlineExceeded, FailedPrecondition, NotFound, ServiceError

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """A row to be stored, from the bytes of an image file or a vector."""

    id: str
    content: bytes | Embedding
    attributes: Mapping[str, Any]
    source: str


Outcome = Literal["stored", "unchanged", "superseded"] | ServiceError


class Writer:
    """Upserts and deletes in all versions of a collection. For deadlines and errors see `SearchService`."""

    def __init__(self, store: MilvusStore, embedders: Embedders) -> None:
        self._store = store
        self._embedders = embedders
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def prepare(
        self,
        collection: str,
        tenant: str,
        items: Sequence[Item | ServiceError],
        *,
        if_content_changed: Container[int] = (),
        patient: bool = False,
        deadline: float,
    ) -> PreparedUpsert:
        """Does all of an upsert but the write; items that are errors already stay what they are.

        Args:
            if_content_changed: positions of the items that are left alone where nothing has changed.
            patient: waits for room in the embedder instead of being refused.
        """
        upsert = PreparedUpsert(self._store, self._embedders, tenant, items, if_content_changed, patient)
        live = await self._store.live(collection, deadline=deadline)
        try:
            await upsert.plan(live, deadline)
        except NotFound:  # a version has been deleted meanwhile, or the collection
            await upsert.plan(await self._store.live(collection, fresh=True, deadline=deadline), deadline)
        return upsert

    async def write(self, upsert: PreparedUpsert, *, deadline: float) -> None:
        """Writes the rows of an upsert; its outcomes are true from then on.

        Where it fails, with any error, rows may be written in some of the versions: the same again completes it.
        """

        async def write(live: LiveVersions) -> None:
            if live != upsert.live:
                await upsert.plan(live, deadline)

            async def write_to(version: CollectionVersion) -> None:
                await self._store.write(version, upsert.rows[version], deadline=deadline)

            await self._in_all(live, write_to, deadline)

        with timed("upsert_write"):
            await self._settled(upsert.live.serving.collection, write, deadline)

    async def delete(self, collection: str, tenant: str, target: Sequence[str] | Filter, *, deadline: float) -> int:
        """Deletes rows by id or filter, and returns how many there were in the version that serves."""
        deleted: Counter[CollectionVersion] = Counter()

        async def delete_in(version: CollectionVersion) -> None:
            if isinstance(target, Filter):
                count = await self._store.delete_where(version, target, tenant=tenant, deadline=deadline)
            else:
                count = await self._store.delete(version, target, tenant=tenant, deadline=deadline)
            deleted[version] += count

        async def write(live: LiveVersions) -> int:
            await self._in_all(live, delete_in, deadline)
            return deleted[live.serving]

        with timed("delete"):
            return await self._settled(collection, write, deadline)

    async def _settled(self, collection: str, write: Callable[[LiveVersions], Awaitable[T]], deadline: float) -> T:
        """Runs `write`, which may be run again, until the versions are the same behind it as before it."""
        live = await self._store.live(collection, deadline=deadline)
        while True:
            missing: NotFound | None = None
            try:
                result = await write(live)
            except NotFound as error:  # a version that has been deleted meanwhile need not be reached
                missing = error
            now = await self._store.live(collection, fresh=True, deadline=deadline)
            if now != live:
                live = now
            elif missing is not None:
                raise missing
            else:
                return result

    async def _in_all(
        self, live: LiveVersions, write: Callable[[CollectionVersion], Awaitable[None]], deadline: float
    ) -> None:
        async with self.turn(live, deadline):
            await _all(write(version) for version in live.all)

    @asynccontextmanager
    async def turn(self, live: LiveVersions, deadline: float) -> AsyncIterator[None]:
        """Keeps other writes to a collection of several versions, through this process, from being under way."""
        if not live.others:  # in a single version any order is one
            yield
            return
        turn = self._turns.setdefault(live.serving.collection, asyncio.Lock())
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                await turn.acquire()
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"other writes to collection {live.serving.collection!r} took too long, and this one was not begun: "
                "allow more time, or send fewer at a time"
            ) from error
        try:
            yield
        finally:
            turn.release()


class PreparedUpsert:
    """The items of one upsert, and what has been found out about them; positions in the request stand for them.

    `outcomes` are what becomes of the items, in their order, when the `rows` are written in the versions `live`.
    """

    live: LiveVersions
    rows: Mapping[CollectionVersion, Sequence[EncodedRow]]
    outcomes: Sequence[Outcome]

    def __init__(
        self,
        store: MilvusStore,
        embedders: Embedders,
        tenant: str,
        items: Sequence[Item | ServiceError],
        if_content_changed: Container[int],
        patient: bool,
    ) -> None:
        self._store = store
        self._embedders = embedders
        self._tenant = tenant
        self._patient = patient
        self._updated_ms = time.time_ns() // 1_000_000  # the same in all versions
        self._faulty = {n: item for n, item in enumerate(items) if isinstance(item, ServiceError)}
        self._items = {n: item for n, item in enumerate(items) if isinstance(item, Item)}
        self._images = {n: item.content for n, item in self._items.items() if isinstance(item.content, bytes)}
        self._hashes: Mapping[int, str] | None = None
        self._vectors: dict[VectorSpace, dict[int, Embedding | ServiceError]] = {}
        occurrences = Counter(item.id for item in self._items.values())
        # Among several with one id the last one wins, whatever is stored now.
        self._unchanged = [n for n in self._images if n in if_content_changed and occurrences[self._items[n].id] == 1]

    async def plan(self, live: LiveVersions, deadline: float) -> None:
        """Finds out which rows go to each version. An item that cannot go where it has to go goes nowhere."""
        check_tenant(self._tenant, multi_tenant=live.serving.multi_tenant)
        if self._hashes is None:
            self._hashes = await asyncio.to_thread(image_hashes, self._images)
        versions = [version for version in live.all if await self._takes_images(live, version, deadline)]
        for version in versions:
            self._unchanged = await self._unchanged_in(version, self._hashes, deadline)
        unchanged = set(self._unchanged)
        changed = {n: item for n, item in self._items.items() if n not in unchanged}
        spaces = {version.space: version for version in versions}
        await _all(self._embed(version, changed, deadline) for version in spaces.values())
        vectors = {version: self._vectors.get(version.space, {}) for version in versions}
        rows: dict[CollectionVersion, Mapping[int, EncodedRow]] = {}
        faults = dict(self._faulty)
        for version in live.all:
            rows[version], wrong = await asyncio.to_thread(
                self._encoded, live, version, changed, vectors.get(version, {})
            )
            faults = {**wrong, **faults}
        # A dict keeps the last of several with one id.
        last = {item.id: n for n, item in changed.items() if n not in faults}
        outcomes: dict[int, Outcome] = {**faults, **dict.fromkeys(unchanged, "unchanged")}
        for n in changed.keys() - faults.keys():
            outcomes[n] = "stored" if last[changed[n].id] == n else "superseded"
        self.live = live
        self.rows = {each: [of[n] for n in last.values() if n in of] for each, of in rows.items()}
        self.outcomes = [outcomes[n] for n in range(len(outcomes))]

    async def _takes_images(self, live: LiveVersions, version: CollectionVersion, deadline: float) -> bool:
        """Whether images have to go to a version."""
        if not self._images or live.role(version) != "retired":
            return True
        return await self._embedders.serve(version.space, deadline)

    async def _unchanged_in(self, version: CollectionVersion, hashes: Mapping[int, str], deadline: float) -> list[int]:
        """Returns which of the images unchanged so far a version has too, with the same attributes and source."""
        if not self._unchanged:
            return []
        with timed("upsert_read"):
            stored = await self._store.get(
                version,
                [self._items[n].id for n in self._unchanged],
                output=("attributes", "source", "content_sha256"),
                tenant=self._tenant,
                # A row that was replaced or deleted a moment ago must not pass for what is there.
                read_your_writes=True,
                deadline=deadline,
            )

        def same(n: int) -> bool:
            item, row = self._items[n], stored.get(self._items[n].id)
            if row is None or (hashes[n], item.source) != (row.content_sha256, row.source):
                return False
            # As JSON, because to Python 1, 1.0 and True are equal.
            return json.dumps(item.attributes, sort_keys=True) == json.dumps(row.attributes, sort_keys=True)

        return [n for n in self._unchanged if same(n)]

    async def _embed(self, version: CollectionVersion, changed: Mapping[int, Item], deadline: float) -> None:
        """Makes the vectors of the images in a version's space, as far as there are none yet."""
        vectors = self._vectors.setdefault(version.space, {})
        images = {n: image for n, image in self._images.items() if n in changed and n not in vectors}
        if not images:
            return
        try:
            with timed("upsert_embed"):
                embedded = await self._embedders.embed(
                    version, list(images.values()), interactive=False, patient=self._patient, deadline=deadline
                )
        except FailedPrecondition as error:  # no embedder has that model: the other items need none
            vectors.update(dict.fromkeys(images, error))
        else:
            vectors.update(zip(images, embedded, strict=True))

    def _encoded(
        self,
        live: LiveVersions,
        version: CollectionVersion,
        items: Mapping[int, Item],
        embedded: Mapping[int, Embedding | ServiceError],
    ) -> tuple[Mapping[int, EncodedRow], Mapping[int, ServiceError]]:
        """Returns the rows for a version, and what is wrong with the items that cannot go there but have to.

        Args:
            embedded: the vectors of the images, if the version takes images.
        """
        hashes = self._hashes or {}
        found: dict[int, Row] = {}
        faults: dict[int, ServiceError] = {}
        for n, item in items.items():
            try:
                if (vector := _vector(live, version, item, embedded.get(n))) is not None:
                    check_space(version, vector.space)
                    found[n] = Row(item.id, vector.vector, item.attributes, item.source, hashes.get(n, ""))
            except ServiceError as error:
                faults[n] = error
        rows: dict[int, EncodedRow] = {}
        for n, row in zip(
            found, encode_rows(version, self._tenant, list(found.values()), self._updated_ms), strict=True
        ):
            if isinstance(row, ServiceError):
                faults[n] = row
            else:
                rows[n] = row
        return rows, faults


def image_hashes(images: Mapping[int, bytes]) -> dict[int, str]:
    """Returns the SHA-256 of each image, in hex."""
    return {n: hashlib.sha256(image).hexdigest() for n, image in images.items()}


def _vector(
    live: LiveVersions, version: CollectionVersion, item: Item, embedded: Embedding | ServiceError | None
) -> Embedding | None:
    """Returns an item's vector for a version, or None if it need not go there. Raises what is wrong with it."""
    if isinstance(item.content, bytes):
        if isinstance(embedded, ServiceError):
            raise embedded
        return embedded
    vector, role = item.content, live.role(version)
    if vector.space == version.space or role == "serving":
        return vector
    if role == "retired":
        return None
    raise FailedPrecondition(
        f"a vector of model {vector.fingerprint} ({len(vector.vector)} dimensions) cannot go to version "
        f"{version.number} of collection {version.collection!r}, which is being filled with those of model "
        f"{version.space.fingerprint} ({version.space.dimension} dimensions) and receives all writes: send the image "
        "instead, or delete that version"
    )


async def _all(awaitables: Iterable[Awaitable[object]]) -> None:
    """Waits for all, and only then raises the first error, so that nothing is left running behind it."""
    for result in await asyncio.gather(*awaitables, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
