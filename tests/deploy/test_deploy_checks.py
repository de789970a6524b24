"""Each check of deploy/ fails where what it looks for is planted; that they pass is shown by `make check-deploy`."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
from deploy_tools import ROOT, check

from deploy.checks.__main__ import CHECKS

FAULTS = tomllib.loads(Path(__file__).with_name("faults.toml").read_text())["fault"]


def planted_together() -> dict[str, list[dict[str, Any]]]:
    """The faults that one run of a check is to find, by a name for that run."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for fault in FAULTS:
        apart = fault["says"] if "alone" in fault else " ".join(fault.get("in", ()))
        runs.setdefault(f"{fault['check']}: {apart}".removesuffix(": "), []).append(fault)
    return runs


RUNS = planted_together()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of what the checks read."""
    for name in ("deploy", "protos", "docs", ".ci"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", ".check-*"))
    return tmp_path


@pytest.mark.parametrize("run", RUNS)
def test_planted_faults_are_found(run: str, copy: Path) -> None:
    faults = RUNS[run]
    for fault in faults:
        path = copy / "deploy" / fault["file"]
        text = path.read_text()
        assert fault["old"] in text
        path.write_text(text.replace(fault["old"], fault["new"]))
    done = check(faults[0]["check"], copy, *faults[0].get("in", ["overlays/prod"]))
    assert done.returncode == 1, done.stdout + done.stderr
    assert [fault["says"] for fault in faults if fault["says"] not in done.stdout] == [], done.stdout


def test_a_missing_runbook_is_found(copy: Path) -> None:
    (copy / "docs" / "runbooks" / "SearchDown.md").unlink()
    (copy / "docs" / "runbooks" / "EmbedderDown.md").write_text("# EmbedderDown\n\n## Meaning\n")
    found = check("runbooks", copy).stdout
    assert "docs/runbooks/SearchDown.md is not there" in found
    assert "EmbedderDown.md has no section Impact" in found


def test_a_fault_of_the_contract_is_found(copy: Path) -> None:
    path = copy / "protos" / "lookalike" / "search" / "v1" / "search.proto"
    path.write_text(path.read_text().replace("service SearchService {", "service Searching {"))
    assert 'Service name "Searching" should be suffixed' in check("buf", copy).stdout


def test_each_check_has_a_fault_that_it_finds() -> None:
    assert CHECKS.keys() - {fault["check"] for fault in FAULTS} == {"runbooks", "buf"}
