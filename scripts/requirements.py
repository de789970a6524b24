"""Writes requirements/: what each image, the client and the release tools install, with hashes: `make constraints`.

The versions are those of constraints.txt. pip takes the files with --require-hashes, and then refuses whatever is not
listed, or is another file.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "requirements"
# File -> the extras of pyproject.toml whose dependencies it lists. The first four are images.
SETS: dict[str, tuple[str, ...]] = {
    "embedder-cpu": ("embedder", "tracing"),
    "embedder-gpu": ("gpu", "tracing"),
    "search": ("search", "tracing"),
    "tools": ("workbench", "loadtest", "bulk", "tracing"),
    "client": (),
    "build": ("build",),
    "release": ("release",),
}
# What builds our own wheel.
BACKEND = "setuptools"
_FLAGS = (
    *("--quiet", "--universal", "--python-version", "3.11", "--generate-hashes", "--constraint", "constraints.txt"),
    *("--no-emit-index-url", "--no-emit-find-links", "--no-annotate", "--no-header"),
)


def main() -> None:
    """Writes all files."""
    FOLDER.mkdir(exist_ok=True)
    for name, extras in SETS.items():
        chosen = [flag for extra in extras for flag in ("--extra", extra)]
        _compile(name, *chosen, "pyproject.toml")
    _compile("backend", "-", source=BACKEND)


def _compile(name: str, *arguments: str, source: str = "") -> None:
    # The one that is installed beside this interpreter.
    uv = Path(sys.executable).with_name("uv")
    command = [uv, "pip", "compile", *_FLAGS, *arguments, "--output-file", FOLDER / f"{name}.txt"]
    subprocess.run(command, cwd=ROOT, check=True, text=True, input=source)


if __name__ == "__main__":
    main()
