"""Fills a version of a collection with the rows of the one that serves, beside writes that go to both.

A copy keeps the update time of its row. It is written only if, at that moment, the serving version still has the row of
that time, and the other version has none or an older one: so a copy made from what a row was before never replaces what
it is now, and never brings back what was deleted. The look and the write are one step to the writes of this process:
they take the turn of the collection, and the vectors are made before it.

Writes through other replicas do not wait for that turn. Whatever they and a copy leave behind is told by the two
versions, in which a row then has different times or is missing in one: whoever fills compares them again at the end. A
row that only the version being filled has, as after a deletion that was cut short, is `surplus`, and deleted there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from search_service.embedders import Embedders
from search_service.milvus_rows import EncodedRow, check_space, encode_rows
from search_service.naming import check_tenant
from search_service.records import CollectionVersion, Embedding, LiveVersions, Row, StoredRow
from search_service.store import MilvusStore
from search_service.writes import Item, Outcome, Writer, image_hashes
from service_kit.errors import FailedPrecondition, InvalidArgument, NotFound, ServiceError


@dataclass(frozen=True, slots=True, eq=False)
class FillItem:
    """A row of the serving version for another one: its id, its image or a vector for there, and when it was written.

    The item's attributes and source are of no account: those of the serving row are copied.
    """

    item: Item
    updated_ms: int  # Unix time in milliseconds


@dataclass(frozen=True, slots=True, eq=False)
class FillResult:
    """What became of each item, how many surplus rows were deleted, and whether an index asked for is built."""

    outcomes: Sequence[Outcome]
    deleted: int
    index_built: bool


class Filler:
    """Copies rows from version to version. For deadlines and errors see `SearchService`."""

    def __init__(self, store: MilvusStore, embedders: Embedders, writer: Writer) -> None:
        self._store = store
        self._embedders = embedders
        self._writer = writer

    async def fill(
        self,
        collection: str,
        tenant: str,
        number: int,
        items: Sequence[FillItem | ServiceError],
        surplus_ids: Sequence[str],
        *,
        build_index: bool = False,
        deadline: float,
    ) -> FillResult:
        """Copies rows of the serving version into version `number`; items that are errors already stay what they are.

        Where it fails as a whole some rows may be written: the same again completes it.

        Args:
            surplus_ids: rows to delete from that version alone, unless the serving version has them.
            build_index: has the index built over all rows of that version.

        Raises:
            NotFound: there is no such collection or version.
            FailedPrecondition: it is the version that serves.
        """
        live = await self._store.live(collection, fresh=True, deadline=deadline)
        version = _other(live, number)
        if build_index and not (items or surplus_ids):  # rows may have a tenant, an index has none
            return FillResult([], 0, await self._store.flush(version, deadline=deadline))
        check_tenant(tenant, multi_tenant=version.multi_tenant)
        images = {
            n: each.item.content
            for n, each in enumerate(items)
            if isinstance(each, FillItem) and isinstance(each.item.content, bytes)
        }
        hashes = await asyncio.to_thread(image_hashes, images)
        embedded = await self._embedded(version, images, deadline)
        async with self._writer.turn(live, deadline):
            serving, there = await self._stored(live, version, tenant, items, surplus_ids, deadline)
            plan = await asyncio.to_thread(_Plan, version, tenant, items, serving, there, hashes, embedded)
            surplus = [row_id for row_id in surplus_ids if row_id not in serving]
            await self._store.write(version, plan.rows, deadline=deadline)
            deleted = await self._store.delete(version, surplus, tenant=tenant, deadline=deadline)
        built = build_index and await self._store.flush(version, deadline=deadline)
        return FillResult(plan.outcomes, deleted, built)

    async def _embedded(
        self, version: CollectionVersion, images: Mapping[int, bytes], deadline: float
    ) -> Mapping[int, Embedding | ServiceError]:
        if not images:
            return {}
        try:
            vectors = await self._embedders.embed(
                version, list(images.values()), interactive=False, patient=True, deadline=deadline
            )
        except FailedPrecondition as error:  # no embedder has that model: the other items need none
            return dict.fromkeys(images, error)
        return dict(zip(images, vectors, strict=True))

    async def _stored(
        self,
        live: LiveVersions,
        version: CollectionVersion,
        tenant: str,
        items: Sequence[FillItem | ServiceError],
        surplus_ids: Sequence[str],
        deadline: float,
    ) -> tuple[Mapping[str, StoredRow], Mapping[str, StoredRow]]:
        """Returns the rows of these ids in the serving version and in the one to fill, every write included."""
        ids = list(dict.fromkeys(each.item.id for each in items if isinstance(each, FillItem)))
        serving, there = await asyncio.gather(
            self._store.get(
                live.serving,
                [*ids, *surplus_ids],
                output=("attributes", "source", "content_sha256", "updated_ms"),
                tenant=tenant,
                read_your_writes=True,
                deadline=deadline,
            ),
            self._store.get(
                version, ids, output=("updated_ms",), tenant=tenant, read_your_writes=True, deadline=deadline
            ),
        )
        return serving, there


class _Plan:
    """Which rows are written, and what that makes of the items; positions in the request stand for these."""

    rows: Sequence[EncodedRow]
    outcomes: Sequence[Outcome]

    def __init__(
        self,
        version: CollectionVersion,
        tenant: str,
        items: Sequence[FillItem | ServiceError],
        serving: Mapping[str, StoredRow],
        there: Mapping[str, StoredRow],
        hashes: Mapping[int, str],
        embedded: Mapping[int, Embedding | ServiceError],
    ) -> None:
        outcomes: dict[int, Outcome] = {}
        found: dict[int, tuple[Row, int]] = {}
        for n, each in enumerate(items):
            if isinstance(each, ServiceError):
                outcomes[n] = each
                continue
            row, copy = serving.get(each.item.id), there.get(each.item.id)
            if row is None or row.updated_ms != each.updated_ms or not _older(copy, each.updated_ms):
                outcomes[n] = "unchanged"
                continue
            try:
                vector = _vector(version, each.item, row, hashes.get(n), embedded.get(n))
            except ServiceError as error:
                outcomes[n] = error
            else:
                copied = Row(row.id, vector.vector, row.attributes or {}, row.source or "", row.content_sha256 or "")
                found[n] = (copied, each.updated_ms)
        rows: dict[str, EncodedRow] = {}
        last: dict[str, int] = {}
        encoded = encode_rows(version, tenant, [copied for copied, _ in found.values()], 0)
        for (n, (copied, updated_ms)), columns in zip(found.items(), encoded, strict=True):
            if isinstance(columns, ServiceError):
                outcomes[n] = columns
                continue
            if copied.id in last:
                outcomes[last[copied.id]] = "superseded"
            rows[copied.id] = {**columns, "updated_ms": updated_ms}
            outcomes[n] = "stored"
            last[copied.id] = n
        self.rows = list(rows.values())
        self.outcomes = [outcomes[n] for n in range(len(items))]


def _other(live: LiveVersions, number: int) -> CollectionVersion:
    """Returns the version to fill, which must not be the one that its rows come from."""
    if number == live.serving.number:
        raise FailedPrecondition(
            f"version {number} of collection {live.serving.collection!r} serves, and has its rows: name another version"
        )
    found = next((version for version in live.others if version.number == number), None)
    if found is None:
        numbers = ", ".join(str(version.number) for version in live.others) or "none"
        raise NotFound(
            f"collection {live.serving.collection!r} has no version {number}: choose one that does not serve "
            f"({numbers})"
        )
    return found


def _older(copy: StoredRow | None, updated_ms: int) -> bool:
    """Whether a row of that time is to take the place of what is there."""
    return copy is None or copy.updated_ms is None or copy.updated_ms < updated_ms


def _vector(
    version: CollectionVersion,
    item: Item,
    row: StoredRow,
    image_hash: str | None,
    embedded: Embedding | ServiceError | None,
) -> Embedding:
    """Returns the vector of a copy. Raises what is wrong with the item."""
    if image_hash is not None and image_hash != row.content_sha256:
        was = f"one with the SHA-256 {row.content_sha256}" if row.content_sha256 else "a vector"
        raise InvalidArgument(
            f"the image of id {item.id!r} has the SHA-256 {image_hash}, but the row was made from {was}: upsert the "
            "image instead"
        )
    if isinstance(embedded, ServiceError):
        raise embedded
    vector = item.content if embedded is None else embedded
    assert not isinstance(vector, bytes), "images have been embedded"
    check_space(version, vector.space)
    return vector
