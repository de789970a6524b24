"""The tools that know one kind of file each."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import yaml

from deploy.checks.tree import Check, Tree, reading, run, tool

# What checkov would have otherwise, and why we do not.
_CHECKOV_SKIPPED = {
    "CKV_K8S_15": "a tag that always means the same image, or a digest, needs no pull at each start",
    "CKV_K8S_43": "digests are those of your registry: make pin-images",
}


@reading
def checkov(tree: Tree) -> Iterator[str]:
    """Yields what checkov finds in the objects."""
    with tempfile.TemporaryDirectory() as folder:
        for where in tree.rendered:
            path = Path(folder) / f"{where.replace('/', '-')}.yaml"
            path.write_text(yaml.safe_dump_all(tree.rendered[where]))
        skipped = ",".join(_CHECKOV_SKIPPED)
        flags = ("--framework", "kubernetes", "--skip-download", "--compact", "--quiet", "--skip-check", skipped)
        yield from run(tool("checkov"), "--directory", folder, *flags)


def hadolint(tree: Tree) -> Iterator[str]:
    """Yields what hadolint finds in the Dockerfiles."""
    yield from run(tool("hadolint"), *tree.dockerfiles)


def yamllint(tree: Tree) -> Iterator[str]:
    """Yields what yamllint finds in all YAML files."""
    configuration = Path(__file__).with_name("yamllint.yaml")
    yield from run(tool("yamllint"), "--strict", "--config-file", configuration, *tree.yaml_files())


def shellcheck(tree: Tree) -> Iterator[str]:
    """Yields what shellcheck finds in our scripts, those in manifests included."""
    yield from run(tool("shellcheck"), tree.root / ".ci" / "run")
    for path in tree.yaml_files():
        for script in _scripts(list(yaml.safe_load_all(path.read_text()))):
            with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
                file.write(f"#!/bin/sh\nset -eu\n{script}\n")
                file.flush()
                yield from (f"{path.relative_to(tree.root)}: {line}" for line in run(tool("shellcheck"), file.name))


def compose(tree: Tree) -> Iterator[str]:
    """Yields what docker compose does not understand."""
    folder = tree.deploy / "compose"
    environment = {**os.environ, "BUNDLE": "/bundle"}
    for override in ((), ("-f", folder / "compose.gpu.yaml")):
        files = ("-f", folder / "compose.yaml", *override)
        yield from run(tool("docker-compose"), *files, "config", "--quiet", env=environment)


def envoy(tree: Tree) -> Iterator[str]:
    """Yields what Envoy does not accept in its configurations, and what it says is going to be removed."""
    for path in (tree.deploy / "compose" / "envoy.yaml", tree.deploy / "k8s" / "components" / "tls" / "envoy.yaml"):
        with tempfile.TemporaryDirectory() as folder:
            for each in path.parent.glob("*.yaml"):
                text = each.read_text().replace("/etc/envoy/", f"{folder}/")
                (Path(folder) / each.name).write_text(text)
            command = (tool("envoy"), "--mode", "validate", "--log-level", "warning", "--config-path", path.name)
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL)
            said = [line for line in done.stderr.splitlines() if done.returncode or "Deprecated" in line]
            yield from (f"{path.relative_to(tree.root)}: {line}" for line in said)


def buf(tree: Tree) -> Iterator[str]:
    """Yields what buf finds in the contract."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(tree.root / "protos", folder, dirs_exist_ok=True)
        # What it imports comes with the package googleapis-common-protos.
        shutil.copytree(Path(sysconfig.get_path("purelib")) / "google" / "rpc", Path(folder) / "google" / "rpc")
        yield from run(tool("buf"), "lint", folder)


def _scripts(value: object) -> Iterator[str]:
    if isinstance(value, list):
        if value[:2] in (["sh", "-euc"], ["sh", "-ec"], ["sh", "-c"]):
            yield str(value[2])
        for each in value:
            yield from _scripts(each)
    elif isinstance(value, dict):
        for each in value.values():
            yield from _scripts(each)


CHECKS: dict[str, Check] = {
    "checkov": checkov,
    "hadolint": hadolint,
    "yamllint": yamllint,
    "shellcheck": shellcheck,
    "compose": compose,
    "envoy": envoy,
    "buf": buf,
}
