"""Runs the embedder and the search service as child processes, and stops them whatever happens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from workbench.errors import CommandError

ANY_PORT = "127.0.0.1:0"

_READY_SECONDS = 180.0  # loading a model and warming it up takes a while on a small machine
_HEALTH_SECONDS = 10.0
_STOP_SECONDS = 30.0
_POLL_SECONDS = 0.1
_LOG_TAIL_LINES = 15


@dataclass(frozen=True)
class Addresses:
    """Where a server listens, each as HOST:PORT."""

    grpc: str
    metrics: str
    health: str | None = None


class ServerProcess:
    """A server as a child process: entering the context starts it and waits until it serves, leaving it stops it.

    Args:
        name: how messages and its files call it.
        module: what `python -m` runs.
        arguments: its flags, without `--address-file` and `--drain-delay`.
        directory: where its log and its address file go.
        ready_seconds: how long it may take until it serves.

    Raises:
        CommandError: on entering, it ended or did not get ready in time; on leaving, it had ended already, or did not
            stop as it should. The message carries the end of its log.
    """

    addresses: Addresses

    def __init__(
        self, name: str, module: str, arguments: list[str], directory: Path, ready_seconds: float = _READY_SECONDS
    ) -> None:
        self.name = name
        self.log = directory / f"{name}.log"
        # The process id keeps apart those who share a directory: nobody must take another one's server for its own.
        self._address_file = directory / f"{name}.{os.getpid()}.json"
        self._command = [sys.executable, "-m", module, *arguments]
        # No drain delay: no load balancer has to notice that the server is going.
        self._command += ["--address-file", str(self._address_file), "--drain-delay", "0"]
        self._ready_seconds = ready_seconds

    def __enter__(self) -> Self:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self._address_file.unlink(missing_ok=True)
        with self.log.open("wb") as log:
            # A process group of its own: Ctrl-C is for us, and we stop the servers in order.
            self._process = subprocess.Popen(  # noqa: S603
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0
            )
        try:
            self.addresses = self._await_ready()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        code = self._stop()
        if code != 0 and error is None:
            raise CommandError(f"the {self.name} ended with exit code {code} instead of 0; {self._end_of_log()}")

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def check(self, wait: float = 0.0) -> None:
        """Raises CommandError if the server has ended, or ends within `wait` seconds."""
        try:
            code = self._process.wait(wait)
        except subprocess.TimeoutExpired:
            return
        raise CommandError(f"the {self.name} ended by itself with exit code {code}; {self._end_of_log()}")

    def _await_ready(self) -> Addresses:
        deadline = time.monotonic() + self._ready_seconds
        while not self._address_file.exists():
            self.check(wait=_POLL_SECONDS)
            if time.monotonic() > deadline:
                raise CommandError(
                    f"the {self.name} was not ready within {self._ready_seconds:.0f} s; {self._end_of_log()}"
                )
        addresses = Addresses(**json.loads(self._address_file.read_text()))
        self._require_healthy(addresses.health or addresses.grpc)  # the port apart is plaintext in any case
        return addresses

    def _require_healthy(self, target: str) -> None:
        try:
            with grpc.insecure_channel(target) as channel:
                stub: Any = health_pb2_grpc.HealthStub(channel)
                reply = stub.Check(health_pb2.HealthCheckRequest(), timeout=_HEALTH_SECONDS, wait_for_ready=True)
        except grpc.RpcError as error:
            raise CommandError(f"the {self.name} at {target} does not answer: {error.code().name}") from error
        if reply.status != health_pb2.HealthCheckResponse.SERVING:
            raise CommandError(f"the {self.name} at {target} says that it does not serve; {self._end_of_log()}")

    def _stop(self) -> int:
        self._process.terminate()
        try:
            return self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _end_of_log(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:]
        return f"the end of its log, {self.log}:\n" + "\n".join(f"    {line}" for line in lines)


@dataclass(frozen=True)
class Services:
    """Both services, running."""

    embedder: ServerProcess
    search: ServerProcess

    def wait(self) -> None:
        """Waits for as long as both run: never returns.

        Raises:
            CommandError: one of them ended.
        """
        while True:
            self.embedder.check(wait=1.0)
            self.search.check()


@contextmanager
def running(
    bundle: Path,
    milvus: Path | str,
    logs: Path,
    *,
    precision: str = "auto",
    embedder_address: str = ANY_PORT,
    embedder_metrics: str = ANY_PORT,
    search_address: str = ANY_PORT,
    search_metrics: str = ANY_PORT,
) -> Iterator[Services]:
    """Runs both services for as long as the context lasts.

    Args:
        bundle: directory of the model bundle.
        milvus: file of Milvus Lite, made if it is not there, or the http(s)://HOST:PORT of a Milvus server.
        logs: directory for the logs of both.
        precision: arithmetic of the model.
        embedder_address: HOST:PORT for the embedder's gRPC; port 0 takes any free one. The others likewise.

    Raises:
        CommandError: one of them could not be started, or did not stop as it should.
    """
    embedder_flags = ["--bundle", str(bundle), "--precision", precision]
    embedder_flags += ["--address", embedder_address, "--metrics-address", embedder_metrics]
    search_flags = ["--milvus-uri", str(milvus), "--address", search_address, "--metrics-address", search_metrics]
    with ExitStack() as stack:
        embedder = stack.enter_context(ServerProcess("embedder", "embedder_service.main", embedder_flags, logs))
        search_flags += ["--embedder", embedder.addresses.grpc]
        search = stack.enter_context(ServerProcess("search-service", "search_service.main", search_flags, logs))
        yield Services(embedder, search)
