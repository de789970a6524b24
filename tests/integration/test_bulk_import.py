"""The offline path: rows in Parquet files, imported by a real Milvus server, are what the online path stores.

LOOKALIKE_BULK_ROWS is how many rows are imported; `make faults` takes 200,000.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.milvus_server import MilvusServer
from lookalike import Client, Embedding, Item, UpsertOutcome, VectorSpace
from search_service.milvus_rows import encode_rows
from search_service.records import CollectionVersion, IndexSpec, Row
from search_service.records import VectorSpace as StoredSpace
from workbench.main import main
from workbench.row_files import Folder, Origin, Part, RowWriter, Summary
from workbench.services import ANY_PORT, ServerProcess

ROWS = int(os.environ.get("LOOKALIKE_BULK_ROWS", "4000"))
DIMENSION = 32
FINGERPRINT = "made-up"
pytestmark = pytest.mark.milvus_server


def vectors(count: int) -> NDArray[np.float32]:
    found: NDArray[np.float32] = np.random.default_rng(0).standard_normal((count, DIMENSION)).astype(np.float32)
    return found


def rows(count: int) -> list[Row]:
    """Rows with all that a row can have."""
    return [
        Row(f"é '{n}\"\\", vector, {"n": n, "f": n / 7, "text": 'a"\\\n', "list": [1, None]}, f"/photos/{n}", "ab" * 32)
        for n, vector in enumerate(vectors(count))
    ]


def write(folder: Path, part: Part, some: Sequence[Row], *, space: StoredSpace, found: int | None = None) -> None:
    """Writes one part, as `lookalike embed` does."""
    version = CollectionVersion("", 0, "", space, IndexSpec(), False, 0)
    where = Folder(str(folder))
    with RowWriter(where, part, Origin(space, multi_tenant=False), rows_per_file=1500) as writer:
        for start in range(0, len(some), 500):
            encoded = encode_rows(version, "", some[start : start + 500], updated_ms=1_700_000_000_000)
            writer.write([row for row in encoded if not isinstance(row, Exception)])
    where.finish(part, Summary(found or len(some), writer.rows, (found or len(some)) - writer.rows))


@pytest.fixture
def client(milvus_server: MilvusServer, tmp_path: Path) -> Iterator[Client]:
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


def test_an_imported_collection_is_the_one_that_upserts_make(
    milvus_server: MilvusServer, client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = StoredSpace(FINGERPRINT, DIMENSION)
    everything = rows(ROWS)
    half = ROWS // 2
    write(tmp_path / "rows", Part(0, 2), everything[:half], space=space)
    write(tmp_path / "rows", Part(1, 2), everything[half:], space=space)

    command = ["bulk-import", str(tmp_path / "rows"), "--collection", "bulk", "--milvus-uri", milvus_server.uri]
    assert main(command) == 0
    assert f"{ROWS:,} rows in collection 'bulk'" in capsys.readouterr().out
    assert main(command) == 1
    assert "exists already" in capsys.readouterr().err

    serving = client.describe_collection("bulk").collection.serving
    assert serving is not None
    assert (serving.row_count, serving.indexed_rows) == (ROWS, ROWS)
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
        query = Embedding(row.vector + np.float32(0.3), FINGERPRINT)
        for exact in (True, False):
            found, expected = [
                client.search(name, vector=query, top_k=10, exact=exact, read_your_writes=True).hits
                for name in ("bulk", "online")
            ]
            if exact:
                assert [hit.id for hit in found] == [hit.id for hit in expected]
                np.testing.assert_allclose(
                    [hit.similarity for hit in found], [hit.similarity for hit in expected], atol=1e-5
                )
            else:  # two graphs, each with rows that it does not reach
                assert len({hit.id for hit in found} & {hit.id for hit in expected}) >= 9

    # From here on it is a collection like any other.
    client.upsert("bulk", [Item(some[0].id, vector=Embedding(some[1].vector, FINGERPRINT), attributes={"new": True})])
    assert client.count("bulk") == ROWS
    assert client.count("bulk", filter='attributes["new"] == true') == 1


def refusal(folder: Path, uri: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["bulk-import", str(folder), "--collection", "bulk", "--milvus-uri", uri]) == 1
    return capsys.readouterr().err


def test_what_cannot_become_a_collection_is_refused(
    milvus_server: MilvusServer, client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = milvus_server.uri
    space = StoredSpace(FINGERPRINT, DIMENSION)
    some = rows(10)
    assert "no files of rows" in refusal(tmp_path / "none", uri, capsys)

    write(tmp_path / "twice", Part(), [*some, some[3]], space=space)
    assert "an id is twice" in refusal(tmp_path / "twice", uri, capsys)

    write(tmp_path / "half", Part(0, 2), some, space=space)
    assert "1 of 2 parts" in refusal(tmp_path / "half", uri, capsys)

    write(tmp_path / "mixed", Part(0, 2), some, space=space)
    write(tmp_path / "mixed", Part(1, 2), some, space=StoredSpace("other", DIMENSION))
    assert "not of one kind" in refusal(tmp_path / "mixed", uri, capsys)

    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "a.parquet").write_bytes(b"PAR1")
    assert "a.parquet is no file of rows" in refusal(tmp_path / "strange", uri, capsys)

    write(tmp_path / "good", Part(), some, space=space)
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


def test_rows_of_a_file_that_was_not_finished_are_not_there(tmp_path: Path) -> None:
    space = StoredSpace(FINGERPRINT, DIMENSION)
    where = Folder(str(tmp_path))
    version = CollectionVersion("", 0, "", space, IndexSpec(), False, 0)
    encoded = [row for row in encode_rows(version, "", rows(20), 1) if not isinstance(row, Exception)]
    with (
        pytest.raises(RuntimeError, match="power"),
        RowWriter(where, Part(), Origin(space, multi_tenant=False), rows_per_file=8) as writer,
    ):
        writer.write(encoded[:10])
        writer.write(encoded[10:15])
        raise RuntimeError("the power is gone")
    (file,) = where.files()
    assert (file.rows, file.part, file.origin) == (10, Part(), Origin(space, False))
    assert where.ids(file).to_pylist() == [row["id"] for row in encoded[:10]]
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
