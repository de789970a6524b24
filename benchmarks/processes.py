"""The servers under measurement as child processes: start, stop, and what they take of the machine."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.summary import ROOT
from workbench.errors import CommandError

_HOST = "127.0.0.1"
_STOP_SECONDS = 60.0
_LOG_TAIL_LINES = 15
_METRICS_SECONDS = 10.0


class Server:
    """A server as a child process: entering the context starts it, leaving it stops it. It may not serve yet.

    Attributes:
        address: the HOST:PORT it was told to serve on.
        started: when it was started, on the monotonic clock.

    Raises:
        CommandError: on leaving, it ended with another exit code than 0. The message carries the end of its log.
    """

    started: float

    def __init__(self, name: str, module: str, arguments: Sequence[str], folder: Path) -> None:
        """
        Args:
            name: how messages and its log file call it.
            module: what `python -m` runs.
            arguments: its flags, without `--address`.
            folder: where its log goes.
        """
        self.name = name
        self.address = free_address()
        self._log = folder.resolve() / f"{name}.log"
        self._command = [sys.executable, "-m", module, "--address", self.address, *arguments]

    def __enter__(self) -> Self:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("wb") as log:
            self.started = time.monotonic()
            # A process group of its own: Ctrl-C is for us, and whatever it leaves behind can be ended with it.
            self._process = subprocess.Popen(  # noqa: S603
                self._command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.terminate()
        code = self.wait()
        if code != 0 and error is None:
            raise CommandError(f"{self.name} ended with exit code {code} instead of 0; {self.end_of_log()}")

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def terminate(self) -> None:
        """Sends SIGTERM, if it still runs."""
        self._process.terminate()

    def wait(self) -> int:
        """Waits until it has ended, ends what is left of its group, and returns its exit code."""
        if self._process.returncode is not None:
            return self._process.returncode
        try:
            code = self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        return code

    def end_of_log(self) -> str:
        """Returns the last lines of its log, for a message."""
        lines = self._log.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:]
        return f"the end of its log, {self._log}:\n" + "\n".join(f"    {line}" for line in lines)


class Embedder(Server):
    """Lookalike's embedder, as a `Server`."""

    def __init__(self, bundle: Path, precision: str, folder: Path, flags: Sequence[str] = (), name: str = "") -> None:
        """
        Args:
            bundle: the model bundle to serve.
            precision: in which arithmetic.
            folder: where its log goes.
            flags: more of its flags.
            name: how messages and its log file call it, where there are several.
        """
        self._metrics_address = free_address()
        arguments = ["--bundle", str(bundle.resolve()), "--precision", precision, "--drain-delay", "0"]
        arguments += ["--metrics-address", self._metrics_address, *flags]
        super().__init__(name or f"embedder-{precision}", "embedder_service.main", arguments, folder)

    def metrics(self) -> Metrics:
        """Reads its Prometheus metrics."""
        url = f"http://{self._metrics_address}/metrics"
        with urllib.request.urlopen(url, timeout=_METRICS_SECONDS) as page:
            return Metrics(page.read().decode())


class Metrics:
    """A page of Prometheus metrics."""

    def __init__(self, text: str) -> None:
        self._samples: dict[str, list[tuple[dict[str, str], float]]] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                self._samples.setdefault(sample.name, []).append((sample.labels, sample.value))

    def value(self, name: str, **labels: str) -> float:
        """Returns the sum of the samples of this name with these labels; 0 where there is none."""
        return sum(value for having, value in self._samples.get(name, ()) if labels.items() <= having.items())


@dataclass(frozen=True)
class Usage:
    """What processes hold at one moment; `time` is on the monotonic clock."""

    time: float
    rss_bytes: int
    threads: int
    files: int


class ProcessTree:
    """A process and its children, those that there are when this is made."""

    def __init__(self, pid: int) -> None:
        root = psutil.Process(pid)
        self._processes = [root, *root.children(recursive=True)]

    def cpu_seconds(self) -> float:
        """Returns the time they have taken of all cores together."""
        total = 0.0
        for process in self._processes:
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def usage(self) -> Usage:
        """Returns what they hold together; memory that several of them share counts for each."""
        rss = threads = files = 0
        for process in self._processes:
            with suppress(psutil.NoSuchProcess), process.oneshot():
                rss += process.memory_info().rss
                threads += process.num_threads()
                files += process.num_fds()
        return Usage(time.monotonic(), rss, threads, files)


class Sampler:
    """Samples what a server holds for as long as the context is open, from the start to the end."""

    def __init__(self, pid: int, interval: float = 0.25) -> None:
        """
        Args:
            pid: the server; its children count with it.
            interval: seconds between samples.
        """
        self.samples: list[Usage] = []
        self._tree = ProcessTree(pid)
        self._interval = interval
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="sampler")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def rss_max(self) -> int:
        """The most memory held, in bytes."""
        return max(sample.rss_bytes for sample in self.samples)

    def _sample(self) -> None:
        while True:
            self.samples.append(self._tree.usage())
            if self._ended.wait(self._interval):
                return


@dataclass(frozen=True)
class Cpu:
    """CPU time, in seconds of one core: of a server, of this process, and of the whole machine."""

    server: float
    client: float
    machine: float

    def __sub__(self, earlier: Cpu) -> Cpu:
        return Cpu(self.server - earlier.server, self.client - earlier.client, self.machine - earlier.machine)

    @property
    def others(self) -> float:
        """What neither of the two took."""
        return max(0.0, self.machine - self.server - self.client)


class CpuClock:
    """Reads the CPU time of a server, if there is one, and of this process."""

    def __init__(self, server: int | None) -> None:
        self._tree = None if server is None else ProcessTree(server)

    def read(self) -> Cpu:
        """Returns the time taken until now."""
        whole = psutil.cpu_times()
        busy = whole.user + whole.nice + whole.system + getattr(whole, "irq", 0.0) + getattr(whole, "softirq", 0.0)
        return Cpu(self._tree.cpu_seconds() if self._tree else 0.0, time.process_time(), busy)


def alive(pid: int) -> bool:
    """Whether a process still runs; one that has ended and was not waited for does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def free_address() -> str:
    """Returns a HOST:PORT on loopback that nobody listens on now."""
    with socket.create_server((_HOST, 0)) as listener:
        return f"{_HOST}:{listener.getsockname()[1]}"
