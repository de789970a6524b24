"""The offline path: rows in Parquet files, imported by a real Milvus server, are what the online path stores.

LOOKALIKE_BULK_ROWS is how many rows are imported; `make faults` takes 200,000. LOOKALIKE_CALTECH101 is a folder to
embed and import instead of some small one.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.milvus_server import MilvusServer
from lookalike import Client, Embedding, Item, Query, UpsertOutcome, VectorSpace
from search_service.milvus_rows import encode_rows
from search_service.records import CollectionVersion, IndexSpec, Row
from search_service.records import VectorSpace as StoredSpace
from workbench.demo_images import DemoImages
from workbench.images import find_images
from workbench.main import main
from workbench.row_files import Folder, Origin, RowWriter, Summary
from workbench.services import ANY_PORT, ServerProcess, Services
from workbench.shards import Shard

ROWS = int(os.environ.get("LOOKALIKE_BULK_ROWS", "4000"))
DIMENSION = 32
FINGERPRINT = "made-up"


def vectors(count: int) -> NDArray[np.float32]:
    found: NDArray[np.float32] = np.random.default_rng(0).standard_normal((count, DIMENSION)).astype(np.float32)
    return found


def rows(count: int) -> list[Row]:
    """Rows with all that a row can have."""
    return [
        Row(f"é '{n}\"\\", vector, {"n": n, "f": n / 7, "text": 'a"\\\n', "list": [1, None]}, f"/photos/{n}", "ab" * 32)
        for n, vector in enumerate(vectors(count))
    ]


def write(folder: Path, shard: Shard, some: Sequence[Row], *, space: StoredSpace, found: int | None = None) -> None:
    """Writes one shard, as `lookalike embed` does."""
    version = CollectionVersion("", 0, "", space, IndexSpec(), False, 0)
    where = Folder(str(folder))
    with RowWriter(where, shard, Origin(space, multi_tenant=False), rows_per_file=1500) as writer:
        for start in range(0, len(some), 500):
            encoded = encode_rows(version, "", some[start : start + 500], updated_ms=1_700_000_000_000)
            writer.write([row for row in encoded if not isinstance(row, Exception)])
    where.finish(shard, Summary(found or len(some), writer.rows, (found or len(some)) - writer.rows))


@pytest.fixture
def vectors_client(milvus_server: MilvusServer, tmp_path: Path) -> Iterator[Client]:
    flags = ["--milvus-uri", milvus_server.uri, "--embedder", "127.0.0.1:1"]
    flags += ["--address", ANY_PORT, "--metrics-address", ANY_PORT]
    with (
        ServerProcess("search-service", "search_service.main", flags, tmp_path) as server,
        Client(server.addresses.grpc, timeout=120) as client,
    ):
        yield client
        for name in ("bulk", "online"):
            if name in {each.name for each in client.list_collections()}:
                client.delete_collection(name)


@pytest.mark.milvus_server
def test_an_imported_collection_is_the_one_that_upserts_make(
    milvus_server: MilvusServer, vectors_client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client, space = vectors_client, StoredSpace(FINGERPRINT, DIMENSION)
    everything = rows(ROWS)
    half = ROWS // 2
    write(tmp_path / "rows", Shard(0, 2), everything[:half], space=space)
    write(tmp_path / "rows", Shard(1, 2), everything[half:], space=space)

    command = ["bulk-import", str(tmp_path / "rows"), "--collection", "bulk", "--milvus-uri", milvus_server.uri]
    assert main(command) == 0
    assert f"{ROWS:,} rows in collection 'bulk'" in capsys.readouterr().out
    assert main(command) == 1
    assert "exists already" in capsys.readouterr().err

    serving = client.describe_collection("bulk").collection.serving
    assert serving is not None
    assert (serving.row_count, serving.indexed_row_count) == (ROWS, ROWS)
    assert serving.space == VectorSpace(FINGERPRINT, DIMENSION)

    client.create_collection("online", space=VectorSpace(FINGERPRINT, DIMENSION))
    items = (
        Item(row.id, vector=Embedding(row.vector, FINGERPRINT), attributes=row.attributes, source=row.source)
        for row in everything
    )
    assert {result.outcome for result in client.upsert_stream("online", items)} == {UpsertOutcome.STORED}

    some = [everything[n] for n in range(0, ROWS, ROWS // 20)]
    imported = {record.id: record for record in client.get("bulk", [row.id for row in some]).records}
    assert imported.keys() == {row.id for row in some}
    for row in some:
        record = imported[row.id]
        assert (record.attributes, record.source) == (row.attributes, row.source)
        assert record.content_sha256 == row.content_sha256
        assert record.update_time.timestamp() == 1_700_000_000

    queries = [Query(vector=Embedding(row.vector + np.float32(0.3), FINGERPRINT)) for row in some]

    def hits(name: str, *, exact: bool) -> list[dict[str, float]]:
        found = client.search_batch(name, queries, top_k=10, ef=1000, exact=exact, read_your_writes=True).results
        return [{hit.id: hit.similarity for hit in each} for each in found]

    expected = hits("online", exact=True)
    for exact in (True, False):
        common = [
            (similarity, best[id])
            for each, best in zip(hits("bulk", exact=exact), expected, strict=True)
            for id, similarity in each.items()
            if id in best
        ]
        assert len(common) >= (1 if exact else 0.95) * 10 * len(queries)  # a graph does not reach all
        np.testing.assert_allclose(*zip(*common, strict=True), atol=1e-5)

    # From here on it is a collection like any other.
    client.upsert("bulk", [Item(some[0].id, vector=Embedding(some[1].vector, FINGERPRINT), attributes={"new": True})])
    assert client.count("bulk") == ROWS
    assert client.count("bulk", filter='attributes["new"] == true') == 1


def refusal(folder: Path, uri: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["bulk-import", str(folder), "--collection", "bulk", "--milvus-uri", uri]) == 1
    return capsys.readouterr().err


@pytest.mark.milvus_server
def test_what_cannot_become_a_collection_is_refused(
    milvus_server: MilvusServer, vectors_client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client, uri = vectors_client, milvus_server.uri
    space = StoredSpace(FINGERPRINT, DIMENSION)
    some = rows(10)
    assert "no files of rows" in refusal(tmp_path / "none", uri, capsys)

    write(tmp_path / "twice", Shard(), [*some, some[3]], space=space)
    assert "an id is twice" in refusal(tmp_path / "twice", uri, capsys)

    write(tmp_path / "half", Shard(0, 2), some, space=space)
    assert "1 of 2 shards" in refusal(tmp_path / "half", uri, capsys)

    write(tmp_path / "mixed", Shard(0, 2), some, space=space)
    write(tmp_path / "mixed", Shard(1, 2), some, space=StoredSpace("other", DIMENSION))
    assert "not of one kind" in refusal(tmp_path / "mixed", uri, capsys)

    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "a.parquet").write_bytes(b"PAR1")
    assert "a.parquet is no file of rows" in refusal(tmp_path / "strange", uri, capsys)

    write(tmp_path / "good", Shard(), some, space=space)
    assert "no bulk import" in refusal(tmp_path / "good", str(tmp_path / "milvus.db"), capsys)
    # Milvus sees no such file, and says so; nothing is left that anybody could use.
    code = main(
        ["bulk-import", str(tmp_path / "good"), "--collection", "bulk", "--milvus-uri", uri, "--files-at", "/nowhere"]
    )
    assert code == 1
    assert "did not import /nowhere/" in capsys.readouterr().err
    assert [each.serving for each in client.list_collections() if each.name == "bulk"] in ([], [None])
    # The next attempt begins anew.
    assert main(["bulk-import", str(tmp_path / "good"), "--collection", "bulk", "--milvus-uri", uri]) == 0
    assert client.count("bulk") == 10


def row_ids(folder: Path) -> list[str]:
    where = Folder(str(folder))
    return [id for file in where.files() for id in where.ids(file).to_pylist()]


@pytest.mark.parametrize("backend", ["server"], indirect=True)
def test_embedded_and_imported_images_are_found_as_ingested_ones(
    services: Services, demo_images: DemoImages, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    shutil.copytree(os.environ.get("LOOKALIKE_CALTECH101") or demo_images.copies, images)
    (images / "broken.jpg").write_bytes(b"no image")
    count = len(find_images(images)) - 1
    failures = tmp_path / "failures.jsonl"
    embed = ["embed", str(images), "--out", str(tmp_path / "rows"), "--embedder", services.embedder.addresses.grpc]
    codes = [main([*embed, "--shard", f"{n}/2", "--failures", str(failures) + str(n)]) for n in range(2)]
    assert sorted(codes) == [0, 1]
    failed = [
        json.loads(line)["id"] for n in range(2) for line in Path(str(failures) + str(n)).read_text().splitlines()
    ]
    assert failed == ["broken.jpg"]
    assert len(row_ids(tmp_path / "rows")) == count

    # A second time there is nothing to do.
    capsys.readouterr()
    before = sorted(path.stat().st_mtime_ns for path in (tmp_path / "rows").glob("*.parquet"))
    assert [main([*embed, "--shard", f"{n}/2"]) for n in range(2)] == codes
    assert "of them before" in capsys.readouterr().out
    assert sorted(path.stat().st_mtime_ns for path in (tmp_path / "rows").glob("*.parquet")) == before
    # Another division into shards does not go together with it.
    assert main([*embed, "--shard", "0/3"]) == 1
    assert "use another folder" in capsys.readouterr().err

    target = services.search.addresses.grpc
    milvus = next(flag for flag in services.search._command if flag.startswith("http"))
    assert main(["bulk-import", str(tmp_path / "rows"), "--collection", "bulk", "--milvus-uri", milvus]) == 0
    assert main(["ingest", str(images), "--collection", "online", "--target", target]) == 1
    with Client(target) as client:
        try:
            rows = [
                {record.id: (record.attributes, record.source, record.content_sha256) for record in client.scan(name)}
                for name in ("bulk", "online")
            ]
            assert len(rows[0]) == count
            assert rows[0] == rows[1]
            for query in demo_images.queries:
                found, expected = [
                    client.search(name, image=query.read_bytes(), top_k=10, exact=True, read_your_writes=True).hits
                    for name in ("bulk", "online")
                ]
                similarities = [[hit.similarity for hit in hits] for hits in (found, expected)]
                assert [hit.id for hit in found] == [hit.id for hit in expected]
                np.testing.assert_allclose(*similarities, atol=1e-5)
        finally:
            client.delete_collection("bulk")
            client.delete_collection("online")


def test_embedding_goes_on_after_kill_9(embedders: tuple[str, str], demo_images: DemoImages, tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    command = ["embed", str(demo_images.copies), "--out", str(folder), "--embedder", embedders[0]]
    command += ["--rows-per-file", "8", "--batch", "4", "--concurrency", "1"]
    killed = 0
    for wanted in (1, 3, 5):
        process = subprocess.Popen([sys.executable, "-m", "workbench.main", *command])
        while process.poll() is None and len(row_ids(folder)) < 8 * wanted:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.01)
        process.kill()
        killed += process.wait() == -signal.SIGKILL
        assert not Folder(str(folder)).summaries()
    assert killed == 3
    assert main(command) == 0
    assert sorted(row_ids(folder)) == [image.id for image in find_images(demo_images.copies)]
    (summary,) = Folder(str(folder)).summaries().values()
    assert (summary.found, summary.failed) == (len(find_images(demo_images.copies)), 0)
