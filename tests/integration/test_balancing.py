"""Three embedders on loopback, behind the composed Envoy and behind the client's round_robin: calls spread over them,
and none fails when one of them is told to end, or is killed."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import cycle
from pathlib import Path

import pytest
from deploy_tools import ROOT, tool
from waiting import SECONDS, until

from lookalike import EmbedderClient, LookalikeError
from workbench.demo_images import DemoImages

ANY_PORT = "127.0.0.1:0"
CALLERS = 6


class Embedder:
    """An embedder as a process, with the drain delay that it has by default."""

    def __init__(self, bundle: Path, file: Path) -> None:
        flags = ["--address", ANY_PORT, "--metrics-address", ANY_PORT, "--health-address", ANY_PORT]
        # Three of them share a small machine.
        flags += ["--streams", "1", "--decode-threads", "1"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "embedder_service.main", "--bundle", bundle, *flags, "--address-file", file],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._file = file

    def await_ready(self) -> None:
        def ready() -> bool:
            assert self.process.poll() is None, "the embedder ended"
            return self._file.exists()

        until(ready)
        self.addresses = json.loads(self._file.read_text())

    def calls(self) -> int:
        """How many calls it has been sent."""
        page = urllib.request.urlopen(f"http://{self.addresses['metrics']}/metrics", timeout=SECONDS).read().decode()
        found = re.search(r'^grpc_server_started_total\{grpc_method="Embed",.*\} (\S+)$', page, re.MULTILINE)
        return int(float(found[1])) if found else 0


@pytest.fixture(scope="module")
def pool() -> Iterator[list[Embedder]]:
    """Embedders that go on from test to test."""
    pool: list[Embedder] = []
    yield pool
    for embedder in pool:
        _end(embedder.process)


@pytest.fixture
def embedders(pool: list[Embedder], bundle: Path, tmp_path: Path) -> list[Embedder]:
    """Three of them; in the place of one that the test before has ended there is a new one."""
    pool[:] = [embedder for embedder in pool if embedder.process.poll() is None]
    pool += [Embedder(bundle, tmp_path / f"{number}.json") for number in range(len(pool), 3)]
    for embedder in pool:
        embedder.await_ready()
    return list(pool)


@pytest.fixture(params=["envoy", "round_robin"])
def client(request: pytest.FixtureRequest, embedders: list[Embedder], tmp_path: Path) -> Iterator[EmbedderClient]:
    """A client whose calls go to all of them: Envoy repeats what fails, or else the client does."""
    if request.param == "envoy":
        with _envoy(embedders, tmp_path) as address, EmbedderClient(address, retry=False) as client:
            yield client
    else:
        with EmbedderClient(_all(embedders)) as client:
            yield client


@pytest.fixture(scope="module")
def images(demo_images: DemoImages) -> list[bytes]:
    """Some that differ: equal ones at the same time are computed once."""
    return [path.read_bytes() for path in sorted(demo_images.copies.rglob("*.*"))[:100]]


class Load:
    """Calls, one after the other, by several callers over one connection, until it is stopped."""

    def __init__(self, client: EmbedderClient, images: list[bytes]) -> None:
        self.codes: list[str] = []
        self._stopped = threading.Event()
        self._begun = [time.monotonic()] * CALLERS

        def call(number: int) -> None:
            for image in cycle(images[number::CALLERS]):
                if self._stopped.is_set():
                    return
                self._begun[number] = time.monotonic()
                try:
                    client.embed(image)
                    self.codes.append("OK")
                except LookalikeError as error:
                    self.codes.append(error.code.name)

        self._callers = [threading.Thread(target=call, args=[number]) for number in range(CALLERS)]

    def __enter__(self) -> Load:
        for caller in self._callers:
            caller.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for caller in self._callers:
            caller.join()
        print(Counter(self.codes))

    def more(self, calls: int) -> None:
        """Waits for so many more calls to end."""
        goal = len(self.codes) + calls
        until(lambda: len(self.codes) >= goal)

    def waits(self) -> list[float]:
        """For how many seconds each caller has waited for its answer."""
        return [time.monotonic() - begun for begun in self._begun]


def test_calls_of_one_connection_reach_every_embedder(
    embedders: list[Embedder], client: EmbedderClient, images: list[bytes]
) -> None:
    earlier = [embedder.calls() for embedder in embedders]

    def got() -> list[int]:
        return [embedder.calls() - before for embedder, before in zip(embedders, earlier, strict=True)]

    def fair() -> bool:
        calls = got()
        return min(calls) > 0.2 * sum(calls)

    with Load(client, images) as load:
        load.more(200)
        # Envoy sends less to one that is slow, as any may be for a while on a machine with other work.
        until(fair)
    print(got())
    assert set(load.codes) == {"OK"}
    assert sum(got()) == len(load.codes)


def test_no_call_fails_when_an_embedder_is_told_to_end(
    embedders: list[Embedder], client: EmbedderClient, images: list[bytes]
) -> None:
    earlier = embedders[0].calls()
    with Load(client, images) as load:
        until(lambda: embedders[0].calls() > earlier)
        embedders[0].process.send_signal(signal.SIGTERM)
        assert embedders[0].process.wait(SECONDS) == 0
        load.more(50)
    assert set(load.codes) == {"OK"}


def test_no_call_fails_when_an_embedder_is_killed(
    embedders: list[Embedder], client: EmbedderClient, images: list[bytes]
) -> None:
    earlier = embedders[0].calls()
    with Load(client, images) as load:
        until(lambda: embedders[0].calls() > earlier)
        # Stopped first, so that it dies with calls in progress.
        embedders[0].process.send_signal(signal.SIGSTOP)
        until(lambda: max(load.waits()) > 0.5)
        _end(embedders[0].process)
        load.more(100)
    assert set(load.codes) == {"OK"}


def test_calls_that_nobody_repeats_fail_when_their_embedder_is_killed(
    embedders: list[Embedder], images: list[bytes]
) -> None:
    with EmbedderClient(_all(embedders), retry=False) as client, Load(client, images) as load:
        load.more(30)
        embedders[0].process.send_signal(signal.SIGSTOP)
        until(lambda: min(load.waits()) > 1.0)
        _end(embedders[0].process)
        load.more(100)
    assert Counter(load.codes)["UNAVAILABLE"] >= CALLERS


def _all(embedders: list[Embedder]) -> str:
    return "ipv4:" + ",".join(embedder.addresses["grpc"] for embedder in embedders)


@contextmanager
def _envoy(embedders: list[Embedder], folder: Path) -> Iterator[str]:
    """Runs the composed Envoy, as it is configured, before embedders; yields its address."""
    text = (ROOT / "deploy" / "compose" / "envoy.yaml").read_text()
    one = re.search(
        r"              - endpoint:\n(?:                .*\n)+", text[text.rindex("    - name: embedder\n") :]
    )
    assert one is not None
    endpoints = ""
    for embedder in embedders:
        (host, port), (_, health) = (embedder.addresses[kind].rsplit(":", 1) for kind in ("grpc", "health"))
        each = one[0].replace("address: embedder", f"address: {host}")
        endpoints += each.replace("port_value: 50051", f"port_value: {port}").replace("50061", health)
    text = text.replace(one[0], endpoints)
    # Any free ports, which Envoy writes down.
    text = re.sub(
        r"(address: (?:0\.0\.0\.0|127\.0\.0\.1)\n          port_value: )(?:50051|50052|9103)\n", r"\g<1>0\n", text
    )
    text = re.sub(r"(admin:\n(?: .*\n)*?      port_value: )9901", r"\g<1>0", text)
    (folder / "envoy.yaml").write_text(text)
    file = folder / "admin"
    flags = ["--config-path", folder / "envoy.yaml", "--admin-address-path", file, "--use-dynamic-base-id"]
    with ExitStack() as stack:
        process = subprocess.Popen([tool("envoy"), *flags], stderr=subprocess.DEVNULL, cwd=folder)
        stack.callback(_end, process)
        until(lambda: file.exists() and file.read_text())
        admin = file.read_text()
        until(lambda: _serving(admin) == len(embedders))
        listeners = dict(re.findall(r"^(\w+)::(\S+)$", _admin(admin, "/listeners"), re.MULTILINE))
        yield listeners["embedder"].replace("0.0.0.0", "127.0.0.1")


def _serving(admin: str) -> int:
    """How many embedders Envoy sends calls to."""
    return int(_admin(admin, "/stats?filter=^cluster.embedder.membership_healthy$").rpartition(" ")[2])


def _admin(address: str, path: str) -> str:
    return str(urllib.request.urlopen(f"http://{address}{path}", timeout=10).read().decode())


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
