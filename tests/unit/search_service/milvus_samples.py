"""Rows to put into a store, and Milvus Lite as a process that can hang and die."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from search_service.records import Hit, Row, StoredRow, VectorSpace
from search_service.store import MilvusStore

# For tests in which Milvus has no part, or has one that servers have not.
on_lite = pytest.mark.parametrize("backend", ["lite"], indirect=True)

DIMENSION = 16
SPACE = VectorSpace("5f3a" * 16, DIMENSION)


def within(seconds: float = 20.0) -> float:
    """A deadline."""
    return time.monotonic() + seconds


def unit_vectors(count: int, seed: int = 0) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).standard_normal((count, DIMENSION)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def make_rows(count: int, seed: int = 0) -> list[Row]:
    return [
        Row(
            f"img/{i:05d}.jpg", vector, {"species": ["cat", "dog", "emu"][i % 3], "number": i}, f"/photos/{i}", "0" * 64
        )
        for i, vector in enumerate(unit_vectors(count, seed))
    ]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class FreshStore(MilvusStore):
    """A store that sees all writes: on a server others may miss those of the last seconds unless they ask."""

    async def get(self, *args: Any, **options: Any) -> dict[str, StoredRow]:
        return await super().get(*args, **{"read_your_writes": True, **options})

    async def count(self, *args: Any, **options: Any) -> int:
        return await super().count(*args, **{"read_your_writes": True, **options})

    async def search(self, *args: Any, **options: Any) -> list[list[Hit]]:
        return await super().search(*args, **{"read_your_writes": True, **options})


@dataclass(frozen=True)
class Place:
    """Where the stores of a test keep their rows: a directory of Milvus Lite, or a database of a server."""

    uri: str
    database: str = ""

    def store(self, **options: float) -> FreshStore:
        return FreshStore(self.uri, db_name=self.database, **options)


class MilvusProcess:
    """Milvus Lite as a server in a process of its own, which can be made to hang and to die."""

    def __init__(self, data: Path, port: int) -> None:
        self.port = port
        self.uri = f"http://127.0.0.1:{self.port}"
        command = ["server", "--data-dir", str(data), "--host", "127.0.0.1", "--port", str(self.port)]
        self._command = [sys.executable, "-m", "milvus_lite", *command]
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._wait_until_it_listens()

    def hang(self) -> None:
        os.kill(self._process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.kill(self._process.pid, signal.SIGCONT)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def _wait_until_it_listens(self) -> None:
        end = time.monotonic() + 30
        while time.monotonic() < end:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise TimeoutError("Milvus Lite did not start")
