"""requirements/ and constraints.txt agree with each other and with pyproject.toml, and images install nothing else."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from scripts import audit
from scripts.requirements import FOLDER, ROOT, SETS

IMAGES = ("embedder-cpu", "embedder-gpu", "search", "tools")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins(text: str) -> set[tuple[str, str]]:
    """The (name, version) of each pin, with however many hashes behind it."""
    found = re.findall(r"^(\S+)==(\S+)", text, re.MULTILINE)
    assert found
    return set(found)


def direct(extras: tuple[str, ...]) -> Iterator[str]:
    """The names of what these extras and the base ask for; extras that name extras are followed."""
    wanted = list(PROJECT["dependencies"])
    for extra in extras:
        wanted += PROJECT["optional-dependencies"][extra]
    for requirement in map(Requirement, wanted):
        if requirement.name == PROJECT["name"]:
            yield from direct(tuple(requirement.extras))
        else:
            yield re.sub(r"[-_.]+", "-", requirement.name).lower()


@pytest.mark.parametrize("name", [*SETS, "backend"])
def test_requirements_pin_what_the_constraints_pin_each_with_a_hash(name: str) -> None:
    text = (FOLDER / f"{name}.txt").read_text()
    assert pins(text) <= pins((ROOT / "constraints.txt").read_text()), "run `make constraints`"
    entries = re.split(r"\n(?! )", text.strip())
    assert len(entries) >= len(pins(text))
    assert [entry for entry in entries if "--hash=sha256:" not in entry] == []
    assert "://" not in text


@pytest.mark.parametrize(("name", "extras"), SETS.items())
def test_requirements_have_all_that_the_project_asks_for(name: str, extras: tuple[str, ...]) -> None:
    pinned = {each for each, _ in pins((FOLDER / f"{name}.txt").read_text())}
    assert set(direct(extras)) - pinned == set(), "run `make constraints`"


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_installs_only_files_whose_hashes_are_listed(image: str) -> None:
    text = re.sub(r"\\\n\s*", "", (ROOT / "deploy" / "docker" / f"{image}.Dockerfile").read_text())
    dependencies, backend, own = re.findall(r"^RUN .*\bpip\b.* install .*$", text, re.MULTILINE)
    hashed = "--only-binary :all: --require-hashes --requirement requirements"
    assert dependencies.endswith(f"{hashed}/{image}.txt")
    assert f"{hashed}/backend.txt" in backend
    assert own.endswith("--no-deps --no-index --no-build-isolation .")


def test_the_wheel_has_the_stubs_and_their_types_and_no_tests(tmp_path: Path) -> None:
    # A copy, because setuptools writes beside what it reads.
    source = tmp_path / "source"
    rooms = {"lookalike", "service_kit", "embedder_service", "search_service", "workbench"}
    for name in (*rooms, "tests", "benchmarks"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    flags = ["--no-deps", "--no-index", "--no-build-isolation", "--quiet", "--wheel-dir", tmp_path]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *flags, source], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "lookalike/py.typed",
        "lookalike/search/v1/search_pb2.pyi",
        "lookalike/embedder/v1/embedder_pb2.pyi",
    } <= names
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == rooms


def test_an_audit_that_looked_nothing_up_does_not_say_that_all_is_well() -> None:
    text, code = audit.report([{"name": "numpy", "skip_reason": "not found"}])
    assert code == 0
    assert text == "numpy: not audited, not found\nSKIPPED: nothing was audited"


def test_an_audit_names_each_vulnerability_and_what_was_left_out() -> None:
    found = {"id": "PYSEC-1", "fix_versions": ["2.0"]}
    text, code = audit.report(
        [
            {"name": "numpy", "version": "1.0", "vulns": [found, {"id": "PYSEC-2", "fix_versions": []}]},
            {"name": "grpcio", "version": "1.0", "vulns": []},
            {"name": "pillow", "skip_reason": "not found"},
        ]
    )
    assert code == 1
    assert text.splitlines() == [
        "numpy 1.0: PYSEC-1, fixed in 2.0",
        "numpy 1.0: PYSEC-2, fixed in no version",
        "pillow: not audited, not found",
        "2 of 3 packages audited, 2 known vulnerabilities",
    ]
