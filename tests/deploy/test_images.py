"""What the images do: install without what they need not have, answer health checks, pin their digests, size Milvus."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from deploy.docker import pin_images, prove_install
from deploy.milvus import sizing

ROOT = Path(__file__).resolve().parents[2]
HEALTHCHECK = ROOT / "deploy" / "docker" / "healthcheck.py"
DIGEST = f"sha256:{'5e' * 32}"


def test_the_image_of_the_cpu_embedder_installs_and_has_no_tensorflow(tmp_path: Path) -> None:
    size = prove_install.prove("embedder-cpu", tmp_path)
    assert size < 500e6  # TensorFlow alone would be more


def test_the_images_health_check_says_what_the_server_says(tmp_path: Path) -> None:
    addresses = tmp_path / "addresses.json"
    server = ROOT / "tests" / "unit" / "service_kit" / "small_server.py"
    flags = ["--health-address", "127.0.0.1:0", "--address-file", addresses, "--drain-delay", "0"]
    process = subprocess.Popen(
        [sys.executable, server, *flags], stderr=subprocess.DEVNULL, cwd=ROOT, env=_environment()
    )
    try:
        deadline = time.monotonic() + 60
        while not addresses.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        target = json.loads(addresses.read_text())["health"]
        for name in ("startup", "readiness", "liveness"):
            assert _health(target, name) == 0
        assert _health(target, "nothing of ours") == 1
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert _health(target, "readiness") == 1


def test_pinning_puts_the_digest_behind_every_tag_and_renews_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Docker and the registries are not to be had here: an executable that answers as docker does.
    docker = tmp_path / "bin" / "docker"
    docker.parent.mkdir()
    docker.write_text(f"#!/bin/sh\necho {DIGEST}\n")
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", f"{docker.parent}:{os.environ['PATH']}")
    pin_images.digest.cache_clear()
    text = (
        "ARG PYTHON=python:3.11-slim\nFROM ${PYTHON}\n    image: prom/prometheus:v3.5.0\n"
        "    image: lookalike-search:0.1.0\n"
        "images:\n  - name: lookalike-search\n    newName: registry.example:5000/lookalike/search\n    newTag: 0.1.0\n"
        "  - name: other\n    newName: other\n    newTag: v1\n    digest: sha256:old\n"
    )
    pinned = pin_images.pin(text)
    assert f"ARG PYTHON=python:3.11-slim@{DIGEST}\n" in pinned
    assert f"    image: prom/prometheus:v3.5.0@{DIGEST}\n" in pinned
    assert "    image: lookalike-search:0.1.0\n" in pinned
    assert f"    newTag: 0.1.0\n    digest: {DIGEST}\n  - name: other\n" in pinned
    assert pinned.endswith(f"    newTag: v1\n    digest: {DIGEST}\n")
    assert pin_images.pin(pinned) == pinned


def test_pinning_without_docker_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    pin_images.digest.cache_clear()
    with pytest.raises(SystemExit, match="docker is not installed"):
        pin_images.pin("    image: prom/prometheus:v3.5.0\n")


def test_every_image_in_deploy_can_be_pinned() -> None:
    for path in [*ROOT.glob("deploy/docker/*.Dockerfile"), ROOT / "deploy/compose/compose.yaml"]:
        named = re.findall(r"^(?:ARG (?:PYTHON|BASE)=| +image: )(\S+)$", path.read_text(), re.MULTILINE)
        assert named
        assert len(named) == len(pin_images._PLACES.findall(path.read_text()))


def test_the_table_of_sizes_is_what_the_command_computes() -> None:
    page = (ROOT / "deploy" / "milvus" / "README.md").read_text()
    assert page == sizing.with_table(page), "run python -m deploy.milvus.sizing --write"


def test_a_replica_fits_the_nodes_that_hold_it() -> None:
    for size in sizing.DEFAULTS:
        assert size.nodes % size.replicas == 0
        assert size.memory <= size.nodes / size.replicas * size.node * sizing.FILL


@pytest.mark.parametrize("job", ["collection", "ingest", "reindex", "loadtest"])
def test_the_command_takes_the_arguments_of_a_job(job: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import argparse

    monkeypatch.setenv("JOB_COMPLETION_INDEX", "3")
    document = yaml.safe_load((ROOT / "deploy" / "k8s" / "jobs" / job / "job.yaml").read_text())
    command, *arguments = document["spec"]["template"]["spec"]["containers"][0]["args"]
    parser = argparse.ArgumentParser()
    import_module(f"workbench.commands.{command}").register(parser.add_subparsers())
    parser.parse_args([command, *arguments])


def _health(target: str, name: str) -> int:
    command = [sys.executable, HEALTHCHECK, target, name]
    return subprocess.run(command, capture_output=True, env=_environment()).returncode


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}
