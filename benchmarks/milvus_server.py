"""A real Milvus server on loopback, from the PyPI package `milvus`, which carries the binary.

`make test` unpacks it into .venv-milvus. Here it runs without the package's own launcher, which looks for free ports
and lets go of them again, has its etcd on fixed ones, and does not pass signals on.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import ExitStack, closing
from pathlib import Path

from pymilvus import MilvusClient

_INSTALLED = Path(__file__).parents[1] / ".venv-milvus" / "server"
_COORDINATORS = ("ROOTCOORD", "QUERYCOORD", "DATACOORD")
_NODES = ("PROXY", "QUERYNODE", "DATANODE", "INDEXNODE")
_START_SECONDS = 120.0
_LOG_TAIL_BYTES = 20_000
_ETCD = """\
name: default
data-dir: {data}
listen-client-urls: http://{client}
advertise-client-urls: http://{client}
listen-peer-urls: http://{peer}
initial-advertise-peer-urls: http://{peer}
initial-cluster: default=http://{peer}
"""


def why_not() -> str | None:
    """Why there is no server here, and how to get one; None where there is one."""
    if (_INSTALLED / "bin" / "milvus").exists():
        return None
    return "no Milvus server is installed: `make milvus` does so (Linux on x86-64)"


def free_ports(count: int) -> list[int]:
    """Ports of loopback that are free, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


class MilvusServer:
    """A server whose data and log are in `folder`, and which can be made to hang and to die, and started again.

    After a kill the started server waits `session_ttl` seconds for the one before it; one that hangs for longer than
    that has lost its place, and does not find back. `configuration` has keys of milvus.yaml in the form of environment
    variables.
    """

    def __init__(self, folder: Path, *, session_ttl: int = 10, configuration: Mapping[str, str] | None = None) -> None:
        self.log = folder / "milvus.log"
        self._folder = folder
        proxy, self._health, etcd, peer, internal, *others = free_ports(5 + len(_COORDINATORS) + len(_NODES))
        self.uri = f"http://127.0.0.1:{proxy}"
        etcd_config = folder / "etcd.yaml"
        etcd_config.write_text(_ETCD.format(data=folder / "etcd", client=f"127.0.0.1:{etcd}", peer=f"127.0.0.1:{peer}"))
        # Milvus reads each key of its configuration from the environment, too.
        self._environment = {
            **os.environ,
            "LD_LIBRARY_PATH": str(_INSTALLED / "bin"),
            "MILVUSCONF": str(_INSTALLED / "configs"),
            "DEPLOY_MODE": "STANDALONE",
            "COMMON_SESSION_TTL": str(session_ttl),  # 30 by default
            "METRICS_PORT": str(self._health),
            "MILVUS_RUN_DIR": str(folder / "run"),
            "ETCD_CONFIG_PATH": str(etcd_config),
            "ETCD_ENDPOINTS": f"127.0.0.1:{etcd}",
            "ETCD_DATA_DIR": str(folder / "etcd"),
            "ETCD_LOG_PATH": str(folder / "etcd.log"),
            "LOCALSTORAGE_PATH": str(folder / "data"),
            "ROCKSMQ_PATH": str(folder / "rocksmq"),
            "LOG_FILE_ROOTPATH": str(folder / "logs"),
            **{f"{role}_IP": "127.0.0.1" for role in _COORDINATORS + _NODES},
            **{f"{role}_PORT": str(port) for role, port in zip(_COORDINATORS + _NODES, others, strict=False)},
            "PROXY_PORT": str(proxy),
            "PROXY_INTERNALPORT": str(internal),
            **(configuration or {}),
        }
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603
                [_INSTALLED / "bin" / "milvus", "run", "standalone"],
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            self._wait_until_healthy()
        except BaseException:
            self.kill()
            raise

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def hang(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def recover(self) -> None:
        """Whatever was done to it, it runs again."""
        self.go_on()
        if self._process.poll() is not None:
            self.start()

    def end_of_log(self) -> str:
        """What it wrote last."""
        with self.log.open("rb") as log:
            log.seek(max(0, self.log.stat().st_size - _LOG_TAIL_BYTES))
            return log.read().decode(errors="replace")

    def _wait_until_healthy(self) -> None:
        end = time.monotonic() + _START_SECONDS
        while time.monotonic() < end:
            if self._process.poll() is not None:
                raise RuntimeError(f"Milvus ended with {self._process.returncode}:\n{self.end_of_log()}")
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self._health}/healthz", timeout=5) as page:
                    if page.read() == b"OK":
                        return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.1)
        raise TimeoutError(f"Milvus did not start within {_START_SECONDS:.0f} s:\n{self.end_of_log()}")


class Database:
    """A database of its own on a server, so that whoever uses it is alone there; gone after the context."""

    def __init__(self, server: MilvusServer, name: str) -> None:
        self.name = name
        self._uri = server.uri

    def __enter__(self) -> Database:
        with closing(MilvusClient(self._uri, timeout=30, dedicated=True)) as client:
            client.create_database(self.name)
        return self

    def __exit__(self, *_: object) -> None:
        with closing(MilvusClient(self._uri, db_name=self.name, timeout=30, dedicated=True)) as client:
            # A database must be empty.
            for collection in client.list_collections():
                client.drop_collection(collection)
            client.drop_database(self.name)
