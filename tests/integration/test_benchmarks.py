"""The benchmark of the embedder, as short as can be."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.embedder import main
from embedder_service.model import bundle as bundles
from workbench.demo_images import DemoImages


def test_the_benchmark_reports_the_embedder_beside_its_bare_model(
    bundle: Path, demo_images: DemoImages, tmp_path: Path
) -> None:
    flags = ["--bundle", str(bundle), "--images", str(demo_images.copies), "--precisions", "f32", "--peers"]
    flags += ["--concurrency", "2", "--seconds", "1", "--warm-up", "0.2"]
    assert main([*flags, "--out", str(tmp_path / "report.json"), "--logs", str(tmp_path / "logs")]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["schema"] == 1
    assert report["bundle"]["fingerprint"] == bundles.load(bundle).manifest.fingerprint
    assert report["images"]["count"] == len(list(demo_images.copies.rglob("*.*")))
    rows = {(row["server"], row["call"], row["batch"]): row for row in report["rows"]}
    single, batch = rows["lookalike", "Embed", 1], rows["lookalike", "EmbedBatch 32", 32]
    for row in (rows["bare runtime", "run", 1], single, batch):
        assert row["images"] > 0
        assert row["errors"] == {}
        assert row["server_cpu_ms"] > 0
        assert row["rss_max_bytes"] > 10_000_000
        assert row["cosine"] > 0.9999  # the same embeddings
        assert 0 < row["latency_ms"]["p50"] <= row["latency_ms"]["p99"] <= row["latency_ms"]["max"]
    assert single["startup_seconds"] > 0
    assert single["client_cpu_ms"] < single["server_cpu_ms"]
    assert single["to_bare"] > 0
    assert single["to_litserve"] is None
