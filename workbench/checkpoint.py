"""What an ingest has had acknowledged, in a file, so that one that was interrupted goes on where it was.

The file is a log. Its first line says what it belongs to; each further one is a batch: an outcome, the hashes of the
ids as hex, and the CRC-32 of both. Lines reach the system at once, so they outlive the process, and the disk within
seconds. After a crash the first line that is not whole ends what is believed: what comes after it is sent again, which
does no harm.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self

import numpy as np

from workbench.errors import CommandError
from workbench.id_set import IdSet, id_hash

Outcome = Literal["stored", "unchanged"]

_VERSION = 1
_OUTCOMES: tuple[Outcome, ...] = ("stored", "unchanged")
_HASH = np.dtype("<u8")
_LINE = re.compile(rb"(stored|unchanged) ((?:[0-9a-f]{16})+) ([0-9a-f]{8})\n")


class Acknowledged(Protocol):
    """What has been acknowledged before, by id, and takes note of what is."""

    def outcome(self, id: str) -> Outcome | None:
        """Returns what had become of an image before this run; None if it was not acknowledged."""
        ...

    def add(self, outcome: Outcome, ids: Sequence[str]) -> None:
        """Notes that images have been acknowledged."""
        ...

    def sync(self) -> None:
        """Has what was noted written to the disk."""
        ...


class Checkpoint:
    """The file, open and locked for as long as the context lasts.

    Raises:
        CommandError: on entering, it belongs to another ingest, is not such a file, or another process uses it.
    """

    def __init__(self, path: Path, belongs_to: Mapping[str, object]) -> None:
        """
        Args:
            path: the file, made if it is not there.
            belongs_to: what must be the same for it to be of use: a JSON object.
        """
        self._path = path
        self._belongs_to = {"lookalike_ingest_checkpoint": _VERSION, **belongs_to}
        self._known: dict[Outcome, IdSet] = {}
        self._unsynced = False

    def __enter__(self) -> Self:
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            self._lock()
            self._load()
        except BaseException:
            os.close(self._file)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.sync()
        finally:
            os.close(self._file)

    def __len__(self) -> int:
        """How many images had been acknowledged when the file was opened."""
        return sum(map(len, self._known.values()))

    def outcome(self, id: str) -> Outcome | None:
        """Returns what had become of an image when the file was opened; None if it was not acknowledged."""
        hash = id_hash(id)
        return next((outcome for outcome, known in self._known.items() if hash in known), None)

    def add(self, outcome: Outcome, ids: Sequence[str]) -> None:
        """Notes that images have been acknowledged."""
        if ids:
            content = f"{outcome} {np.array([*map(id_hash, ids)], _HASH).tobytes().hex()} ".encode()
            self._write(content + f"{zlib.crc32(content):08x}\n".encode())
            self._unsynced = True

    def sync(self) -> None:
        """Has what was noted written to the disk."""
        if self._unsynced:
            self._unsynced = False
            with self._writing():
                os.fsync(self._file)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CommandError(
                f"the checkpoint {self._path} is in use by another ingest: give each a file of its own"
            ) from None

    def _load(self) -> None:
        hashes = {outcome: bytearray() for outcome in _OUTCOMES}
        with open(self._file, "rb", closefd=False) as file:
            header = file.readline()
            whole = file.tell() if header.endswith(b"\n") else 0
            if whole:
                self._check(header)
                while (match := _LINE.fullmatch(file.readline())) and _sound(match):
                    outcome: Outcome = "stored" if match[1] == b"stored" else "unchanged"
                    hashes[outcome] += bytes.fromhex(match[2].decode())
                    whole = file.tell()
            elif not json.dumps(self._belongs_to).encode().startswith(header):
                raise self._foreign()
        os.ftruncate(self._file, whole)
        if not whole:
            self._write(json.dumps(self._belongs_to).encode() + b"\n")
            self._unsynced = True
        self._known = {outcome: IdSet(np.frombuffer(of, _HASH)) for outcome, of in hashes.items()}

    def _check(self, header: bytes) -> None:
        try:
            found = json.loads(header)
        except ValueError:
            found = None
        if not isinstance(found, dict) or found.get("lookalike_ingest_checkpoint") != _VERSION:
            raise self._foreign()
        for name, value in self._belongs_to.items():
            if found.get(name) != value:
                raise CommandError(
                    f"the checkpoint {self._path} belongs to another ingest, with {name} {found.get(name)!r} instead "
                    f"of {value!r}: give another file, or delete this one to begin anew"
                )

    def _foreign(self) -> CommandError:
        return CommandError(f"{self._path} is not a checkpoint of an ingest: give another file")

    def _write(self, line: bytes) -> None:
        with self._writing():
            while line:
                line = line[os.write(self._file, line) :]

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CommandError(f"the checkpoint {self._path} cannot be written: {error.strerror}") from error


def _sound(line: re.Match[bytes]) -> bool:
    return zlib.crc32(line.string[: line.start(3)]) == int(line[3], 16)
