"""What rules, dashboards and autoscalers ask Prometheus for is what the services really show."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from collections.abc import Iterator
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from lookalike import Client, Item
from workbench.services import Services, running

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / ".venv-deploy"
pytestmark = pytest.mark.skipif(
    not (TOOLS / "installed.stamp").exists(), reason="no tools to read deploy/ with: make check-deploy installs them"
)

# What Prometheus itself adds to what it scrapes.
TARGET_LABELS = {"job", "namespace", "pod", "le"}


@pytest.fixture(scope="module")
def asked() -> dict[str, set[str]]:
    """Each metric that is asked for, with the labels by which it is selected."""
    done = subprocess.run(
        [TOOLS / "bin" / "python", "-m", "deploy.checks.monitoring"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return {metric: set(labels) for metric, labels in json.loads(done.stdout).items()}


@pytest.fixture(scope="module")
def services(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """Both services, on Milvus Lite: what they show is the same on a server."""
    folder = tmp_path_factory.mktemp("services")
    with running(bundle, folder / "milvus.db", folder / "logs") as services:
        yield services


@pytest.fixture(scope="module")
def shown(services: Services) -> list[str]:
    """The /metrics of both, after some work."""
    picture = BytesIO()
    Image.new("RGB", (64, 64), "red").save(picture, "PNG")
    with Client(services.search.addresses.grpc) as client:
        client.create_collection("photos")
        client.upsert("photos", [Item("red", image=picture.getvalue())])
        client.search("photos", image=picture.getvalue(), top_k=1)
    return [_scrape(server.addresses.metrics) for server in (services.embedder, services.search)]


def test_every_metric_that_is_asked_for_is_shown(asked: dict[str, set[str]], shown: list[str]) -> None:
    assert len(asked) > 30
    there = {name for page in shown for family in text_string_to_metric_families(page) for name in _names(family)}
    assert asked.keys() - there == set()


def test_every_label_that_is_selected_by_is_there(asked: dict[str, set[str]]) -> None:
    kit = ("service_kit.interceptor", "service_kit.certificates", "service_kit.reloading", "service_kit.server")
    for module in ("embedder_service.metrics", "search_service.metrics", *kit):
        import_module(module)  # registers its metrics
    labels = {
        name: set(collector._labelnames)
        for name, collector in REGISTRY._names_to_collectors.items()
        if hasattr(collector, "_labelnames")
    }
    unknown = {
        metric: wrong
        for metric, named in asked.items()
        if not metric.startswith("process_") and (wrong := named - labels[metric] - TARGET_LABELS)
    }
    assert unknown == {}


def test_the_latency_objective_is_the_bound_of_a_bucket(shown: list[str]) -> None:
    for page in shown:
        assert "grpc_server_handling_seconds_bucket{grpc_method=" in page
        assert 'le="0.25"' in page


def test_promtool_likes_the_metrics(shown: list[str]) -> None:
    # The client library's own gauge of when a counter began is not named by these rules.
    for page in shown:
        ours = "\n".join(line for line in page.splitlines() if "_created" not in line) + "\n"
        done = subprocess.run(
            [TOOLS / "debian/usr/bin/promtool", "check", "metrics"], input=ours, capture_output=True, text=True
        )
        found = [
            line
            for line in done.stderr.splitlines()
            if line.startswith(("embedder_", "search_", "grpc_", "server_", "tls_"))
        ]
        assert found == []


def _scrape(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as reply:
        return str(reply.read().decode())


def _names(family: Any) -> set[str]:
    """The names of a family's samples, though it may have none yet."""
    endings = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
    return {family.name + ending for ending in endings} | {sample.name for sample in family.samples}
