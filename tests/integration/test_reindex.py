"""`lookalike reindex` moves a collection to another model under load: real services, real images, both backends.

LOOKALIKE_REINDEX_ROWS is how many rows the collection has (many are for a Milvus server: Milvus Lite does not answer 20
searches/s in 20,000 rows beside the writes); the images of all but the first few hundred differ from one
another only in what no decoder looks at, so that each has a hash of its own.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from service_processes import searching
from waiting import until

from benchmarks.milvus_server import free_ports
from lookalike import (
    Client,
    CollectionVersion,
    Embedding,
    IndexSpec,
    IndexType,
    Item,
    LookalikeError,
    UpsertOutcome,
    VectorSpace,
)
from workbench.demo_images import DemoImages
from workbench.images import ImageFile, find_images
from workbench.ingest import ingest_with_progress
from workbench.services import ANY_PORT, ServerProcess

ROWS = int(os.environ.get("LOOKALIKE_REINDEX_ROWS", "400"))
SEARCHES_PER_SECOND, UPSERTS_PER_SECOND = 20, 5
SECONDS = 120 + ROWS / 5  # for the whole of a command


def command(target: str, folder: Path, *arguments: str) -> list[str]:
    fixed = ["--collection", "photos", "--target", target, "--data-dir", str(folder / "var")]
    return [sys.executable, "-m", "workbench.main", "reindex", *fixed, *arguments]


def reindex(target: str, folder: Path, *arguments: str, code: int = 0) -> str:
    done = subprocess.run(command(target, folder, *arguments), capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == code, done.stdout + done.stderr
    print(done.stdout)
    return done.stdout + done.stderr


def make_images(demo_images: DemoImages, folder: Path) -> list[ImageFile]:
    """Writes as many images as there are to be rows, no two of them alike."""
    copies = sorted(demo_images.copies.rglob("*.jpg"))
    folder.mkdir()
    for n in range(ROWS):
        # What comes after the end of a JPEG is left out by every decoder.
        (folder / f"{n:06d}.jpg").write_bytes(copies[n % len(copies)].read_bytes() + f"{n}".encode())
    return find_images(folder)


class Load:
    """Searches, upserts and deletions, at a fixed rate each, for as long as the context lasts."""

    def __init__(self, target: str, images: list[ImageFile], new: list[Path]) -> None:
        self._client = Client(target)
        self._images = images
        self._new = new
        self._done = threading.Event()
        self._threads = [
            threading.Thread(target=self._repeat, args=(work, rate))
            for work, rate in ((self._search, SEARCHES_PER_SECOND), (self._write, UPSERTS_PER_SECOND))
        ]
        self._calls = ThreadPoolExecutor(64)
        self.failed: list[str] = []
        self.searches = 0
        self.versions: set[int] = set()
        self.stored: dict[str, int] = {}
        self.deleted: set[str] = set()

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()
        self._calls.shutdown()
        self._client.close()

    def _repeat(self, work: Callable[[int], None], rate: float) -> None:
        started, n = time.monotonic(), 0
        while not self._done.wait(max(0.0, started + n / rate - time.monotonic())):
            self._calls.submit(self._guarded, work, n)
            n += 1

    def _guarded(self, work: Callable[[int], None], n: int) -> None:
        try:
            work(n)
        except Exception as error:
            self.failed.append(repr(error))

    def _search(self, n: int) -> None:
        result = self._client.search("photos", image=self._images[n % 50].path.read_bytes(), top_k=5)
        assert len(result.hits) == 5
        self.versions.add(result.served_by.version)
        self.searches += 1

    def _write(self, n: int) -> None:
        """New rows; while there are some, rows of before changed and, every fifth time, deleted. No id twice."""
        of_before = n < len(self._images) - 100
        if n % 5 == 4 and of_before:
            row_id = self._images[-1 - n].id
            assert self._client.delete("photos", ids=[row_id]) == 1
            self.deleted.add(row_id)
            return
        if n % 2 or not of_before:
            row_id, source = f"new {n}", self._new[n % len(self._new)]
        else:
            row_id, source = self._images[-1 - n].id, self._images[-1 - n].path
        item = Item(row_id, image=source.read_bytes(), attributes={"n": n}, source=str(source))
        [result] = self._client.upsert("photos", [item])
        assert result.outcome is UpsertOutcome.STORED, result.error
        self.stored[row_id] = n


def rows(client: Client, version: int) -> dict[str, tuple[object, str, str, object]]:
    """The rows of a version in full, but for the vectors."""
    return {
        record.id: (record.attributes, record.source, record.content_sha256, record.update_time)
        for record in client.scan("photos", version=version)
    }


def test_a_collection_moves_to_another_model_under_load_and_back(
    backend: str,
    embedders: tuple[str, str],
    second_bundle: Path,
    demo_images: DemoImages,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    old, new = embedders
    milvus = request.getfixturevalue("milvus_server").uri if backend == "server" else None
    images = make_images(demo_images, tmp_path / "images")
    with searching(tmp_path, old, new, milvus=milvus) as target, Client(target, timeout=120) as client:
        report = ingest_with_progress(target, "photos", images)
        assert report.failures == []
        missing = images[60]
        missing.path.unlink()
        with Load(target, images, list(demo_images.queries)) as load:
            # Killed in the middle, without a chance to tidy up; where it was the next one finds in the database.
            with subprocess.Popen(command(target, tmp_path, "--bundle", str(second_bundle))) as killed:
                while not any(version.row_count > ROWS // 4 for version in versions(client)[1:]):
                    assert killed.poll() is None
                    time.sleep(0.05)
                killed.kill()

            # A file that is gone is listed, and is no reason to lose anything else.
            refused = reindex(target, tmp_path, "--bundle", str(second_bundle), code=1)
            assert "Going on with version 2" in refused
            assert "version 2 lacks 1 rows" in refused
            adds_up(refused, failed=1)
            [failure] = (tmp_path / "var" / "reindex-photos.failures.jsonl").read_text().splitlines()
            assert json.loads(failure)["id"] == missing.id
            assert "No such file" in json.loads(failure)["reason"]
            assert client.describe_collection("photos").collection.serving_version == 1

            started = time.monotonic()
            done = reindex(target, tmp_path, "--bundle", str(second_bundle), "--allow-missing", "1")
            print(f"the last run took {time.monotonic() - started:.1f} s")
            adds_up(done, failed=1)
            assert "Version 2 serves" in done
            back = re.search(r"collections (switch photos 1) --target", done)
            assert back is not None
        print(f"{load.searches} searches, {len(load.stored)} upserts, {len(load.deleted)} deletions; {load.failed[:3]}")
        assert load.failed == []
        assert load.versions == {1, 2}

        first, second = rows(client, 1), rows(client, 2)
        expected = {image.id for image in images} | load.stored.keys()
        assert first.keys() == expected - load.deleted
        del first[missing.id]
        assert second == first
        for row_id, n in load.stored.items():
            assert second[row_id][0] == {"n": n}
        assert client.count("photos") == client.count("photos", version=2) == len(second)

        # What is done is not done again; and the way back is open.
        assert "version 2 of collection photos has this model" in reindex(
            target, tmp_path, "--bundle", str(second_bundle)
        )
        client.switch_collection_version("photos", 1)
        result = client.search("photos", image=images[0].path.read_bytes(), top_k=1, read_your_writes=True)
        assert result.served_by.version == 1
        assert result.hits[0].similarity > 0.99
        tried = client.search("photos", image=images[0].path.read_bytes(), top_k=1, version=2)
        assert tried.served_by.version == 2
        assert tried.hits[0].similarity > 0.99
        with pytest.raises(LookalikeError, match=r"NOT_FOUND.*no version 3"):
            client.count("photos", version=3)
        client.delete_collection("photos")


def versions(client: Client) -> tuple[CollectionVersion, ...]:
    return client.describe_collection("photos").collection.versions


def adds_up(output: str, *, failed: int) -> None:
    """Asserts that the summary has so many failures and adds up."""
    line = re.search(r"^([\d,]+) rows = ([\d,]+) copied \+ ([\d,]+) already there \+ ([\d,]+) failed$", output, re.M)
    assert line is not None, output
    total, *parts = (int(number.replace(",", "")) for number in line.groups())
    assert total == sum(parts)
    assert parts[-1] == failed


def test_another_index_of_the_same_model_gets_the_vectors_of_every_tenant(
    embedders: tuple[str, str], tmp_path: Path
) -> None:
    space = VectorSpace("mine", 4)
    with searching(tmp_path, *embedders) as target, Client(target) as client:
        client.create_collection("photos", space=space, index=IndexSpec(IndexType.HNSW), multi_tenant=True)
        for tenant in ("acme", "bolt"):
            items = [Item(str(n), vector=Embedding([n, 1, n % 7, 3], "mine"), attributes={"n": n}) for n in range(300)]
            client.upsert("photos", items, tenant=tenant)
        assert "Version 2 can serve" in reindex(target, tmp_path, "--no-switch", "--index", "flat")
        assert client.describe_collection("photos").collection.serving_version == 1
        stored = {(each.tenant, each.id): each for each in client.scan("photos", all_tenants=True, include_vector=True)}
        copied = {
            (each.tenant, each.id): each
            for each in client.scan("photos", all_tenants=True, version=2, include_vector=True)
        }
        assert len(stored) == 600
        assert copied.keys() == stored.keys()
        for key, record in stored.items():
            assert (copied[key].update_time, copied[key].attributes) == (record.update_time, record.attributes)
            assert copied[key].vector is not None
            assert record.vector is not None
            assert copied[key].vector.vector.tolist() == pytest.approx(record.vector.vector.tolist())  # type: ignore[union-attr]
        adds_up(done := reindex(target, tmp_path, "--index", "flat"), failed=0)
        assert "600 already there" in done
        serving = client.describe_collection("photos").collection.serving
        assert serving is not None
        assert (serving.version, serving.index.type) == (2, IndexType.FLAT)
        assert client.count("photos", tenant="bolt") == 300
        with pytest.raises(LookalikeError, match="leave one out"):
            list(client.scan("photos", all_tenants=True, tenant="bolt"))


def test_a_reindex_outlives_kill_9_of_the_search_service(
    backend: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    milvus = request.getfixturevalue("milvus_server").uri if backend == "server" else str(tmp_path / "milvus.db")
    target = f"127.0.0.1:{free_ports(1)[0]}"
    # Vectors need no embedder.
    flags = ["--milvus-uri", milvus, "--embedder", "127.0.0.1:1", "--address", target, "--metrics-address", ANY_PORT]
    count = 800
    to_hnsw = command(target, tmp_path, "--index", "hnsw", "--batch", "1")
    service = ServerProcess("search-service", "search_service.main", flags, tmp_path)
    service.__enter__()
    with Client(target) as client:
        client.create_collection("photos", space=VectorSpace("mine", 4), index=IndexSpec(IndexType.FLAT))
        items = [Item(str(n), vector=Embedding([n, 1, n % 7, 3], "mine"), attributes={"n": n}) for n in range(count)]
        assert {result.outcome for result in client.upsert_stream("photos", items)} == {UpsertOutcome.STORED}
        with subprocess.Popen(to_hnsw, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
            until(lambda: len(versions(client)) == 2 and client.count("photos", version=2) > count // 10)
            os.kill(service.pid, signal.SIGKILL)
            os.waitpid(service.pid, 0)
            with service:
                # It has waited, and goes on by itself.
                output, _ = running.communicate(timeout=SECONDS)
                assert running.returncode == 0, output
                adds_up(output, failed=0)
                with Client(target) as client:
                    assert rows(client, 1) == rows(client, 2)
                    assert client.count("photos") == count
                    serving = client.describe_collection("photos").collection.serving
                    assert serving is not None
                    # It serves no sooner than its index is built.
                    assert (serving.version, serving.indexed_row_count) == (2, count)
                    assert "this model and index, and serves" in reindex(target, tmp_path, "--index", "hnsw")
                    client.delete_collection("photos")


def test_a_model_without_an_embedder_is_refused_before_anything_is_made(
    embedders: tuple[str, str], second_bundle: Path, tmp_path: Path
) -> None:
    with searching(tmp_path, embedders[0]) as target, Client(target) as client:
        client.create_collection("photos")
        refused = reindex(target, tmp_path, "--bundle", str(second_bundle), code=1)
        assert "FAILED_PRECONDITION" in refused
        assert "--embedder takes several" in refused
        assert len(versions(client)) == 1
        # Rows that were stored as vectors have no image to be embedded.
        [space] = [version.space for version in versions(client)]
        client.upsert("photos", [Item("a", vector=Embedding([1.0] * space.dimension, space.fingerprint))])
    with searching(tmp_path, *embedders) as target, Client(target) as client:
        assert "a vector, of which another model can make none" in reindex(
            target, tmp_path, "--bundle", str(second_bundle), code=1
        )
        client.create_collection_version("photos", index=IndexSpec(IndexType.FLAT), require_embedder=True)
