"""Generates the stubs in lookalike/ from protos/; with --check, lints the contract and compares the stubs instead."""

from __future__ import annotations

import filecmp
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
# google/rpc/status.proto stands where googleapis-common-protos is installed.
PROTOC = (sys.executable, "-m", "grpc_tools.protoc", "-I", "protos", "-I", sysconfig.get_path("purelib"))
FILES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "protos" / "lookalike").rglob("*.proto"))


def generate(out: Path) -> None:
    """Writes the stubs of all files of the contract below `out`."""
    plugins = (f"--plugin={name}={BIN / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc"))
    options = (f"--{kind}_out={out}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc"))
    done = subprocess.run([*PROTOC, *plugins, *options, *FILES], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)


def check() -> int:
    """Returns 0 if the contract is lint-clean and the stubs are what it generates, else 1, saying what is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "contract.binpb"
        describe = ("--include_imports", "--include_source_info", f"--descriptor_set_out={image}")
        subprocess.run([*PROTOC, *describe, *FILES], check=True, cwd=ROOT)
        if subprocess.run([BIN / "buf", "lint", image, "--config", "protos/buf.yaml"], cwd=ROOT).returncode:
            return 1
        generate(Path(folder))
        fresh = list(Path(folder).rglob("*_pb2*.py*"))
        stale = [path for path in fresh if not _same(path, ROOT / path.relative_to(folder))]
        for path in stale:
            print(f"{path.relative_to(folder)} is not what protos/ generates: run `make protos`")
        return 1 if stale else 0


def _same(one: Path, other: Path) -> bool:
    return other.exists() and filecmp.cmp(one, other, shallow=False)


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        sys.exit(check())
    generate(ROOT)
