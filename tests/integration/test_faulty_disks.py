"""Disks that are full or read-only, under Milvus Lite, the embedder's cache, and the files that commands write."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from small_disk import SmallDisk, small_disk
from waiting import until

from benchmarks.milvus_server import MilvusServer, why_not
from lookalike import Client, EmbedderClient, Embedding, Item, LookalikeError, UpsertOutcome, VectorSpace
from workbench.demo_images import DemoImages
from workbench.errors import CommandError
from workbench.services import ANY_PORT, ServerProcess, Services, running

LONG = float(os.environ.get("LOOKALIKE_FAULT_SECONDS", "1")) >= 10
MIB = 1 << 20
KEPT_FREE = 256 * MIB
DIMENSIONS = 512


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", 4 * MIB) as disk:
        yield disk


def searching(database: Path | str, logs: Path, *flags: str) -> ServerProcess:
    flags = ("--milvus-uri", str(database), "--embedder", "127.0.0.1:1", *flags)
    flags += ("--address", ANY_PORT, "--metrics-address", ANY_PORT, "--readiness-interval", "0.5")
    return ServerProcess("search-service", "search_service.main", list(flags), logs)


def rows(first: int, count: int) -> list[Item]:
    random = np.random.default_rng(first)
    return [
        Item(str(n), vector=Embedding(random.standard_normal(DIMENSIONS).tolist(), "mine"))
        for n in range(first, first + count)
    ]


def store_until_it_fails(client: Client, acknowledged: list[str], count: int = 50) -> None:
    while True:
        store(client, acknowledged, count)


def store(client: Client, acknowledged: list[str], count: int = 50) -> None:
    results = client.upsert("points", rows(len(acknowledged), count))
    assert {result.outcome for result in results} == {UpsertOutcome.STORED}
    acknowledged += [result.id for result in results]


def check(client: Client, acknowledged: list[str]) -> None:
    for start in range(0, len(acknowledged), 500):
        assert client.get("points", acknowledged[start : start + 500], read_your_writes=True).missing_ids == ()
    assert client.count("points") >= len(acknowledged)
    assert len(client.search("points", id=acknowledged[0], top_k=10).hits) == 10


def test_on_a_disk_that_gets_full_writes_are_refused_searches_go_on_and_nothing_acknowledged_is_lost(
    disk: SmallDisk, tmp_path: Path
) -> None:
    disk.resize(KEPT_FREE + 2 * MIB)
    database = disk.path / "milvus.db"
    acknowledged: list[str] = []
    with searching(database, tmp_path) as search, Client(search.addresses.grpc, retry=False) as client:
        client.create_collection("points", space=VectorSpace("mine", DIMENSIONS))
        with pytest.raises(LookalikeError, match="MiB left, and writes leave 256 MiB free: make room") as caught:
            store_until_it_fails(client, acknowledged)
        assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert acknowledged
        check(client, acknowledged)
        assert client.delete("points", ids=[acknowledged.pop()]) == 1
        check(client, acknowledged)
        disk.fill()
        check(client, acknowledged)
    # It ends, which flushes, and starts on a disk without a byte.
    search = searching(database, tmp_path)
    search.__enter__()
    with Client(search.addresses.grpc, retry=False) as client:
        check(client, acknowledged)
        disk.resize(KEPT_FREE + 20 * MIB)
        client.upsert("points", rows(1_000_000, 50))
        check(client, acknowledged)
    os.kill(search.pid, signal.SIGKILL)
    os.waitpid(search.pid, 0)
    with searching(database, tmp_path) as search, Client(search.addresses.grpc) as client:
        check(client, acknowledged)
        assert client.count("points") == len(acknowledged) + 50


@pytest.mark.parametrize("operation", ["upsert", "flush"])
def test_a_write_that_the_system_cuts_off_ends_the_service_and_nothing_acknowledged_is_lost(
    tmp_path: Path, operation: str
) -> None:
    """As when something else fills the disk at that moment: from then on no file may grow beyond a limit."""
    acknowledged: list[str] = []
    search = searching(tmp_path / "milvus.db", tmp_path)
    search.__enter__()
    with Client(search.addresses.grpc, retry=False) as client:
        client.create_collection("points", space=VectorSpace("mine", DIMENSIONS))
        store(client, acknowledged)
        until(lambda: list(tmp_path.glob("milvus.db/**/*.parquet")))  # that is flushed, and what follows is not
        store(client, acknowledged)
        resource.prlimit(search.pid, resource.RLIMIT_FSIZE, (150_000, 150_000))
        if operation == "upsert":
            with pytest.raises(LookalikeError) as caught:
                store_until_it_fails(client, acknowledged)
            assert caught.value.code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE)
        with pytest.raises(CommandError, match="ended by itself with exit code"):
            search.check(wait=20)
    with searching(tmp_path / "milvus.db", tmp_path) as search, Client(search.addresses.grpc) as client:
        check(client, acknowledged)
        store(client, acknowledged)
        check(client, acknowledged)


@pytest.mark.milvus_server
@pytest.mark.skipif(not LONG, reason="takes two minutes and 700 MB of memory: `make faults` has it")
def test_a_milvus_server_that_ends_on_a_full_disk_has_all_that_was_acknowledged_when_there_is_room(
    tmp_path: Path,
) -> None:
    if reason := why_not():
        pytest.skip(reason)
    with small_disk(tmp_path / "disk", 2_000 * MIB) as disk:
        (disk.path / "milvus").mkdir()
        server = MilvusServer(disk.path / "milvus")
        acknowledged: list[str] = []
        try:
            with searching(server.uri, tmp_path) as search, Client(search.addresses.grpc, retry=False) as client:
                client.create_collection("points", space=VectorSpace("mine", DIMENSIONS))
                store(client, acknowledged)
                disk.fill()
                with pytest.raises(LookalikeError) as caught:
                    store_until_it_fails(client, acknowledged, 500)
                assert caught.value.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
                disk.resize(4_000 * MIB)
                server.kill()
                server.start()

                def serves() -> bool:
                    with suppress(LookalikeError):
                        check(client, acknowledged)
                        return True
                    return False

                until(serves, 120)
                store(client, acknowledged)
                check(client, acknowledged)
                print(f"{len(acknowledged):,} rows acknowledged, all there")
        finally:
            server.kill()


def test_on_a_read_only_disk_milvus_lite_says_so_at_the_start(disk: SmallDisk, tmp_path: Path) -> None:
    (disk.path / "milvus.db").mkdir()
    disk.read_only()
    with (
        pytest.raises(CommandError, match=r"could not open .*milvus.db: it cannot be written to"),
        searching(disk.path / "milvus.db", tmp_path),
    ):
        pass


def test_a_server_whose_address_file_finds_no_room_serves_and_writes_it_when_there_is(
    disk: SmallDisk, tmp_path: Path
) -> None:
    disk.fill()
    file = disk.path / "addresses.json"
    log = tmp_path / "log"
    command = [sys.executable, "-m", "search_service.main", "--milvus-uri", str(tmp_path / "milvus.db")]
    command += ["--address", ANY_PORT, "--metrics-address", ANY_PORT, "--readiness-interval", "0.2"]
    with log.open("wb") as out, subprocess.Popen([*command, "--address-file", file], stderr=out) as process:
        try:
            until(lambda: log.read_text().count("the address file cannot be written") > 1)
            assert [path.name for path in disk.path.iterdir()] == ["something"]
            assert "serving" in log.read_text()
            disk.resize(4 * MIB)
            until(file.exists)
            with Client(json.loads(file.read_text())["grpc"]) as client:
                assert client.list_collections() == []
        finally:
            process.terminate()


def test_an_embedder_serves_from_a_read_only_disk_and_without_its_cache_on_a_full_one(
    tmp_path: Path, bundle: Path, demo_images: DemoImages
) -> None:
    image = demo_images.queries[0].read_bytes()
    size = sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file())

    def embedding(name: str, model: Path, cache: Path) -> tuple[NDArray[np.float32], str]:
        flags = ["--bundle", str(model), "--cache-dir", str(cache)]
        flags += ["--address", ANY_PORT, "--metrics-address", ANY_PORT]
        with (
            ServerProcess(name, "embedder_service.main", flags, tmp_path) as process,
            EmbedderClient(process.addresses.grpc) as client,
        ):
            return client.embed(image).vector, process.log.read_text()

    with small_disk(tmp_path / "disk", size + 4 * MIB) as disk:
        model = Path(shutil.copytree(bundle, disk.path / "bundle"))
        cache = disk.path / "cache"
        cache.mkdir()
        disk.fill()
        on_full, log = embedding("full", model, cache)
        assert "compiled models cannot be kept" in log
        disk.read_only()
        on_read_only, log = embedding("read-only", model, cache)
        assert "compiled models cannot be kept" in log
        assert list(cache.iterdir()) == []
    with_cache, log = embedding("usual", bundle, tmp_path / "cache")
    assert "compiled models cannot be kept" not in log
    np.testing.assert_array_equal(on_full, with_cache)
    np.testing.assert_array_equal(on_read_only, with_cache)


@pytest.fixture(scope="module")
def services(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    folder = tmp_path_factory.mktemp("services")
    with running(bundle, folder / "milvus.db", folder / "logs") as services:
        yield services


def command(*arguments: object) -> tuple[int, str]:
    """Runs `lookalike`; returns its exit code and what it said."""
    program = [sys.executable, "-m", "workbench.main", *map(str, arguments)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout + done.stderr


def test_commands_say_which_file_did_not_fit_and_go_on_when_there_is_room(
    services: Services, disk: SmallDisk, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for n in range(200):
        Image.new("RGB", (4, 4), (n, 0, 0)).save(images / f"{n:03d}.png")
    (images / "corrupt.png").write_bytes(b"no image")
    target = ["--target", services.search.addresses.grpc, "--collection", "photos"]
    ingest = ["ingest", images, *target, "--batch", 8]
    checkpoint, failures, page = disk.path / "checkpoint", disk.path / "failures", disk.path / "found.html"

    disk.fill()
    code, said = command(*ingest, "--checkpoint", checkpoint)
    assert (code, f"the checkpoint {checkpoint} cannot be written: No space left on device" in said) == (1, True), said
    code, said = command(*ingest, "--failures", failures)
    assert (code, f"{failures} cannot be written: No space left on device" in said) == (1, True), said
    code, said = command("search", images / "000.png", *target, "--html", page)
    assert (code, "No space left on device" in said, "Traceback" in said) == (1, True, False), said

    disk.resize(4 * MIB)
    code, said = command(*ingest, "--checkpoint", checkpoint, "--failures", failures)
    assert (code, len(failures.read_text().splitlines())) == (1, 1), said
    assert "201 images found" in said
    assert "1 failed" in said
    with Client(services.search.addresses.grpc) as client:
        assert client.count("photos") == 200
    code, said = command("search", images / "000.png", *target, "--html", page)
    assert (code, page.read_text()[-8:].strip()) == (0, "</html>"), said
