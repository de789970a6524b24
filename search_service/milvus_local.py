"""Milvus Lite runs inside this process, on a directory that one process at a time may own."""

from __future__ import annotations

import logging
from pathlib import Path

# pymilvus takes every address with this ending for a local one.
SUFFIX = ".db"
_LOCKS = Path("/proc/locks")

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


def stop(uri: str) -> None:
    """Flush and release the directory. Closing a client does not: the engine behind it lives on with the process."""
    from milvus_lite.server_manager import server_manager_instance

    server_manager_instance.release_server(uri)
