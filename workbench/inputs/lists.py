"""Images whose paths are given one by one: as arguments, or on standard input."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

from workbench.errors import CommandError
from workbench.inputs.found import Found, Input, read_file

_CHUNK_BYTES = 1 << 16


def single(path: Path, *, class_from_folder: bool = True) -> Input:
    """Returns one image file; its id is its name."""
    path = path.resolve()
    return Input(str(path), lambda: iter([_found(path.name, path, class_from_folder)]), countable=True, distinct=True)


def standard_input(*, nul: bool = False, class_from_folder: bool = True) -> Input:
    """Returns the images whose paths come on standard input, one in a line; ids are the paths as they are written.

    Args:
        nul: the paths end with NUL instead, as those of `find -print0`.
    """

    def find() -> Iterator[Found]:
        for name in split(sys.stdin.buffer, b"\0" if nul else b"\n"):
            path = os.fsdecode(name if nul else name.removesuffix(b"\r"))
            if path:
                yield _found(path, Path(path).absolute(), class_from_folder)

    return Input("-", find)


def split(file: BinaryIO, separator: bytes) -> Iterator[bytes]:
    """Yields the parts of a stream, which may be a terminal.

    Raises:
        CommandError: one is too long to be a path.
    """
    rest = b""
    while chunk := file.read1(_CHUNK_BYTES):  # type: ignore[attr-defined]  # what comes, without waiting for more
        *parts, rest = (rest + chunk).split(separator)
        yield from parts
        if len(rest) > _CHUNK_BYTES:
            raise CommandError(
                f"standard input has a line of more than {_CHUNK_BYTES:,} bytes: give one path in a line, or separate "
                "them by NUL and use -0"
            )
    yield rest


def _found(id: str, path: Path, class_from_folder: bool) -> Found:
    attributes = {"class": path.parent.name} if class_from_folder else {}
    return Found(id, str(path), attributes, partial(read_file, path))
