"""Any sequence of writes, reads, reindexes, switches, restarts and crashes against a dict that says what is right.

Hypothesis draws the sequences and makes one that fails as short as it can. LOOKALIKE_MACHINE_STEPS is how many steps
there are in all, about; with it they are other ones each time, by LOOKALIKE_MACHINE_SEED if that is set.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from random import SystemRandom
from typing import Any

import grpc
import pytest
from embedding_server import BAD, serving_in_a_thread
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from reference_model import IMAGES, VECTORS, Key, Reference, Row, Version, Where, everything

import lookalike
from lookalike import AsyncClient, Client, Embedding, Hits, IndexSpec, IndexType, Item, LookalikeError, Query, Record
from lookalike import UpsertOutcome as Outcome
from search_service.records import VectorSpace
from workbench.progress import Progress
from workbench.reindex import Filler, find_version
from workbench.services import ServerProcess
from workbench.sources import Sources

STEPS = os.environ.get("LOOKALIKE_MACHINE_STEPS")
STEPS_AT_A_TIME = 25
STARTS = 3 if STEPS else 1  # of the service, in so many steps: each takes a second or more
NAME = "machine"
SPACES = VectorSpace("model-a", 4), VectorSpace("model-b", 6)
MINE = VectorSpace("mine", 4)
BROKEN = -1  # content that cannot be stored
TOLERANCE = 1e-5

ids = st.sampled_from(["a", "b/c", "d'e", 'f"g\\', "日本", "a b"])
rows = st.builds(Row, st.integers(0, len(VECTORS) - 1), st.integers(0, 3), st.sampled_from("xy"))
# An item that is wrong now and then: it must harm no other.
items = st.lists(st.tuples(ids, rows, st.integers(0, 7).map(lambda n: n == 7)), min_size=1, max_size=5)
wheres = st.one_of(
    st.builds(Where, st.just("n"), st.sampled_from(["==", "!=", ">", "<="]), st.integers(0, 3)),
    st.builds(Where, st.just("kind"), st.sampled_from(["==", "!="]), st.sampled_from("xyz")),
    st.builds(Where, st.just("id"), st.just("in"), st.lists(ids, min_size=1, max_size=3, unique=True)),
)
indexes = st.sampled_from([IndexSpec(IndexType.FLAT), IndexSpec(IndexType.HNSW, 8, 50)])
Items = list[tuple[str, Row, bool]]


class World:
    """A search service on a backend, which can be restarted and killed; and what it needs."""

    def __init__(self, folder: Path, milvus: str, embedders: Sequence[str]) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{listener.getsockname()[1]}"
        flags = ["--milvus-uri", milvus, "--embedder", " ".join(embedders), "--canary-interval", "0"]
        flags += ["--address", address, "--metrics-address", "127.0.0.1:0"]
        self.server = ServerProcess("search-service", "search_service.main", flags, folder)
        self.done: dict[str, int] = {}
        self.sources = []
        for n, image in enumerate(IMAGES):
            (folder / f"{n}.image").write_bytes(image)
            self.sources.append(str(folder / f"{n}.image"))
        self.start()

    def start(self) -> None:
        self.server.__enter__()
        self.target = self.server.addresses.grpc
        self.client = Client(self.target, timeout=60)

    def stop(self) -> None:
        self.client.close()
        self.server.__exit__(None, None, None)
        self._check_log()

    def kill(self) -> None:
        os.kill(self.server.pid, signal.SIGKILL)
        os.waitpid(self.server.pid, 0)
        self._check_log()

    def crash(self) -> None:
        self.kill()
        self.client.close()
        self.start()

    def _check_log(self) -> None:
        log = self.server.log.read_text()
        assert "Traceback" not in log, log


@pytest.fixture(scope="module")
def world(backend: str, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    milvus = str(folder / "milvus.db") if backend == "lite" else request.getfixturevalue("milvus_server").uri
    with serving_in_a_thread(*SPACES) as embedders:
        world = World(folder, milvus, embedders)
        yield world
        world.stop()


class DataPath(RuleBasedStateMachine):
    """What one caller can do to one collection, each with what must come of it."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world
        self._starts = 0

    @property
    def _client(self) -> Client:
        return self._world.client

    # ---- The collection

    @initialize(of_images=st.booleans(), multi_tenant=st.booleans(), index=indexes)
    def create(self, of_images: bool, multi_tenant: bool, index: IndexSpec) -> None:
        if any(collection.name == NAME for collection in self._client.list_collections()):
            self._client.delete_collection(NAME)  # of a run that failed
        self._of_images = of_images
        self._tenants = ("acme", "bolt") if multi_tenant else ("",)
        space = SPACES[0] if of_images else MINE
        self._client.create_collection(
            NAME,
            space=lookalike.VectorSpace(space.fingerprint, space.dimension),
            index=index,
            multi_tenant=multi_tenant,
        )
        self._reference = Reference({1: Version(space, index, complete=True)})

    @rule(of_images=st.booleans(), multi_tenant=st.booleans(), index=indexes)
    def delete_the_collection_and_create_it(self, of_images: bool, multi_tenant: bool, index: IndexSpec) -> None:
        self._client.delete_collection(NAME)
        with pytest.raises(LookalikeError, match="NOT_FOUND"):
            self._client.count(NAME, tenant=self._tenants[0])
        self.create(of_images, multi_tenant, index)

    # ---- Writes

    @rule(items=items, if_changed=st.booleans(), tenant=st.booleans())
    def upsert(self, items: Items, if_changed: bool, tenant: bool) -> None:
        name = self._tenants[-tenant]
        results = self._client.upsert(NAME, self._items(items), if_content_changed=if_changed, tenant=name)
        last = {row_id: n for n, (row_id, _, broken) in enumerate(items) if not broken}
        for n, ((row_id, row, broken), result) in enumerate(zip(items, results, strict=True)):
            assert result.id == row_id
            if broken:
                assert result.outcome is Outcome.FAILED
            elif last[row_id] != n:
                assert result.outcome is Outcome.SUPERSEDED
            elif result.outcome is Outcome.UNCHANGED:
                assert if_changed
                assert self._of_images
                self._reference.serving.learn((name, row_id), row)
            else:
                assert result.outcome is Outcome.STORED
                alone = [each for each, _, _ in items].count(row_id) == 1
                assert not (if_changed and self._of_images and alone and self._reference.has((name, row_id), row))
        for row_id, row, broken in items:
            if not broken:
                self._reference.wrote((name, row_id), row)

    @rule(items=items, tenant=st.booleans())
    def upsert_in_a_stream(self, items: Items, tenant: bool) -> None:
        name = self._tenants[-tenant]
        results = list(self._client.upsert_stream(NAME, self._items(items), tenant=name))
        for (row_id, row, broken), result in zip(items, results, strict=True):
            assert (result.id, result.outcome is Outcome.FAILED) == (row_id, broken)
            if not broken:
                self._reference.wrote((name, row_id), row)

    @rule(some=st.lists(ids, min_size=1, max_size=4), tenant=st.booleans())
    def delete(self, some: list[str], tenant: bool) -> None:
        name = self._tenants[-tenant]
        least, most = self._reference.serving.count(name, lambda row_id, _: row_id in some)
        assert least <= self._client.delete(NAME, ids=some, tenant=name) <= most
        for row_id in some:
            self._reference.wrote((name, row_id), None)

    @rule(where=wheres, tenant=st.booleans())
    def delete_by_filter(self, where: Where, tenant: bool) -> None:
        name = self._tenants[-tenant]
        least, most = self._reference.serving.count(name, where)
        assert least <= self._client.delete(NAME, tenant=name, **where.options) <= most
        self._reference.deleted(name, where, acknowledged=True)

    # ---- Reads

    @rule(some=st.lists(ids, min_size=1, max_size=6, unique=True), tenant=st.booleans())
    def get(self, some: list[str], tenant: bool) -> None:
        name = self._tenants[-tenant]
        found = self._client.get(NAME, some, tenant=name, include_vector=True, read_your_writes=True)
        assert [record.id for record in found.records] == [row_id for row_id in some if row_id not in found.missing_ids]
        for row_id in found.missing_ids:
            self._reference.serving.learn((name, row_id), None)
        for record in found.records:
            self._learn(self._reference.serving, record)

    @rule(where=st.none() | wheres, tenant=st.booleans())
    def count(self, where: Where | None, tenant: bool) -> None:
        name = self._tenants[-tenant]
        least, most = self._reference.serving.count(name, where or everything)
        assert least <= self._client.count(NAME, tenant=name, **(where.options if where else {})) <= most

    @rule(where=st.none() | wheres, tenant=st.booleans())
    def scan(self, where: Where | None, tenant: bool) -> None:
        name = self._tenants[-tenant]
        self._scan(self._reference.serving_number, name, where)

    @rule(
        contents=st.lists(st.integers(0, len(VECTORS) - 1), max_size=2),
        stored=st.lists(ids, max_size=2),
        where=st.none() | wheres,
        exact=st.booleans(),
        top_k=st.integers(1, 8),
        offset=st.integers(0, 2),
        tenant=st.booleans(),
    )
    def search(
        self,
        contents: list[int],
        stored: list[str],
        where: Where | None,
        exact: bool,
        top_k: int,
        offset: int,
        tenant: bool,
    ) -> None:
        name = self._tenants[-tenant]
        version = self._reference.serving
        queries: list[Query] = [self._query(content) for content in contents] + [Query(id=row_id) for row_id in stored]
        if not queries:
            return
        self._scan(self._reference.serving_number, name, None)
        result = self._client.search_batch(
            NAME,
            queries,
            tenant=name,
            top_k=top_k,
            offset=offset,
            exact=exact,
            read_your_writes=True,
            **(where.options if where else {}),  # type: ignore[typeddict-item]
        )
        there, allowed = version.known(name), version.known(name, where or everything)
        for query, hits in zip(queries, result.results, strict=True):
            if query.id is None:
                expected = version.similarities(contents[queries.index(query)], allowed)
            elif query.id not in there:
                assert isinstance(hits, LookalikeError)
                assert hits.code is grpc.StatusCode.NOT_FOUND
                continue
            else:
                expected = version.similarities(there[query.id].content, allowed)
                expected.pop(query.id, None)
            assert isinstance(hits, Hits), hits
            check_hits(hits, expected, there, top_k, offset)

    # ---- Restarts and crashes

    @precondition(lambda self: self._starts < STARTS)
    @rule()
    def restart(self) -> None:
        self._starts += 1
        self._world.stop()
        self._world.start()

    @precondition(lambda self: self._starts < STARTS)
    @rule(
        items=items,
        work=st.sampled_from(["nothing", "upsert", "stream", "delete", "delete by filter"]),
        where=wheres,
        tenant=st.booleans(),
        milliseconds=st.integers(0, 30),
    )
    def crash(self, items: Items, work: str, where: Where, tenant: bool, milliseconds: int) -> None:
        """kill -9 in the middle of a write, which may have been carried out or not if it was not acknowledged."""
        self._starts += 1
        name = self._tenants[-tenant]
        sound = [(row_id, row) for row_id, row, broken in items if not broken]

        def write(client: Client) -> list[Any]:
            if work == "upsert":
                return client.upsert(NAME, self._items(items), tenant=name)
            if work == "stream":
                for result in client.upsert_stream(NAME, self._items(items), tenant=name):
                    acknowledged.append(result)
            if work == "delete":
                client.delete(NAME, ids=[row_id for row_id, _ in sound] or ["none"], tenant=name)
            if work == "delete by filter":
                client.delete(NAME, tenant=name, **where.options)
            return acknowledged

        acknowledged: list[Any] = []
        with Client(self._world.target, retry=False) as client, ThreadPoolExecutor(1) as pool:
            writing = pool.submit(write, client)
            time.sleep(milliseconds / 1000)
            self._world.kill()
            try:
                acknowledged = writing.result()
                failed = False
            except LookalikeError as error:
                failed = error.code is grpc.StatusCode.UNAVAILABLE
                assert failed, error  # noqa: PT017
        if work == "delete by filter":
            self._reference.deleted(name, where, acknowledged=not failed)
        elif work != "nothing":
            written = [(row_id, None if work == "delete" else row) for row_id, row in sound]
            done = len(written) if not failed else sum(result.error is None for result in acknowledged)
            for row_id, row in written[:done]:
                self._reference.wrote((name, row_id), row)
            self._may_have_written(name, written[done:])
        self._client.close()
        self._world.start()
        self._check()

    def _may_have_written(self, tenant: str, written: Sequence[tuple[str, Row | None]]) -> None:
        for row_id in {row_id for row_id, _ in written}:
            self._reference.may_have_written((tenant, row_id), [row for each, row in written if each == row_id])

    # ---- Versions

    @precondition(lambda self: self._reference.filling is not None or len(self._reference.versions) < 3)
    @rule(
        other_model=st.booleans(),
        index=indexes,
        calls=st.none() | st.integers(0, 2),
        crash=st.booleans(),
        build_index=st.booleans(),
    )
    def reindex(self, other_model: bool, index: IndexSpec, calls: int | None, crash: bool, build_index: bool) -> None:
        """Fills a new version, or the one that is there; after some calls it is interrupted, or the service crashes."""
        number = self._reference.filling
        if number is None:
            space = self._reference.serving.space
            if other_model and self._of_images:
                space = SPACES[space == SPACES[0]]
            made = self._client.create_collection_version(
                NAME,
                space=lookalike.VectorSpace(space.fingerprint, space.dimension),
                index=index,
                require_embedder=self._of_images,
            )
            number = made.version
            assert number == max(self._reference.versions) + 1
            self._reference.versions[number] = Version(space, index, complete=False)
        try:
            asyncio.run(self._fill(number, calls, crash, build_index))
        except* Interrupted:
            pass
        else:
            self._reference.filled(number)
        self._check()

    async def _fill(self, number: int, calls: int | None, crash: bool, build_index: bool) -> None:
        async with Interrupting(self._world, calls, crash) as client:
            described = await client.describe_collection(NAME)
            version = next(each for each in described.collection.versions if each.version == number)
            if self._reference.serving_number < number:
                assert find_version(described.collection, version.space, version.index) == version
            filler = Filler(
                client,
                described.collection,
                version,
                described.limits,
                batch=1,
                concurrency=2,
                sources=Sources(),
                show=lambda what, rows: nullcontext(Progress(rows, "rows", lambda _: None)),
            )
            filled = await filler.fill()
            assert filled.failures == []
            if build_index:
                await filler.build_index(filled.rows, patience=60)
                recall, _ = await filler.recall(filled.sample)
                assert recall == 1.0

    @precondition(lambda self: len(self._reference.versions) > 1)
    @rule(choice=st.integers(0, 7))
    def switch(self, choice: int) -> None:
        numbers = [number for number, version in self._reference.versions.items() if version.complete]
        number = numbers[choice % len(numbers)]
        if self._reference.filling is not None and number > self._reference.filling:
            return
        self._client.switch_collection_version(NAME, number)
        self._reference.serving_number = number
        self._check()

    @precondition(lambda self: len(self._reference.versions) > 1)
    @rule(choice=st.integers(0, 7))
    def delete_a_version(self, choice: int) -> None:
        numbers = [number for number in self._reference.versions if number != self._reference.serving_number]
        number = numbers[choice % len(numbers)]
        self._client.delete_collection(NAME, version=number)
        del self._reference.versions[number]

    # ---- All of it

    def teardown(self) -> None:
        if hasattr(self, "_reference"):
            self._check()
            self._client.delete_collection(NAME)

    def _check(self) -> None:
        """Reads every complete version."""
        for number, version in self._reference.versions.items():
            if version.complete:
                for tenant in self._tenants:
                    self._scan(number, tenant, None)
                    least, most = version.count(tenant)
                    assert least == most == self._client.count(NAME, tenant=tenant, version=number)
        if self._tenants != ("",):
            records = list(self._client.scan(NAME, all_tenants=True))
            assert len(records) == len({(record.tenant, record.id) for record in records})
            assert len(records) == self._reference.serving.count(None)[0]

    def _scan(self, number: int, tenant: str, where: Where | None) -> None:
        version = self._reference.versions[number]
        records = list(
            self._client.scan(
                NAME, tenant=tenant, version=number, include_vector=True, **(where.options if where else {})
            )
        )
        found = [record.id for record in records]
        assert len(found) == len(set(found)), "a row is there twice"
        for record in records:
            assert record.tenant == tenant
            self._learn(version, record)
        if where is None:
            for key in [key for key in version.rows if key[0] == tenant and key[1] not in found]:
                version.learn(key, None)
        else:
            missing = [row_id for row_id in self._surely(version, tenant, where) if row_id not in found]
            assert not missing

    @staticmethod
    def _surely(version: Version, tenant: str, where: Where) -> list[str]:
        return [
            row_id
            for (each, row_id), may_be in version.rows.items()
            if each == tenant and all(row is not None and where(row_id, row) for row in may_be)
        ]

    def _learn(self, version: Version, record: Record) -> None:
        """What was read is one of the rows that it may be, in all its parts."""
        key: Key = (record.tenant, record.id)
        for row in version.may_be(key):
            if row is not None and row.attributes == record.attributes and self._is_content(version, row, record):
                version.learn(key, row)
                return
        raise AssertionError(f"{record} should be one of {version.may_be(key)}")

    def _is_content(self, version: Version, row: Row, record: Record) -> bool:
        if self._of_images:
            digest = hashlib.sha256(IMAGES[row.content]).hexdigest()
            if (record.source, record.content_sha256) != (self._world.sources[row.content], digest):
                return False
        assert record.vector is not None
        assert record.vector.fingerprint == version.space.fingerprint
        return record.vector.vector == pytest.approx(version.vector(row.content), abs=TOLERANCE)

    def _items(self, items: Items) -> list[Item]:
        made = []
        for row_id, row, broken in items:
            if self._of_images:
                content: dict[str, Any] = {
                    "image": BAD if broken else IMAGES[row.content],
                    "source": self._world.sources[row.content],
                }
            else:
                content = {"vector": Embedding(VECTORS[row.content], "another" if broken else "mine")}
            made.append(Item(row_id, attributes=row.attributes, **content))
        return made

    def _query(self, content: int) -> Query:
        if self._of_images:
            return Query(image=IMAGES[content])
        return Query(vector=Embedding(VECTORS[content], "mine"))


def check_hits(hits: Hits, expected: dict[str, float], there: dict[str, Row], top_k: int, offset: int) -> None:
    """Exactly the best rows, up to ties, each once and as it is."""
    best = sorted(expected.values(), reverse=True)[offset : offset + top_k]
    assert [hit.similarity for hit in hits] == pytest.approx(best, abs=TOLERANCE)
    assert len({hit.id for hit in hits}) == len(hits)
    for hit in hits:
        assert hit.similarity == pytest.approx(expected[hit.id], abs=TOLERANCE)
        assert hit.record.attributes == there[hit.id].attributes


class Interrupted(Exception):
    """A reindex that ends in the middle."""


class Interrupting(AsyncClient):
    """A client for which, after some calls that fill, everything ends; or the service crashes, once."""

    def __init__(self, world: World, calls: int | None, crash: bool) -> None:
        super().__init__(world.target, timeout=60, retry=False)
        self._world, self._calls, self._crash = world, calls, crash

    async def fill_version(self, *args: Any, **options: Any) -> lookalike.FillResult:
        if self._calls is not None:
            self._calls -= 1
            if self._calls < 0 and not self._crash:
                raise Interrupted
            if self._calls == -1:
                await asyncio.to_thread(self._world.crash)
        return await super().fill_version(*args, **options)


def test_every_sequence_of_calls_and_crashes_leaves_what_was_acknowledged(world: World) -> None:
    chosen = int(os.environ.get("LOOKALIKE_MACHINE_SEED") or SystemRandom().randrange(1 << 32))

    def machine() -> DataPath:
        return DataPath(world)

    if STEPS:
        print(f"\nLOOKALIKE_MACHINE_SEED={chosen} does the same again")
        seed(chosen)(machine)
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=int(STEPS) // STEPS_AT_A_TIME + 1 if STEPS else 4,
            stateful_step_count=STEPS_AT_A_TIME,
            derandomize=not STEPS,
            database=None,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
