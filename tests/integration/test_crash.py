"""kill -9 of the search service, of Milvus and of the embedder, in the middle of an ingest and under searches.

LOOKALIKE_KILLS is how often each of them is killed in one ingest, LOOKALIKE_CRASH_ROWS how many rows that ingest has.
`make faults` kills more often.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image

from benchmarks.milvus_server import MilvusServer
from lookalike import (
    AsyncClient,
    Client,
    Embedding,
    Item,
    LookalikeError,
    UpsertOutcome,
    UpsertResult,
    VectorSpace,
)
from workbench.demo_images import DemoImages
from workbench.images import ImageFile, find_images
from workbench.ingest import IngestReport, ingest
from workbench.services import ServerProcess

KILLS = int(os.environ.get("LOOKALIKE_KILLS", "1"))
ROWS = int(os.environ.get("LOOKALIKE_CRASH_ROWS", "1500"))
ROUNDS = 2
COLLECTION = "outliving"
PATIENCE = 600.0  # seconds that an ingest may take after the last kill, or a service to work again after any


def search_service(milvus: str, folder: Path, port: int, embedder: str) -> ServerProcess:
    flags = ["--milvus-uri", milvus, "--embedder", embedder]
    flags += ["--address", f"127.0.0.1:{port}", "--metrics-address", "127.0.0.1:0"]
    return ServerProcess("search-service", "search_service.main", flags, folder)


def embedder_on(folder: Path, port: int, bundle: Path) -> ServerProcess:
    flags = ["--bundle", str(bundle), "--address", f"127.0.0.1:{port}", "--metrics-address", "127.0.0.1:0"]
    return ServerProcess("embedder", "embedder_service.main", flags, folder)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass
class Journal:
    """Of an ingest done in rounds: for each id the last round that was sent, and the last that was acknowledged."""

    round: int = 0
    sent: dict[str, int] = field(default_factory=dict)
    stored: dict[str, int] = field(default_factory=dict)
    acknowledged: int = 0


class Journalled(AsyncClient):
    """A client that gives rows the number of the round, and keeps the journal."""

    def __init__(self, target: str, journal: Journal) -> None:
        super().__init__(target, timeout=120)
        self._journal = journal

    async def upsert(self, collection: str, items: Sequence[Item], **options: Any) -> list[UpsertResult]:
        journal = self._journal
        journal.sent.update((item.id, journal.round) for item in items)
        items = [replace(item, attributes={"round": journal.round}) for item in items]
        results = await super().upsert(collection, items, **options)
        for result in results:
            if result.outcome in (UpsertOutcome.STORED, UpsertOutcome.UNCHANGED):
                journal.stored.pop(result.id, None)  # to the end, as the last one
                journal.stored[result.id] = journal.round
                journal.acknowledged += 1
        return results


def tiny_images(folder: Path, count: int) -> list[ImageFile]:
    """Image files of some bytes each, all different."""
    random = np.random.default_rng(0)
    folder.mkdir()
    for n in range(count):
        Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8)).save(folder / f"{n:06d}.png")
    return find_images(folder)


def killed(server: ServerProcess) -> None:
    os.kill(server.pid, signal.SIGKILL)
    os.waitpid(server.pid, 0)


def eventually(check: Callable[[], None]) -> None:
    """Makes a check as soon as what it asks answers again: Milvus is some seconds behind its start."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return check()
        except LookalikeError as error:
            passing = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
            if error.code not in passing or time.monotonic() > deadline:
                raise


def check_rows(client: Client, collection: str, ids: Sequence[str], journal: Journal) -> None:
    """Rows are as they were acknowledged last, or as they have been sent since."""
    for start in range(0, len(ids), 500):
        some = ids[start : start + 500]
        least = {id: journal.stored[id] for id in some}
        records = client.get(collection, some, read_your_writes=True).records
        found = {record.id: int(record.attributes["round"]) for record in records}
        assert found.keys() == least.keys()
        wrong = {id: n for id, n in found.items() if not least[id] <= n <= journal.sent[id]}
        assert not wrong, wrong


def test_an_ingest_outlives_kill_9_of_whatever_it_needs(
    backend: str, tmp_path: Path, bundle: Path, request: pytest.FixtureRequest
) -> None:
    milvus: MilvusServer | None = None if backend == "lite" else request.getfixturevalue("milvus_server")
    uri = milvus.uri if milvus else str(tmp_path / "milvus.db")
    files = tiny_images(tmp_path / "images", ROWS)
    embedder_port, search_port = free_port(), free_port()
    running = {
        "embedder": embedder_on(tmp_path, embedder_port, bundle),
        "search service": search_service(uri, tmp_path, search_port, f"127.0.0.1:{embedder_port}"),
    }
    victims = [*running, "Milvus"] if milvus else list(running)
    random = Random(f"{backend} {KILLS}")
    plan = victims * KILLS
    random.shuffle(plan)
    # Of all acknowledgements of the rounds, those at which somebody dies.
    moments = sorted(random.sample(range(ROUNDS * ROWS * 9 // 10), len(plan)))
    target = f"127.0.0.1:{search_port}"
    journal = Journal()

    async def ingest_in_rounds() -> list[IngestReport]:
        reports = []
        async with Journalled(target, journal) as client:
            for journal.round in range(1, ROUNDS + 1):
                reports.append(await ingest(client, COLLECTION, files))
        return reports

    def kill_and_start(victim: str) -> None:
        if victim == "Milvus":
            assert milvus
            milvus.kill()
            milvus.start()
        else:
            killed(running[victim])
            running[victim].__enter__()

    with ExitStack() as stack:
        if milvus:
            stack.callback(milvus.recover)
        for server in running.values():
            stack.enter_context(server)
        client = stack.enter_context(Client(target, timeout=120))
        client.create_collection(COLLECTION)
        stack.callback(client.delete_collection, COLLECTION)
        pool = stack.enter_context(ThreadPoolExecutor(1))

        storing = pool.submit(lambda: asyncio.run(ingest_in_rounds()))
        for victim, moment in zip(plan, moments, strict=True):
            while journal.acknowledged < moment and not storing.done():
                wait([storing], timeout=0.01)
            # Anywhere between two acknowledgements.
            wait([storing], timeout=random.uniform(0, 0.5))
            assert not storing.done(), "the ingest was over before the last kill: raise LOOKALIKE_CRASH_ROWS"
            last = list(journal.stored.copy())[-1000:]
            kill_and_start(victim)
            eventually(lambda last=last: check_rows(client, COLLECTION, last, journal))
        reports = storing.result(PATIENCE)

        assert [report.failures for report in reports] == [[]] * ROUNDS
        assert all(report.stored + report.unchanged == len(files) for report in reports)
        scanned = [(record.id, record.attributes["round"]) for record in client.scan(COLLECTION)]
        assert sorted(scanned) == [(file.id, ROUNDS) for file in files]
        assert client.count(COLLECTION) == len(files)
        # Each with its own vector.
        for file in random.sample(files, 5):
            [hit] = client.search(COLLECTION, image=file.path.read_bytes(), top_k=1, exact=True).hits
            assert (hit.id, round(hit.similarity, 3)) == (file.id, 1.0)
    seconds = sum(report.seconds for report in reports)
    print(f"\n{backend}: {ROUNDS} rounds of {ROWS:,} rows in {seconds:.0f} s, kills: {Counter(plan)}")


# Before the first rows are flushed, and after.
@pytest.mark.parametrize("moment", [1_000, 7_000])
def test_nothing_acknowledged_in_a_stream_is_lost(tmp_path: Path, moment: int) -> None:
    count = 9_000
    items = [Item(str(n), vector=Embedding([1, n, n % 7, 1], "mine"), attributes={"n": n}) for n in range(count)]
    acknowledged: list[str] = []
    milvus = str(tmp_path / "milvus.db")
    port, nowhere = free_port(), "127.0.0.1:1"  # vectors need no embedder

    def ingest(client: Client, server: ServerProcess) -> None:
        for result in client.upsert_stream("points", items):
            assert result.outcome is UpsertOutcome.STORED
            acknowledged.append(result.id)
            if len(acknowledged) == moment:
                os.kill(server.pid, signal.SIGKILL)

    first = search_service(milvus, tmp_path, port, nowhere)
    first.__enter__()
    with Client(first.addresses.grpc) as client:
        client.create_collection("points", space=VectorSpace("mine", 4))
        with pytest.raises(LookalikeError) as caught:
            ingest(client, first)
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    assert moment <= len(acknowledged) < count

    with search_service(milvus, tmp_path, port, nowhere) as second, Client(second.addresses.grpc) as client:
        for start in range(0, len(acknowledged), 500):
            assert client.get("points", acknowledged[start : start + 500]).missing_ids == ()
        # A second stream, from the first row without an acknowledgement on, completes the first.
        rest = list(client.upsert_stream("points", items[len(acknowledged) :]))
        assert {result.outcome for result in rest} == {UpsertOutcome.STORED}
        assert client.count("points") == count


def test_searches_by_image_fail_while_the_embedder_is_away_and_work_when_it_is_back(
    tmp_path: Path, bundle: Path, demo_images: DemoImages
) -> None:
    image = demo_images.queries[0].read_bytes()
    port = free_port()
    first = embedder_on(tmp_path, port, bundle)
    first.__enter__()
    with (
        search_service(str(tmp_path / "milvus.db"), tmp_path, free_port(), first.addresses.grpc) as search,
        Client(search.addresses.grpc) as client,
        Client(search.addresses.grpc, retry=False) as impatient,
    ):
        client.create_collection("photos")
        client.upsert("photos", [Item("a", image=image), Item("b", image=image)])
        os.kill(first.pid, signal.SIGKILL)
        with pytest.raises(LookalikeError) as caught:
            impatient.search("photos", image=image)
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE
        assert "embedder" in caught.value.message
        # What needs no embedding goes on.
        assert [hit.id for hit in client.search("photos", id="a").hits] == ["b"]
        with embedder_on(tmp_path, port, bundle):
            assert {hit.id for hit in client.search("photos", image=image).hits} == {"a", "b"}
