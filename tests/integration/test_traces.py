"""A search from the command to the embedder, as one trace; and nothing of OpenTelemetry where none is asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lookalike import Client, Item
from workbench.demo_images import DemoImages
from workbench.services import running

SEARCH = "lookalike.search.v1.SearchService/Search"
EMBED = "lookalike.embedder.v1.EmbedderService/EmbedBatch"
CLIENT, SERVER, INTERNAL = 3, 2, 1


def test_a_search_by_image_is_one_trace_from_the_command_to_the_embedder(
    bundle: Path, demo_images: DemoImages, tmp_path: Path, collector: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    query = demo_images.queries[0]
    with monkeypatch.context() as patch:
        for name, value in collector.environment.items():
            patch.setenv(name, value)
        with running(bundle, tmp_path / "milvus.db", tmp_path) as services:
            target = services.search.addresses.grpc
            with Client(target) as client:  # of this process, which has no traces
                client.create_collection("photos")
                client.upsert("photos", [Item("a", image=query.read_bytes())])
            command = ["-m", "workbench.main", "search", str(query), "--collection", "photos", "--target", target]
            done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            # Two of each kind for the embedding: the upsert had one, too.
            collector.wait_for(f"/{SEARCH}", SEARCH, "embed", "search", EMBED, EMBED, EMBED, EMBED)
    spans = {(span.service, span.name, span.kind): span for span in collector.spans}
    command_call = spans["lookalike", f"/{SEARCH}", CLIENT]
    spans = {(span.service, span.name, span.kind): span for span in collector.spans if span.trace == command_call.trace}
    search = spans["lookalike-search", SEARCH, SERVER]
    embed = spans["lookalike-search", "embed", INTERNAL]
    embedder_call = spans["lookalike-search", EMBED, CLIENT]
    embedder = spans["lookalike-embedder", EMBED, SERVER]
    assert (command_call.name, command_call.kind, command_call.parent) == (f"/{SEARCH}", CLIENT, "")
    assert search.parent == command_call.id
    assert {embed.parent, spans["lookalike-search", "search", INTERNAL].parent} == {search.id}
    assert embedder_call.parent == embed.id
    assert embedder.parent == embedder_call.id
    # The embedder worked for the same request.
    assert embedder.attributes["lookalike.request_id"] == search.attributes["lookalike.request_id"]
    assert not any("Health" in span.name for span in collector.spans)


def test_the_servers_import_nothing_of_opentelemetry_where_no_traces_are_asked_for(
    bundle: Path, demo_images: DemoImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")  # has each import written to the log
    image = demo_images.queries[0].read_bytes()
    with running(bundle, tmp_path / "milvus.db", tmp_path) as services:
        with Client(services.search.addresses.grpc) as client:
            client.create_collection("photos")
            client.upsert("photos", [Item("a", image=image)])
            assert client.search("photos", image=image, read_your_writes=True).hits
        logs = [services.embedder.log, services.search.log]
    for log in logs:
        imported = log.read_text()
        assert "service_kit.tracing" in imported
        assert "opentelemetry" not in imported
