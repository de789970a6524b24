"""Runs what the Dockerfiles install, in clean environments, and says how large they are: `make check-images`.

Where there is no container engine this is the proof that an image has what it needs: the files that are copied, the
RUN steps of its stage `build` as they stand, with another folder for /opt/lookalike, and the command it starts.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
_PLACE = "/opt/lookalike"
# What must not get into an image.
_WITHOUT = {
    "embedder-cpu": ("tensorflow", "pymilvus", "pip"),
    "embedder-gpu": ("openvino", "pymilvus", "pip"),
    "search": ("tensorflow", "openvino", "pip"),
    "tools": ("tensorflow", "openvino", "pip"),
}


def prove(image: str, folder: Path) -> int:
    """Installs an image's environment in `folder`; returns its size in bytes.

    Raises:
        SystemExit: a step fails, the command does not start, or something is there that should not be.
    """
    steps = _instructions((_ROOT / "deploy" / "docker" / f"{image}.Dockerfile").read_text())
    source, environment = folder / "src", folder / "environment"
    source.mkdir(parents=True)
    entrypoint: list[str] = []
    for instruction, argument in steps:
        match instruction:
            case "FROM" if not argument.endswith(" AS build"):
                building = False
            case "FROM":
                building = True
            case "COPY" if building:
                *names, target = argument.split()
                for name in names:
                    _copy(_ROOT / name, source / target / Path(name).name if len(names) > 1 else source / target)
            case "RUN" if building:
                # The interpreter of the tests stands for the image's.
                command = argument.replace(_PLACE, str(environment)).replace("python ", f"{_base_python()} ", 1)
                _run(["sh", "-euc", command], source)
            case "ENTRYPOINT":
                entrypoint = json.loads(argument)
    shutil.rmtree(source)  # it must not be needed any more
    _run([str(environment / "bin" / entrypoint[0]), *entrypoint[1:], "--help"], folder)
    python = environment / "bin" / "python"
    for module in _WITHOUT[image]:
        there = subprocess.run([python, "-c", f"import {module}"], capture_output=True, cwd=folder).returncode == 0
        if there:
            sys.exit(f"{image}: {module} is installed")
    return sum(path.lstat().st_size for path in environment.rglob("*") if path.is_file() and not path.is_symlink())


def _instructions(text: str) -> list[tuple[str, str]]:
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    pairs = (line.partition(" ") for line in lines if line.strip() and not line.startswith("#"))
    return [(instruction, argument) for instruction, _, argument in pairs]


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)


def _base_python() -> str:
    """The interpreter that environments are made of: that of an environment makes one that depends on it."""
    return str(Path(sys.base_prefix) / "bin" / "python3")


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with exit code {done.returncode}:\n{done.stdout}{done.stderr}")


def main() -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="check-images", description=__doc__)
    images = ("embedder-cpu", "search", "tools")
    parser.add_argument(
        "images", nargs="*", metavar="IMAGE", help=f"embedder-gpu, or (default: all) {', '.join(images)}"
    )
    for image in parser.parse_args().images or images:
        with tempfile.TemporaryDirectory() as folder:
            size = prove(image, Path(folder))
        print(f"{image}: {size / 1e6:,.0f} MB installed beside Python", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
