"""The benchmark of the search, as short as can be."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.search import main


def test_the_benchmark_reports_the_search_beside_pymilvus_on_milvus_lite(tmp_path: Path) -> None:
    flags = ["--rows", "0", "--lite-rows", "500", "--queries", "10", "--dims", "16", "--lite-callers", "4"]
    flags += ["--seconds", "1", "--rounds", "2", "--warm-up", "0.2", "--out", str(tmp_path / "report.json")]
    assert main([*flags, "--work", str(tmp_path / "work"), "--logs", str(tmp_path / "logs")]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["schema"] == 1
    assert report["milvus"] is None
    assert any("--rows 0" in reason for reason in report["skipped"])
    rows = {row["search"]: row for row in report["searches"]}
    assert set(rows) == {"lookalike", "lookalike, not joined", "pymilvus"}
    for row in rows.values():
        assert (row["backend"], row["callers"], len(row["rounds"])) == ("lite", 4, 2)
        assert row["queries_per_second"] > 0
        assert row["errors"] == {}
        assert row["recall"] > 0.95  # by both, and so of the same rows
        assert 0 < row["latency_ms"]["p50"] <= row["latency_ms"]["p99"] <= row["latency_ms"]["max"]
    assert rows["lookalike"]["service_cpu_ms"] > 0
    assert rows["lookalike"]["rss_bytes"] > 10_000_000
    assert rows["pymilvus"]["service_cpu_ms"] is None
    filtered = {found["percent"]: found["recall"] for found in report["filtered"]}
    assert set(filtered) == {100, 50, 10, 1}
    assert min(filtered.values()) > 0.9  # of 10 rows at most that the last filter keeps, too
    kept = {objective["name"]: objective["kept"] for objective in report["objectives"]}
    assert kept["recall under a filter that keeps 10 %, Lite"] is True
    assert kept["recall under a filter that keeps 10 %, server"] is None
