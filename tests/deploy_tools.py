"""The environment of `make check-deploy`, and how tests run checks in it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PYTHON = ROOT / ".venv-deploy" / "bin" / "python"


def need_tools() -> None:
    """Skips the test where the tools are not installed."""
    if not (ROOT / ".venv-deploy" / "installed.stamp").exists():
        pytest.skip("the tools that check deploy/ are not installed: make check-deploy does so, on Debian")


def tool(name: str) -> Path:
    """The path of one of the tools."""
    need_tools()
    folders = (ROOT / ".venv-deploy" / each for each in ("bin", "debian/usr/bin"))
    return next(path for folder in folders if (path := folder / name).exists())


def check(name: str, root: Path, *targets: str) -> subprocess.CompletedProcess[str]:
    """Runs one check on a tree, of which only some targets are rendered if there are any."""
    need_tools()
    command = [PYTHON, "-m", "deploy.checks", name, "--root", root, *(f"--in={target}" for target in targets)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
