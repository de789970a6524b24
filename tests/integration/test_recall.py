"""The recall of real indexes: by the command, and as a metric of a service that is searched. Milvus Lite."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lookalike import Client, Embedding, IndexSpec, IndexType, Item, Query, VectorSpace
from workbench.demo_images import DemoImages
from workbench.services import ANY_PORT, ServerProcess

DIMENSION = 16
ROWS = 1_500


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recall")


@pytest.fixture(scope="module")
def service(bundle: Path, folder: Path) -> Iterator[ServerProcess]:
    """A search service that compares as often as it may, with its embedder."""
    here = ["--address", ANY_PORT, "--metrics-address", ANY_PORT]
    with ServerProcess("embedder", "embedder_service.main", ["--bundle", str(bundle), *here], folder) as embedder:
        flags = ["--milvus-uri", str(folder / "milvus.db"), "--embedder", embedder.addresses.grpc, *here]
        flags += ["--canary-interval", "0.05"]
        with ServerProcess("search", "search_service.main", flags, folder) as search:
            yield search


@pytest.fixture(scope="module")
def client(service: ServerProcess) -> Iterator[Client]:
    with Client(service.addresses.grpc) as client:
        yield client


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((ROWS, DIMENSION)).astype(np.float32)


@pytest.fixture(scope="module")
def rough(client: Client, folder: Path, vectors: np.ndarray) -> str:
    """A collection whose graph has so few edges that it loses rows."""
    index = IndexSpec(IndexType.HNSW, m=2, ef_construction=8)
    client.create_collection("rough", space=VectorSpace("mine", DIMENSION), index=index)
    for start in range(0, ROWS, 500):
        part = vectors[start : start + 500]
        client.upsert("rough", [Item(f"{start + n}", vector=Embedding(part[n], "mine")) for n in range(len(part))])
    deadline = time.monotonic() + 30
    while not list(folder.rglob("*.idx")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return "rough"


def recall(service: ServerProcess, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "workbench.main", "recall", "--target", service.addresses.grpc, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_the_metric_and_the_command_tell_of_a_poor_index(
    service: ServerProcess, client: Client, rough: str, vectors: np.ndarray, tmp_path: Path
) -> None:
    def metric(name: str) -> float | None:
        with urllib.request.urlopen(f"http://{service.addresses.metrics}/metrics", timeout=10) as page:
            lines = page.read().decode().splitlines()
        return next((float(line.split()[-1]) for line in lines if line.startswith(name)), None)

    deadline = time.monotonic() + 60
    while (ratio := metric('search_canary_recall_ratio{collection="rough"}')) in (None, 1.0):
        # All in one comparison: after it the service rests.
        queries = [Query(vector=Embedding(vector + 0.5, "mine")) for vector in vectors[:16]]
        client.search_batch(rough, queries, top_k=5, ef=5)
        assert time.monotonic() < deadline
    assert ratio is not None
    assert 0 < ratio < 1
    assert metric('search_canary_last_success_timestamp_seconds{collection="rough"}') == pytest.approx(
        time.time(), abs=60
    )
    assert (metric('search_canary_queries_total{outcome="compared"}') or 0) >= 1

    figures = tmp_path / "figures.json"
    options = ["--collection", rough, "--queries", "80", "--json", str(figures)]
    options += ["--top-k", "4"]
    done = recall(service, *options, "--ef", "4,2000", "--min-recall", "0.9999")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "is below 0.9999" in done.stdout
    default, narrow, wide = json.loads(figures.read_text())["measured"]
    # The row that is searched by, which is no hit, takes a place.
    assert (default["ef"], narrow["ef"], wide["ef"]) == (64, 5, 2000)
    assert (default["default"], narrow["default"], default["queries"]) == (True, False, 80)
    assert narrow["recall"] < min(default["recall"], wide["recall"])
    assert narrow["worst"] <= narrow["recall"]
    assert 0 < default["latency_ms"]["p50"] <= default["latency_ms"]["p95"]
    assert f"{default['recall']:.4f}" in next(line for line in done.stdout.splitlines() if "64 (default)" in line)
    assert "Searching: 320/320 searches" in done.stderr

    again = tmp_path / "again.json"
    options = ["--collection", rough, "--queries", "80", "--top-k", "4", "--json", str(again), "--ef", "4"]
    assert recall(service, *options, "--min-recall", "0.1").returncode == 0
    same = json.loads(again.read_text())["measured"]
    assert [each["recall"] for each in same] == [default["recall"], narrow["recall"]]  # the same sample


def test_images_and_filters_are_compared_and_a_flat_index_is_said_to_be_exact(
    service: ServerProcess, client: Client, demo_images: DemoImages
) -> None:
    client.create_collection("photos", index=IndexSpec(IndexType.HNSW))
    files = sorted(demo_images.copies.rglob("*.jpg"))[:40]
    items = [
        Item(f"{n}", image=file.read_bytes(), attributes={"odd": bool(n % 2)}, source=str(file))
        for n, file in enumerate(files)
    ]
    client.upsert("photos", items)
    folder = str(demo_images.queries[0].parent)
    odd = ["--filter", 'attributes["odd"] == true']
    done = recall(service, "--collection", "photos", "--images", folder, "--ef", "64", "--min-recall", "1", *odd)
    assert done.returncode == 0, done.stdout + done.stderr
    [default] = [line.split() for line in done.stdout.splitlines() if "(default)" in line]
    assert default[2:4] == ["1.0000", "1.0000"]
    done = recall(service, "--collection", "photos", "--filter", "id == 'nobody'")
    assert (done.returncode, "no query has an exact answer" in done.stderr) == (1, True)

    client.create_collection("exact", index=IndexSpec(IndexType.FLAT))
    done = recall(service, "--collection", "exact", "--min-recall", "1")
    assert (done.returncode, "exact" in done.stdout) == (0, True), done.stderr
    client.create_collection("empty", index=IndexSpec(IndexType.HNSW))
    done = recall(service, "--collection", "empty")
    assert (done.returncode, "has no rows" in done.stderr) == (1, True)


def test_search_and_recall_are_of_one_tenant_where_there_are_several(
    service: ServerProcess, client: Client, demo_images: DemoImages
) -> None:
    client.create_collection("shared", index=IndexSpec(IndexType.HNSW), multi_tenant=True)
    files = sorted(demo_images.copies.rglob("*.jpg"))[:12]
    for tenant, some in (("ants", files[:8]), ("bees", files[8:])):
        client.upsert("shared", [Item(file.name, image=file.read_bytes()) for file in some], tenant=tenant)
    command = [sys.executable, "-m", "workbench.main", "search", "--target", service.addresses.grpc, "--json"]
    command += ["--collection", "shared", "--tenant", "bees", str(files[0])]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert {hit["id"] for hit in json.loads(done.stdout)["hits"]} == {file.name for file in files[8:]}

    done = recall(service, "--collection", "shared", "--tenant", "ants", "--top-k", "3", "--ef", "64")
    assert (done.returncode, "8 queries" in done.stdout) == (0, True), done.stdout + done.stderr
