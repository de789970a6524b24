"""Bad networks between client, search service, embedder and Milvus server, and stopped services, under callers.

Each fault lasts LOOKALIKE_FAULT_SECONDS, in one stage for all. Whatever it is, calls end within their deadlines with
a code that says what is the matter, what does not need the other side goes on, nothing acknowledged is lost, and when
the fault is over so are the failures. `make faults` has longer faults, and more.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import grpc
import pytest
from faulty_proxy import FaultyProxy
from service_processes import embedder

from benchmarks.milvus_server import Database, MilvusServer
from lookalike import AsyncClient, Client, EmbedderClient, Embedding, Item, LookalikeError, UpsertOutcome
from workbench.demo_images import DemoImages
from workbench.services import ServerProcess

pytestmark = pytest.mark.milvus_server

SECONDS = float(os.environ.get("LOOKALIKE_FAULT_SECONDS", "0.6"))
LONG = SECONDS >= 10
GRACE_SECONDS = 3.0  # what a busy machine adds to a deadline
RECOVERY_SECONDS = 5.0  # 2 are promised
KEEPALIVE_SECONDS = 30.0  # 20 until a ping, 10 for its answer
IN_TIME = {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
TIMEOUTS = (0.4, 5.0)

WAYS = ("search service", "embedder", "Milvus")

Call = Callable[[AsyncClient, int], Awaitable[object]]
Fault = Callable[[FaultyProxy], AbstractContextManager[None]]


@dataclass
class Stage:
    """Everything, with a proxy on each way."""

    embedder: ServerProcess
    search: ServerProcess
    links: dict[str, FaultyProxy]
    image: bytes
    vector: Embedding
    acknowledged: list[str] = field(default_factory=list)

    def calls(self) -> dict[str, Call]:
        """A call of each kind."""

        async def store(client: AsyncClient, n: int) -> None:
            id = f"{time.monotonic_ns()}-{n}"
            [result] = await client.upsert("photos", [Item(id, vector=self.vector)])
            assert result.outcome is UpsertOutcome.STORED
            self.acknowledged.append(id)

        return {
            "image": lambda client, _: client.search("photos", image=self.image, top_k=3),
            "id": lambda client, _: client.search("photos", id="first", top_k=3),
            "get": lambda client, _: client.get("photos", ["first"]),
            "upsert": store,
        }


@dataclass(frozen=True)
class Outcome:
    """How a call ended; times are of time.monotonic()."""

    kind: str
    began: float
    ended: float
    timeout: float
    code: grpc.StatusCode


class Callers:
    """One for each kind of call and each timeout, which go on until the context ends."""

    def __init__(self, stage: Stage, client: AsyncClient) -> None:
        self._stage = stage
        self._client = client
        self._stopped = asyncio.Event()
        self.outcomes: list[Outcome] = []

    async def __aenter__(self) -> Callers:
        self._tasks = [
            asyncio.create_task(self._go_on(kind, call, n, seconds))
            for kind, call in self._stage.calls().items()
            for n, seconds in enumerate(TIMEOUTS)
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopped.set()
        await asyncio.gather(*self._tasks)

    async def _go_on(self, kind: str, call: Call, n: int, seconds: float) -> None:
        client = self._client.with_timeout(seconds)
        while not self._stopped.is_set():
            began, code = time.monotonic(), grpc.StatusCode.OK
            try:
                await call(client, n)
            except LookalikeError as error:
                code = error.code
            self.outcomes.append(Outcome(kind, began, time.monotonic(), seconds, code))
            await asyncio.sleep(0.05)

    async def served_since(self, moment: float, seconds: float) -> float:
        """Waits until each kind of call has been served that began after a moment; returns how long that took."""
        while True:
            ok = [o for o in self.outcomes if o.began > moment and o.code is grpc.StatusCode.OK]
            if len({o.kind for o in ok}) == len(self._stage.calls()):
                first = {kind: min(o.ended for o in ok if o.kind == kind) for kind in self._stage.calls()}
                return max(first.values()) - moment
            assert time.monotonic() < moment + seconds, Counter((o.kind, o.code.name) for o in self.outcomes[-40:])
            await asyncio.sleep(0.02)


@pytest.fixture(scope="module")
def stage(
    bundle: Path, demo_images: DemoImages, milvus_server: MilvusServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("stage")
    image = demo_images.queries[0].read_bytes()
    with (
        embedder("one", bundle, folder) as model,
        FaultyProxy(model.addresses.grpc) as to_embedder,
        FaultyProxy(milvus_server.uri) as to_milvus,
        Database(milvus_server, f"test_{uuid4().hex}") as database,
    ):
        flags = ["--milvus-uri", f"http://{to_milvus.address}", "--milvus-database", database.name]
        flags += ["--embedder", to_embedder.address, "--readiness-interval", "1"]
        flags += ["--address", "127.0.0.1:0", "--metrics-address", "127.0.0.1:0"]
        with (
            ServerProcess("search-service", "search_service.main", flags, folder) as search,
            FaultyProxy(search.addresses.grpc) as to_search,
            EmbedderClient(model.addresses.grpc) as vectors,
            Client(search.addresses.grpc) as client,
        ):
            client.create_collection("photos")
            client.upsert("photos", [Item("first", image=image), Item("second", image=image)])
            links = {"search service": to_search, "embedder": to_embedder, "Milvus": to_milvus}
            yield Stage(model, search, links, image, vectors.embed(image))
            assert "Traceback" not in search.log.read_text()
            assert "Traceback" not in model.log.read_text()


@contextmanager
def slow(link: FaultyProxy) -> Iterator[None]:
    link.delay = 0.02
    yield
    link.delay = 0.0


@contextmanager
def reset(link: FaultyProxy) -> Iterator[None]:
    link.reset()
    yield


@contextmanager
def cut(link: FaultyProxy) -> Iterator[None]:
    """Every connection is reset in the middle of a message."""
    link.cut_after = 20_000.0
    yield
    link.cut_after = float("inf")


@contextmanager
def silent(link: FaultyProxy) -> Iterator[None]:
    link.silence()
    try:
        yield
    finally:
        link.speak()


@contextmanager
def refused(link: FaultyProxy) -> Iterator[None]:
    link.refuse()
    link.reset()
    try:
        yield
    finally:
        link.accept()


@contextmanager
def forgotten(link: FaultyProxy) -> Iterator[None]:
    link.forget()
    yield


@contextmanager
def stopped(process: ServerProcess) -> Iterator[None]:
    os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process.pid, signal.SIGCONT)


async def check(
    stage: Stage, fault: AbstractContextManager[None], what: str, untouched: set[str], recovery: float
) -> None:
    """Callers before, during and after a fault; `untouched` are the kinds of calls that it must not touch."""
    async with AsyncClient(stage.links["search service"].address) as client:
        async with Callers(stage, client) as callers:
            await callers.served_since(time.monotonic(), RECOVERY_SECONDS)
            began = time.monotonic()
            with fault:
                await asyncio.sleep(SECONDS)
            over = time.monotonic()
            recovered = await callers.served_since(over, recovery)
            settled = time.monotonic()
            await asyncio.sleep(0.3)
        outcomes = [o for o in callers.outcomes if o.ended > began]
        codes: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for outcome in outcomes:
            codes[outcome.kind][outcome.code.name] += 1
        late = max(o.ended - o.began - o.timeout for o in outcomes)
        print(
            f"\n{what}, {over - began:.1f} s: {dict(codes)}; the latest {late:+.2f} s after its deadline; "
            f"all served {recovered:.2f} s after"
        )
        assert {o.code for o in outcomes} <= IN_TIME
        assert late < GRACE_SECONDS
        patient = [o for o in outcomes if o.timeout == max(TIMEOUTS)]
        assert {o.code for o in patient if o.kind in untouched or o.began > settled} == {grpc.StatusCode.OK}
        for start in range(0, len(stage.acknowledged), 500):
            some = stage.acknowledged[start : start + 500]
            assert (await client.get("photos", some, read_your_writes=True)).missing_ids == ()


WITHOUT_EMBEDDER = {"id", "get", "upsert"}


CASES = [(fault, way) for fault in (reset, silent) for way in WAYS] + [(slow, "embedder"), (cut, "search service")]
if LONG:
    CASES = [(fault, way) for fault in (slow, reset, silent, cut, refused, forgotten) for way in WAYS]


@pytest.mark.parametrize(("fault", "way"), CASES)
async def test_on_a_bad_connection_calls_end_in_time_and_nothing_acknowledged_is_lost(
    stage: Stage, fault: Fault, way: str
) -> None:
    untouched = WITHOUT_EMBEDDER if way == "embedder" else set()
    if fault is slow:
        untouched = set(stage.calls())
    recovery = KEEPALIVE_SECONDS + RECOVERY_SECONDS if fault is forgotten else RECOVERY_SECONDS
    await check(stage, fault(stage.links[way]), f"{fault.__name__}: the way to the {way}", untouched, recovery)


@pytest.mark.parametrize("way", ["search service", "embedder"])
async def test_while_a_service_is_stopped_calls_end_in_time_and_it_goes_on_soon_after(stage: Stage, way: str) -> None:
    process = stage.embedder if way == "embedder" else stage.search
    untouched = WITHOUT_EMBEDDER if way == "embedder" else set()
    await check(stage, stopped(process), f"SIGSTOP of the {way}", untouched, RECOVERY_SECONDS)
