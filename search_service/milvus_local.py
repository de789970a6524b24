"""Milvus Lite runs inside this process, on a directory that one process at a time may own."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from pymilvus import MilvusException

from service_kit.errors import ResourceExhausted

# pymilvus takes every address with this ending for a local one.
SUFFIX = ".db"
_LOCKS = Path("/proc/locks")
# What stays free. A flush writes what Milvus Lite holds in memory, 128 MiB at most, and the log grows meanwhile.
ROOM_BYTES = 256 << 20
_UNEXPECTED = 1  # its code for an exception of which it knows nothing
_STOP_SECONDS = 2.0

# pymilvus asks for what Milvus Lite does not have and then does without. That is no error, and no stack trace worth.
logging.getLogger("grpc._server").addFilter(lambda record: "Method not implemented!" not in record.getMessage())


def is_local(uri: str) -> bool:
    """Whether the address means Milvus Lite in this process, and not a server."""
    return uri.endswith(SUFFIX)


def holder(uri: str) -> int | None:
    """The process id of whoever holds the directory, or None where the system does not tell (it is Linux that does)."""
    lock = Path(uri) / "LOCK"
    if not lock.exists() or not _LOCKS.exists():
        return None
    inode = str(lock.stat().st_ino)
    for line in _LOCKS.read_text().splitlines():
        # "1: FLOCK  ADVISORY  WRITE 1234 fd:00:5678 0 EOF"
        fields = line.split()
        if len(fields) > 5 and fields[1] == "FLOCK" and fields[5].rpartition(":")[2] == inode:
            return int(fields[4])
    return None


def require_room(uri: str) -> None:
    """Raises ResourceExhausted unless the disk has room for a write and the flush that it may set off."""
    disk = os.statvfs(uri)
    free = disk.f_bavail * disk.f_frsize
    if free < ROOM_BYTES:
        raise ResourceExhausted(
            f"the disk of {uri} has {free >> 20} MiB left, and writes leave {ROOM_BYTES >> 20} MiB free: make room, or "
            "delete a collection; searches and deletions go on"
        )


def has_lost_track(error: MilvusException, operation: str) -> bool:
    """Whether the engine may no longer have in memory what it acknowledged, after a write or a flush that failed.

    A flush that fails, as on a full disk, forgets the rows in memory, and the next one deletes the log that still has
    them; behind a write that was cut off, nothing in the log is read again. No caller can cause either: what they send
    is checked before, but for the filters of deletions.
    """
    if error.code != _UNEXPECTED:
        return False
    return operation in ("upsert", "flush") or (operation == "delete" and str(error.message).startswith("[Errno"))


def stop(uri: str, *, flush: bool = True) -> None:
    """Flush and release the directory. Closing a client does not: the engine behind it lives on with the process.

    Without `flush` nothing is written any more, and the directory is released by the end of the process.
    """
    from milvus_lite.server_manager import server_manager_instance

    if flush:
        server_manager_instance.release_server(uri)
    else:
        # It would flush at the end of the process.
        server, *_ = server_manager_instance._servers.pop(os.path.abspath(uri))
        server.stop(grace=0).wait(_STOP_SECONDS)
