"""A real Milvus server that hangs under load: callers are told in time, nothing piles up, and it is over soon after."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.milvus_server import Database, MilvusServer
from lookalike.channel import connect_aio
from lookalike.search.v1 import search_pb2 as pb
from lookalike.search.v1 import search_pb2_grpc
from workbench.services import ServerProcess

pytestmark = pytest.mark.milvus_server

HANG_SECONDS = float(os.environ.get("LOOKALIKE_HANG_SECONDS", "5"))
SPACE = pb.VectorSpace(model_fingerprint="5f3a" * 16, dimension=16)
CALLERS = 32
GRACE_SECONDS = 0.2
RECOVERY_SECONDS = 2.0
IN_TIME = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
SERVING = health_pb2.HealthCheckResponse.SERVING


@dataclass(frozen=True)
class Outcome:
    """How a call ended; times are of time.monotonic()."""

    began: float
    ended: float
    timeout: float
    code: grpc.StatusCode

    @property
    def seconds(self) -> float:
        return self.ended - self.began


class Load:
    """Callers of all kinds that go on until they are told to stop."""

    def __init__(self, stub: Any, collection: str) -> None:
        self._stub = stub
        self._collection = collection
        self._stopped = asyncio.Event()
        self.outcomes: list[Outcome] = []

    async def __aenter__(self) -> Load:
        self._tasks = [asyncio.create_task(self._go_on(n)) for n in range(CALLERS)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopped.set()
        await asyncio.gather(*self._tasks)

    async def _go_on(self, n: int) -> None:
        call, request = self._call(n)
        timeout = (0.3, 1.0, 3.0, 20.0)[n // 4 % 4]
        while not self._stopped.is_set():
            began, code = time.monotonic(), grpc.StatusCode.OK
            try:
                await call(request, timeout=timeout)
            except grpc.aio.AioRpcError as error:
                code = error.code()
            self.outcomes.append(Outcome(began, time.monotonic(), timeout, code))
            await asyncio.sleep(0.2)

    def _call(self, n: int) -> tuple[Callable[..., Awaitable[Any]], Any]:
        name = self._collection
        vector = pb.Vector(values=vector_of(n), model_fingerprint=SPACE.model_fingerprint)
        match n % 4:
            case 0:
                return self._stub.Upsert, pb.UpsertRequest(
                    collection=name, items=[pb.UpsertItem(id=f"new-{n}", vector=vector)]
                )
            case 1:
                return self._stub.Get, pb.GetRequest(collection=name, ids=["row-1"])
            case _:
                query = pb.Query(vector=vector)
                return self._stub.Search, pb.SearchRequest(
                    collection=name, query=query, params=pb.SearchParams(top_k=3)
                )


def vector_of(seed: int) -> list[float]:
    values: list[float] = np.random.default_rng(seed).standard_normal(SPACE.dimension).tolist()
    return values


@pytest.fixture
def server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[MilvusServer]:
    """The server of all tests, or, to hang for long, one of its own whose session lasts as long."""
    shared: MilvusServer = request.getfixturevalue("milvus_server")
    if HANG_SECONDS < 8:
        yield shared
        shared.recover()
    else:
        (tmp_path / "milvus").mkdir()
        own = MilvusServer(tmp_path / "milvus", session_ttl=round(HANG_SECONDS) + 30)
        yield own
        own.go_on()
        own.kill()


@pytest.fixture
def search(server: MilvusServer, tmp_path: Path) -> Iterator[ServerProcess]:
    """The search service on a database of its own."""
    with Database(server, f"test_{uuid4().hex}") as database:
        flags = ["--milvus-uri", server.uri, "--milvus-database", database.name, "--embedder", "127.0.0.1:1"]
        flags += ["--address", "127.0.0.1:0", "--metrics-address", "127.0.0.1:0", "--readiness-interval", "1"]
        with ServerProcess("search-service", "search_service.main", flags, tmp_path) as process:
            yield process
            assert "Traceback" not in process.log.read_text()


def metric(process: ServerProcess, name: str, **labels: str) -> float:
    with urllib.request.urlopen(f"http://{process.addresses.metrics}/metrics", timeout=10) as page:
        families = list(text_string_to_metric_families(page.read().decode()))
    samples = [sample for family in families for sample in family.samples if sample.name == name]
    return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


async def test_callers_are_told_in_time_while_milvus_hangs_and_served_soon_after(
    search: ServerProcess, server: MilvusServer
) -> None:
    async with connect_aio(search.addresses.grpc, retry=False) as channel:
        stub: Any = search_pb2_grpc.SearchServiceStub(channel)
        health: Any = health_pb2_grpc.HealthStub(channel)

        async def serving() -> bool:
            reply = await health.Check(health_pb2.HealthCheckRequest(), timeout=5)
            return bool(reply.status == SERVING)

        async def told(name: str, **labels: str) -> float:
            return await asyncio.to_thread(metric, search, name, **labels)

        name = "photos"
        await stub.CreateCollection(pb.CreateCollectionRequest(name=name, space=SPACE), timeout=60)
        rows = [
            pb.UpsertItem(
                id=f"row-{n}", vector=pb.Vector(values=vector_of(n), model_fingerprint=SPACE.model_fingerprint)
            )
            for n in range(100)
        ]
        await stub.Upsert(pb.UpsertRequest(collection=name, items=rows), timeout=60)

        async with Load(stub, name) as load:
            await asyncio.sleep(2)
            hung = time.monotonic()
            server.hang()
            try:
                opened: float | None = None
                unready: float | None = None
                busy = 0.0
                while time.monotonic() < hung + HANG_SECONDS:
                    now = time.monotonic() - hung
                    if opened is None and await told("search_circuit_open", upstream="milvus"):
                        opened = now
                    if unready is None and not await serving():
                        unready = now
                    busy = max(busy, await told("search_milvus_threads_busy"))
                    await asyncio.sleep(0.1)
                busy_at_the_end = await told("search_milvus_threads_busy")
            finally:
                server.go_on()
            back = time.monotonic()
            while not await serving():
                assert time.monotonic() < back + 30
                await asyncio.sleep(0.05)
            ready = time.monotonic() - back
            await asyncio.sleep(max(0.0, back + RECOVERY_SECONDS + 2 - time.monotonic()))

        ok = grpc.StatusCode.OK
        before = [each for each in load.outcomes if each.ended < hung]
        during = [each for each in load.outcomes if each.began > hung and each.ended < back]
        after = [each for each in load.outcomes if each.began > back + RECOVERY_SECONDS]
        first = min(each.ended for each in load.outcomes if each.ended > back and each.code is ok) - back
        late = max(each.seconds - each.timeout for each in load.outcomes)
        assert opened is not None
        fast = [each.seconds for each in during if each.began > hung + opened + 0.5]
        print(
            f"hung {back - hung:.1f} s: circuit open after {opened:.1f} s, not ready after {unready} s, "
            f"{len(during)} calls ended {Counter(each.code.name for each in during)}, "
            f"then in {statistics.median(fast) * 1e3:.1f} ms (median) and {max(fast) * 1e3:.0f} ms (most); "
            f"threads busy {busy:.0f} at most, {busy_at_the_end:.0f} at the end; latest call {late:+.3f} s after its "
            f"deadline; first answer {first:.2f} s after, ready {ready:.2f} s after; "
            f"{len(after)} calls from {RECOVERY_SECONDS} s on: {Counter(each.code.name for each in after)}"
        )
        assert len(before) > CALLERS
        # The short deadlines may be too short for a busy machine.
        assert {each.code for each in before if each.timeout >= 3} == {ok}
        assert {each.code for each in during} <= {*IN_TIME, ok}  # what was answered just before
        assert late < GRACE_SECONDS
        assert statistics.median(fast) < 0.1
        assert unready is not None
        assert max(first, ready) < RECOVERY_SECONDS
        assert len(after) > CALLERS
        assert {each.code for each in after if each.timeout >= 3} == {ok}
        assert await told("search_circuit_open", upstream="milvus") == 0
        assert await told("search_milvus_calls_waiting") == 0
        count = await stub.Count(pb.CountRequest(collection=name), timeout=20)
        assert count.count >= len(rows)
