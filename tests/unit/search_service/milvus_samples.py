"""Rows to put into a store, and Milvus Lite as a process that can hang and die."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from search_service.records import Row, VectorSpace

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


class MilvusProcess:
    """Milvus Lite as a server in a process of its own, which can be made to hang and to die."""

    def __init__(self, data: Path, port: int) -> None:
        self.port = port
        self.uri = f"http://127.0.0.1:{self.port}"
        command = ["server", "--data-dir", str(data), "--host", "127.0.0.1", "--port", str(self.port)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "milvus_lite", *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
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
