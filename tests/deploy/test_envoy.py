"""The composed Envoy, as it is configured, before three servers on loopback: calls spread, and none fails."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from deploy_tools import ROOT, tool

from lookalike.embedder.v1 import embedder_pb2, embedder_pb2_grpc

SERVER = ROOT / "tests" / "unit" / "service_kit" / "small_server.py"
ANY_PORT = "127.0.0.1:0"
WAIT = 60.0  # seconds


@dataclass
class Server:
    """A server that any of ours could be: they share its life cycle, health and drain."""

    process: subprocess.Popen[bytes]
    addresses: dict[str, str]

    def calls(self) -> int:
        """How many calls it has been sent."""
        page = urllib.request.urlopen(f"http://{self.addresses['metrics']}/metrics", timeout=10).read().decode()
        found = re.search(r'^grpc_server_started_total\{grpc_method="Embed",.*\} (\S+)$', page, re.MULTILINE)
        return int(float(found[1])) if found else 0


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[list[Server]]:
    """Three of them."""
    with ExitStack() as stack:
        started = []
        for number in range(3):
            file = tmp_path / f"{number}.json"
            flags = ["--address", ANY_PORT, "--metrics-address", ANY_PORT, "--health-address", ANY_PORT]
            process = subprocess.Popen(
                [sys.executable, SERVER, *flags, "--address-file", file],
                stderr=subprocess.DEVNULL,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
            stack.callback(_end, process)
            started.append((process, file))
        yield [Server(process, json.loads(_await(file.exists) and file.read_text())) for process, file in started]


@pytest.fixture
def proxy(servers: list[Server], tmp_path: Path) -> Iterator[str]:
    """Envoy before them; its address."""
    text = (ROOT / "deploy" / "compose" / "envoy.yaml").read_text()
    one = re.search(
        r"              - endpoint:\n(?:                .*\n)+", text[text.rindex("    - name: embedder\n") :]
    )
    assert one is not None
    endpoints = ""
    for server in servers:
        (host, port), (_, health) = (server.addresses[kind].rsplit(":", 1) for kind in ("grpc", "health"))
        each = one[0].replace("address: embedder", f"address: {host}")
        endpoints += each.replace("port_value: 50051", f"port_value: {port}").replace("50061", health)
    text = text.replace(one[0], endpoints)
    # Any free ports, which Envoy writes down.
    text = re.sub(
        r"(address: (?:0\.0\.0\.0|127\.0\.0\.1)\n          port_value: )(?:50051|50052|9103)\n", r"\g<1>0\n", text
    )
    text = re.sub(r"(admin:\n(?: .*\n)*?      port_value: )9901", r"\g<1>0", text)
    (tmp_path / "envoy.yaml").write_text(text)
    file = tmp_path / "admin"
    flags = ["--config-path", tmp_path / "envoy.yaml", "--admin-address-path", file, "--use-dynamic-base-id"]
    with ExitStack() as stack:
        process = subprocess.Popen([tool("envoy"), *flags], stderr=subprocess.DEVNULL, cwd=tmp_path)
        stack.callback(_end, process)
        _await(lambda: file.exists() and file.read_text())
        admin = file.read_text()

        _await(lambda: _serving(admin) == len(servers))
        listeners = dict(re.findall(r"^(\w+)::(\S+)$", _admin(admin, "/listeners"), re.MULTILINE))
        yield listeners["embedder"].replace("0.0.0.0", "127.0.0.1")


class Load:
    """Calls, one after the other, by several callers over one connection, until it is stopped."""

    def __init__(self, target: str) -> None:
        self.codes: list[str] = []
        self._stopped = threading.Event()
        self._channel = grpc.insecure_channel(target)
        stub = embedder_pb2_grpc.EmbedderServiceStub(self._channel)

        def call() -> None:
            while not self._stopped.is_set():
                try:
                    stub.Embed(embedder_pb2.EmbedRequest(image=b"image"), timeout=20)
                    self.codes.append("OK")
                except grpc.RpcError as error:
                    self.codes.append(error.code().name)

        self._callers = [threading.Thread(target=call) for _ in range(4)]

    def __enter__(self) -> Load:
        for caller in self._callers:
            caller.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for caller in self._callers:
            caller.join()
        self._channel.close()

    def more(self, calls: int) -> None:
        """Waits for so many more calls to end."""
        goal = len(self.codes) + calls
        _await(lambda: len(self.codes) >= goal)


def test_calls_of_one_connection_reach_every_server(servers: list[Server], proxy: str) -> None:
    with Load(proxy) as load:
        _await(lambda: all(server.calls() for server in servers))
        before = [server.calls() for server in servers]
        load.more(600)
        got = [server.calls() - earlier for server, earlier in zip(servers, before, strict=True)]
    assert set(load.codes) == {"OK"}
    assert min(got) > 0.15 * sum(got)


def test_no_call_fails_when_a_server_is_told_to_end(servers: list[Server], proxy: str) -> None:
    with Load(proxy) as load:
        _await(lambda: all(server.calls() for server in servers))
        servers[0].process.send_signal(signal.SIGTERM)
        assert servers[0].process.wait(WAIT) == 0
        load.more(200)
    assert set(load.codes) == {"OK"}


def test_no_call_fails_when_a_server_is_killed(servers: list[Server], proxy: str) -> None:
    with Load(proxy) as load:
        _await(lambda: all(server.calls() for server in servers))
        servers[0].process.kill()
        servers[0].process.wait(WAIT)
        load.more(300)
    assert set(load.codes) == {"OK"}


def _serving(admin: str) -> int:
    """How many servers Envoy sends calls to."""
    return int(_admin(admin, "/stats?filter=^cluster.embedder.membership_healthy$").rpartition(" ")[2])


def _admin(address: str, path: str) -> str:
    return str(urllib.request.urlopen(f"http://{address}{path}", timeout=10).read().decode())


def _await(condition: Callable[[], object]) -> bool:
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return True


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
