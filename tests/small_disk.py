"""File systems of the tests' own, of any size, that can be full and read-only: Linux's tmpfs, which takes root."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class SmallDisk:
    """A file system mounted at `path`; it takes memory for what is written alone."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def resize(self, size: int) -> None:
        """Makes it of so many bytes; those in use are the least."""
        _mount("-o", f"remount,size={size}", str(self.path))

    def fill(self) -> None:
        """Leaves no byte free."""
        (self.path / "something").write_bytes(b"x")  # of an empty one, "size=0" would make one without a limit
        self.resize(shutil.disk_usage(self.path).used)
        assert shutil.disk_usage(self.path).free == 0

    def read_only(self) -> None:
        """Has nothing be written from now on."""
        _mount("-o", "remount,ro", str(self.path))


@contextmanager
def small_disk(path: Path, size: int) -> Iterator[SmallDisk]:
    """Mounts one for as long as the context lasts; skips the test where that is not allowed."""
    path.mkdir()
    try:
        _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path))
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system can be mounted here, it takes Linux and root: {error}")
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True)
