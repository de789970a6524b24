"""An image that has been found, whatever it was found in."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from lookalike.types import Attributes


class Unreadable(Exception):
    """An image cannot be had. The message says why."""


@dataclass(frozen=True, slots=True)
class Found:
    """An image, not read yet.

    Attributes:
        id: its name, the same from run to run.
        source: where it can be read again; for one in a container, the container's path, "!/", and its name there.
        attributes: of its row.
        read: returns its bytes, as many as are asked for at most; raises Unreadable.
        at_once: it can be read only until the next one is asked for, or is in memory already.
        size: its bytes, where that is known without a look at it.
    """

    id: str
    source: str
    attributes: Attributes
    read: Callable[[int], bytes] = field(repr=False)
    at_once: bool = False
    size: int | None = None


@dataclass(frozen=True, slots=True)
class Input:
    """Something with images in it, which has been looked at and can be read.

    Attributes:
        name: what it was called by, made absolute.
        find: finds all of its images, each time anew.
        countable: finding costs little beside reading, so that the images can be counted ahead.
        distinct: no id comes twice.
    """

    name: str
    find: Callable[[], Iterator[Found]]
    countable: bool = False
    distinct: bool = False


def unreadable(id: str, source: str, reason: str) -> Found:
    """Returns what stands for an image, or a part of an input, that cannot be read."""
    return Found(id, source, {}, partial(_refuse, reason), at_once=True)


def read_file(path: Path, most: int) -> bytes:
    """Returns the first bytes of a file, `most` at most.

    Raises:
        Unreadable: there is none, or it is not a regular file.
    """
    try:
        # A pipe that nobody writes to would keep us waiting.
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(file, "rb", buffering=0) as opened:
            about = os.fstat(file)
            if not stat.S_ISREG(about.st_mode):
                raise Unreadable("is not a file")
            # Asked for `most` alone, a buffer of that size would be made.
            return opened.read(min(most, about.st_size + 1)) or b""
    except OSError as error:
        raise Unreadable(f"cannot be read: {error.strerror or error}") from None
    except ValueError as error:  # a NUL in the path
        raise Unreadable(f"cannot be read: {error}") from None


def _refuse(reason: str, most: int) -> bytes:
    raise Unreadable(reason)
