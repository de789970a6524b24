"""`lookalike ingest` as people and jobs run it: interrupted, killed, resumed, in shards, with corrupt images.

LOOKALIKE_INTERRUPTIONS is how often the ingest is ended, LOOKALIKE_CALTECH101 a folder to ingest instead of some small
images; `make faults` sets the former.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

from benchmarks.processes import Sampler
from lookalike import Client
from workbench.images import find_images
from workbench.services import Services, running

INTERRUPTIONS = int(os.environ.get("LOOKALIKE_INTERRUPTIONS", "3"))
CALTECH101 = os.environ.get("LOOKALIKE_CALTECH101")
CORRUPT = 200 if CALTECH101 else 20
SECONDS = 1800.0
_SUMMARY = re.compile(
    r"([\d,]+) images found = ([\d,]+) stored \+ ([\d,]+) unchanged \+ ([\d,]+) failed(?: \+ ([\d,]+) not ack.*?)?, in"
)


@pytest.fixture(scope="module")
def services(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """Both services on Milvus Lite: what is tested here is the client."""
    folder = tmp_path_factory.mktemp("services")
    with running(bundle, folder / "milvus.db", folder / "logs") as services:
        yield services


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images."""
    if CALTECH101:
        return Path(CALTECH101)
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for n in range(1500):
        path = folder / f"class{n % 10}" / f"{n:04d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8)).save(path)
    return folder


def start(services: Services, collection: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "workbench.main", "ingest", "--collection", collection]
    command += ["--target", services.search.addresses.grpc, *map(str, arguments)]
    environment = {**os.environ, "JOB_COMPLETION_INDEX": "2"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, list[int]]:
    """Returns the exit code, what was printed, and found, stored, unchanged, failed and not acknowledged."""
    out, error = process.communicate(timeout=SECONDS)
    summary = _SUMMARY.search(out)
    numbers = [int((number or "0").replace(",", "")) for number in summary.groups()] if summary else []
    return process.returncode, out + error, numbers


def lines(path: Path) -> int:
    return len(path.read_bytes().splitlines()) if path.exists() else 0


def check_rows(client: Client, collection: str, ids: Sequence[str]) -> None:
    assert sorted(record.id for record in client.scan(collection, read_your_writes=True)) == sorted(ids)
    assert client.count(collection) == len(ids)


def test_interrupted_and_killed_at_random_an_ingest_goes_on_and_comes_to_its_end(
    services: Services, client: Client, images: Path, tmp_path: Path
) -> None:
    ids = [file.id for file in find_images(images)]
    random = Random(INTERRUPTIONS)
    checkpoint = tmp_path / "checkpoint"
    # Small batches, for each ending to come between two of them.
    arguments = (images, "--checkpoint", checkpoint, "--failures", tmp_path / "failures.jsonl", "--batch", 16)
    per_run = len(ids) // 16 // (INTERRUPTIONS + 2)  # batches
    ended = []
    for number in range(INTERRUPTIONS):
        before = lines(checkpoint)
        process = start(services, "resumed", *arguments)
        wanted = before + 1 + random.randrange(per_run)
        deadline = time.monotonic() + SECONDS
        while lines(checkpoint) < wanted and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        how = signal.SIGKILL if number % 2 else signal.SIGINT
        process.send_signal(how)
        code, printed, summary = finish(process)
        ended.append(code)
        assert code == (-signal.SIGKILL if how is signal.SIGKILL else 130), printed
        if code == 130:
            found, *parts = summary
            assert found == sum(parts)
            assert "That is not all: interrupted" in printed
        assert lines(checkpoint) > before, "each run got further"
    code, printed, [found, stored, unchanged, failed, pending] = finish(start(services, "resumed", *arguments))
    assert code == 0, printed
    assert (found, failed, pending) == (len(ids), 0, 0)
    assert stored + unchanged == found
    assert "before, as the checkpoint says" in printed
    check_rows(client, "resumed", ids)
    # Once more: everything is known, nothing is read or sent.
    code, printed, again = finish(start(services, "resumed", *arguments))
    assert (code, again) == (0, [found, stored, unchanged, 0, 0])
    assert f"{found:,} of them before" in printed
    print(f"\n{len(ids):,} images, ended by {ended}: {printed}")


def test_corrupt_images_are_in_the_failure_file_and_all_others_stored(
    services: Services, client: Client, images: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    shutil.copytree(images, folder)
    files = find_images(folder)
    corrupt = Random(0).sample(files, CORRUPT)
    for n, file in enumerate(corrupt):
        data = file.path.read_bytes()
        file.path.write_bytes([b"", b"no image", data[: len(data) // 3], bytes(len(data))][n % 4])
    failures = tmp_path / "failures.jsonl"
    code, printed, summary = finish(start(services, "corrupt", folder, "--failures", failures))
    assert code == 1, printed
    assert summary == [len(files), len(files) - CORRUPT, 0, CORRUPT, 0]
    failed = [json.loads(line) for line in failures.read_text().splitlines()]
    assert sorted((each["id"], each["source"]) for each in failed) == sorted(
        (file.id, str(file.path)) for file in corrupt
    )
    assert all(each["reason"].startswith("INVALID_ARGUMENT: ") for each in failed)
    check_rows(client, "corrupt", sorted({file.id for file in files} - {file.id for file in corrupt}))


def test_shards_together_store_each_image_once(services: Services, client: Client, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for n in range(60):
        Image.new("RGB", (8, 8), (n, 0, 0)).save(folder / f"{n}.png")
    totals = []
    for shard in ("0/3", "1/3", "auto/3"):
        process = start(services, "shards", folder, "--shard", shard, "--attribute", "year=1991")
        code, printed, [found, stored, *_] = finish(process)
        assert code == 0, printed
        assert found == stored
        totals.append(stored)
    assert sum(totals) == 60
    assert min(totals) > 0
    check_rows(client, "shards", [f"{n}.png" for n in range(60)])
    assert client.count("shards", filter='attributes["year"] == 1991') == 60


def test_a_dry_run_takes_no_service_and_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "many.tar"
    header = b"\x89PNG\r\n\x1a\n" + bytes(8)
    count = 50_000
    with path.open("wb") as file:
        for n in range(count):
            member = tarfile.TarInfo(f"class{n % 100}/{n:07d}.png")
            member.size = len(header)
            file.write(member.tobuf() + header.ljust(512, b"\0"))
        file.write(bytes(1024))
    command = [sys.executable, "-m", "workbench.main", "ingest", str(path), "--collection", "photos", "--dry-run"]
    command += ["--target", "127.0.0.1:1", "--failures", str(tmp_path / "failures.jsonl")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with Sampler(process.pid) as sampler:
        out, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0
    assert f"{count:,} images found = {count:,} would be sent" in out
    assert (tmp_path / "failures.jsonl").read_bytes() == b""
    assert sampler.rss_max < 300 << 20
