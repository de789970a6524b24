"""Clients that stop or vanish in the middle of a stream: what they hold of the server comes free."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import grpc
import pytest
from faulty_proxy import FaultyProxy
from prometheus_client.parser import text_string_to_metric_families
from waiting import until

from lookalike import Client, Embedding, Item, LookalikeError, VectorSpace
from workbench.services import ANY_PORT, ServerProcess

LONG = float(os.environ.get("LOOKALIKE_FAULT_SECONDS", "1")) >= 10
ROWS = 1_500  # of 16 KB each, more than a connection holds


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("search")
    flags = ["--milvus-uri", str(folder / "milvus.db"), "--embedder", "127.0.0.1:1"]
    flags += ["--address", ANY_PORT, "--metrics-address", ANY_PORT, "--max-scans", "1", "--default-timeout", "2"]
    with ServerProcess("search-service", "search_service.main", flags, folder) as process:
        with Client(process.addresses.grpc) as client:
            client.create_collection("points", space=VectorSpace("mine", 4))
            for start in range(0, ROWS, 300):
                client.upsert("points", [item(n) for n in range(start, start + 300)])
        yield process


def item(n: int) -> Item:
    return Item(f"{n:05d}", vector=Embedding([1, n, 0, 0], "mine"), attributes={"text": "x" * 16_000})


def scanned(client: Client) -> int:
    return sum(1 for _ in client.scan("points"))


def test_a_client_that_is_stopped_while_it_reads_is_dropped_and_others_are_served(search: ServerProcess) -> None:
    program = """
import sys
from lookalike import Client
with Client(sys.argv[1]) as client:
    for n, record in enumerate(client.scan("points")):
        print(n, flush=True)
"""
    command = [sys.executable, "-c", program, search.addresses.grpc]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process,
        Client(search.addresses.grpc, retry=False) as client,
    ):
        assert process.stdout
        assert process.stdout.readline() == "0\n"
        process.send_signal(signal.SIGSTOP)
        try:
            with pytest.raises(LookalikeError, match="scans") as caught:
                scanned(client)
            assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert len(client.search("points", id="00000", top_k=3).hits) == 3

            def has_room() -> bool:
                with suppress(LookalikeError):
                    return scanned(client) == ROWS
                return False

            until(has_room)
        finally:
            process.send_signal(signal.SIGCONT)
        out, said = process.communicate(timeout=60)
        assert len(out.splitlines()) < ROWS - 1
        assert "DEADLINE_EXCEEDED: the scan was not read for 2" in said


def streams(search: ServerProcess) -> float:
    """Streams of upserts that have begun and not ended."""
    with urllib.request.urlopen(f"http://{search.addresses.metrics}/metrics", timeout=10) as page:
        families = text_string_to_metric_families(page.read().decode())
    sign = {"grpc_server_started_total": 1, "grpc_server_handled_total": -1}
    return sum(
        sign[sample.name] * sample.value
        for family in families
        for sample in family.samples
        if sample.name in sign and sample.labels["grpc_method"] == "UpsertStream"
    )


@pytest.mark.skipif(not LONG, reason="takes 40 s: `make faults` has it")
def test_a_client_that_vanishes_without_a_word_keeps_its_stream_for_less_than_a_minute(search: ServerProcess) -> None:
    items: queue.SimpleQueue[Item | None] = queue.SimpleQueue()
    with (
        FaultyProxy(search.addresses.grpc) as proxy,
        Client(proxy.address) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        results = client.upsert_stream("points", iter(items.get, None))
        items.put(item(0))
        assert next(results).id == "00000"
        assert streams(search) == 1
        proxy.forget()
        began = time.monotonic()
        until(lambda: streams(search) == 0, 60)
        print(f"the stream of a client that vanished ended after {time.monotonic() - began:.0f} s")
        items.put(None)
        with pytest.raises(LookalikeError) as caught:
            pool.submit(list, results).result(60)
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE
