"""SHA256SUMS files, in the format that `sha256sum -c` reads."""

from __future__ import annotations

import hashlib
from pathlib import Path

FILE = "SHA256SUMS"


def sha256(path: Path) -> str:
    """SHA-256 of a file, as hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write(folder: Path) -> None:
    """List every file below `folder`, by relative path, in `folder`/SHA256SUMS."""
    lines = [f"{sha256(folder / name)}  {name}\n" for name in _files(folder)]
    (folder / FILE).write_text("".join(lines), encoding="utf-8")


def problems(folder: Path) -> list[str]:
    """What differs between the files below `folder` and its SHA256SUMS, one phrase each; empty when all is well."""
    try:
        lines = (folder / FILE).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return [f"{FILE} is missing or unreadable"]
    listed = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    present = set(_files(folder))
    found = [f"{name} is missing" for name in sorted(listed.keys() - present)]
    found += [f"{name} is not listed" for name in sorted(present - listed.keys())]
    found += [
        f"{name} has changed" for name in sorted(present & listed.keys()) if sha256(folder / name) != listed[name]
    ]
    return found


def _files(folder: Path) -> list[str]:
    every = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in every if name != FILE)
