"""Images in tar files, which are read from the first byte to the last and never unpacked."""

from __future__ import annotations

import lzma
import posixpath
import sys
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Self, cast

from workbench.errors import CommandError
from workbench.images import SUFFIXES
from workbench.inputs.found import Found, Input, Unreadable, unreadable

SUFFIXES_OF_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
_BUFFER_BYTES = 1 << 18
# What tarfile reads whole into memory beside a member: long names and extended headers.
_MAX_EXTRA_BYTES = 1 << 20
_EXTRA_TYPES = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_BROKEN = (tarfile.TarError, EOFError, OSError, lzma.LZMAError, zlib.error, ValueError, OverflowError)


class _Member(tarfile.TarInfo):
    """A member whose header must be sound: tarfile itself takes one that is not for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            member = super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the end, as it should be
            raise
        except tarfile.HeaderError as error:
            reason = "it ends without an end marker" if not buf else str(error)
            raise tarfile.ReadError(reason) from None
        if member.type in _EXTRA_TYPES and member.size > _MAX_EXTRA_BYTES:
            raise tarfile.ReadError(f"a header has {member.size:,} bytes, more than {_MAX_EXTRA_BYTES:,}")
        return member


def archive(path: Path, *, class_from_folder: bool = True) -> Input:
    """Returns the images of a tar file; ids are the names in it. Members that are hidden are left out.

    Raises:
        CommandError: it is not a tar file that can be read.
    """
    path = path.resolve()
    if path.name.endswith(".zst") and sys.version_info < (3, 14):
        raise CommandError(f"{path} needs Python 3.14 or newer to be read: decompress it first, with zstd -d")
    plain = path.suffix == ".tar"
    try:
        _open(path, plain=plain).close()
    except _BROKEN as error:
        raise CommandError(f"{path} cannot be read as a tar file: {error}") from error

    def find() -> Iterator[Found]:
        count = 0
        try:
            with closing(_open(path, plain=plain)) as tar:
                while member := tar.next():
                    # It keeps all of them otherwise.
                    cast(Any, tar).members.clear()
                    name = posixpath.normpath(member.name).lstrip("/")
                    if member.isdir() or not _is_image(name):
                        continue
                    count += 1
                    yield _found(path, tar, member, name, class_from_folder)
        except _BROKEN as error:
            yield unreadable(str(path), str(path), f"the archive is broken after {count:,} images: {error}")

    return Input(str(path), find, countable=plain)


def _open(path: Path, *, plain: bool) -> tarfile.TarFile:
    # A plain file can skip what is not wanted.
    return tarfile.open(path, "r:" if plain else "r|*", bufsize=_BUFFER_BYTES, tarinfo=_Member)


def _found(path: Path, tar: tarfile.TarFile, member: tarfile.TarInfo, name: str, class_from_folder: bool) -> Found:
    source = f"{path}!/{name}"
    if not member.isreg():
        kind = "a link" if member.islnk() or member.issym() else "not a file"
        return unreadable(name, source, f"is {kind} in the archive")
    label = posixpath.basename(posixpath.dirname(name)) or path.name.partition(".")[0]
    attributes = {"class": label} if class_from_folder else {}
    return Found(name, source, attributes, partial(_read, tar, member), at_once=True, size=member.size)


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo, most: int) -> bytes:
    try:
        data = tar.extractfile(member)
        if data is None:
            raise Unreadable("is not a file in the archive")
        image = data.read(min(most, member.size))
    except _BROKEN as error:
        raise Unreadable(f"cannot be read from the archive: {error}") from None
    if len(image) < min(most, member.size):
        raise Unreadable(f"the archive ends after {len(image):,} of its {member.size:,} bytes")
    return image


def _is_image(name: str) -> bool:
    parts = name.split("/")
    hidden = any(part.startswith(".") and part != ".." for part in parts)
    return not hidden and posixpath.splitext(name)[1].lower() in SUFFIXES
