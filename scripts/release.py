"""Builds a release of the last commit in dist/: sdist, wheel, bills of materials, SHA256SUMS: `make release`.

The same commit gives the same bytes again; a bill is of what is installed on this platform.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path

from scripts.requirements import FOLDER, ROOT, SETS

DIST = ROOT / "dist"
_BIN = Path(sys.executable).parent
_HASHED = ("--require-hashes", "--only-binary", ":all:")


def build(commit: str, out: Path) -> None:
    """Builds sdist and wheel of a commit, whatever else lies in the working tree."""
    seconds = int(_output("git", "show", "--no-patch", "--format=%ct", commit))
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "source.tar"
        _output("git", "archive", "--output", str(archive), commit)
        source = Path(folder) / "source"
        shutil.unpack_archive(archive, source)
        build = ("build", "--build-constraints", FOLDER / "backend.txt", "--require-hashes", "--out-dir", out)
        _uv(*build, source, epoch=seconds)
    (out / ".gitignore").unlink(missing_ok=True)
    for sdist in out.glob("*.tar.gz"):
        _set_times(sdist, seconds)


def bill(name: str, out: Path) -> None:
    """Writes what an installation of the wheel in `out` with requirements/`name`.txt consists of, as CycloneDX."""
    with tempfile.TemporaryDirectory() as folder:
        python = Path(folder) / "bin" / "python"
        _uv("venv", "--python", sys.executable, folder)
        _uv("pip", "install", "--python", python, *_HASHED, "--requirement", FOLDER / f"{name}.txt")
        _uv("pip", "install", "--python", python, "--no-deps", "--no-index", "--find-links", out, "lookalike")
        file = out / f"lookalike-{name}.cdx.json"
        flags = ["--output-reproducible", "--pyproject", ROOT / "pyproject.toml", "--output-file", file]
        subprocess.run([_BIN / "cyclonedx-py", "environment", *flags, python], check=True)
    components = json.loads(file.read_text())["components"]
    # One with a marker, after a semicolon, is for other platforms, perhaps.
    expected = re.findall(r"^(\S+)==\S+ \\$", (FOLDER / f"{name}.txt").read_text(), re.MULTILINE)
    if missing := set(expected) - {re.split("[/@]", each["purl"])[1] for each in components}:
        sys.exit(f"{file} lacks {', '.join(sorted(missing))}")
    unlicensed = ", ".join(each["name"] for each in components if not each.get("licenses")) or "none"
    print(f"{file.name}: {len(components)} packages; those that state no licence: {unlicensed}", flush=True)


def _set_times(sdist: Path, seconds: int) -> None:
    """setuptools gives what it generates the time of day; here all files get that of the commit, in order of names."""
    rewritten = sdist.with_suffix(".new")
    with (
        tarfile.open(sdist) as old,
        rewritten.open("wb") as raw,
        gzip.GzipFile("", "wb", fileobj=raw, mtime=seconds) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as new,
    ):
        for member in sorted(old.getmembers(), key=lambda each: each.name):
            member.mtime, member.uid, member.gid, member.uname, member.gname = seconds, 0, 0, "", ""
            member.pax_headers = {}
            new.addfile(member, old.extractfile(member) if member.isfile() else None)
    rewritten.replace(sdist)


def _sums(files: Iterable[Path]) -> str:
    return "".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in sorted(files))


def _uv(*arguments: object, epoch: int | None = None) -> None:
    dated = {"SOURCE_DATE_EPOCH": str(epoch)} if epoch is not None else {}
    subprocess.run([_BIN / "uv", "--quiet", *map(str, arguments)], check=True, env={**os.environ, **dated})


def _output(*command: str) -> str:
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="release", description=__doc__)
    installed = [name for name in SETS if name != "release"]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: all of {', '.join(installed)}")
    names = parser.parse_args().names or installed
    shutil.rmtree(DIST, ignore_errors=True)
    DIST.mkdir()
    commit = _output("git", "rev-parse", "HEAD")
    print(f"Building {commit[:12]}; changes that are not committed are left out", flush=True)
    build(commit, DIST)
    for name in names:
        bill(name, DIST)
    (DIST / "SHA256SUMS").write_text(_sums(DIST.iterdir()))
    print((DIST / "SHA256SUMS").read_text(), end="")


if __name__ == "__main__":
    main()
