"""The processes that send calls, seen from the one that plans them."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection as Pipe
from multiprocessing.connection import wait
from types import FrameType
from typing import Any, Self

from workbench.errors import CommandError
from workbench.loadtest import worker
from workbench.loadtest.connection import Connection
from workbench.loadtest.load import Batch, Job
from workbench.loadtest.operations import Workload

_READY_SECONDS = 60.0
_STOP_SECONDS = 10.0
_TICK_SECONDS = 0.1


class Fleet:
    """Worker processes, for as long as the context is open.

    Raises:
        CommandError: one did not start, or ended by itself.
    """

    def __init__(self, workload: Workload, connection: Connection, processes: int) -> None:
        self._arguments = (workload, connection)
        self._count = processes
        self._processes: list[multiprocessing.process.BaseProcess] = []
        self._pipes: list[Pipe] = []

    def __enter__(self) -> Self:
        spawn = multiprocessing.get_context("spawn")  # gRPC does not survive a fork
        for number in range(self._count):
            ours, theirs = spawn.Pipe()
            arguments = (theirs, number, self._count, *self._arguments)
            process = spawn.Process(target=worker.main, args=arguments, name=f"loadtest-{number}", daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)
        try:
            for pipe in self._pipes:
                if not pipe.poll(_READY_SECONDS):
                    raise CommandError(f"a process of the load test was not ready within {_READY_SECONDS:.0f} s")
                self._receive(pipe)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in self._pipes:
            pipe.close()
        deadline = time.monotonic() + _STOP_SECONDS
        for process in self._processes:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()

    def run(self, job: Job, on_batch: Callable[[Batch], None], should_stop: Callable[[], bool]) -> bool:
        """Runs a job to its end, or until it should stop.

        Args:
            job: what to do.
            on_batch: called with what the processes report, as it comes.
            should_stop: called about ten times a second.

        Returns:
            whether it went to its end; False if it was stopped.
        """
        for pipe in self._pipes:
            pipe.send(job)
        waiting, stopped = set(self._pipes), False
        while waiting:
            ready = wait(list(waiting), _TICK_SECONDS)
            for pipe in [pipe for pipe in self._pipes if pipe in ready]:
                batch: Batch = self._receive(pipe)
                on_batch(batch)
                if batch.done:
                    waiting.discard(pipe)
            if waiting and not stopped and should_stop():
                stopped = True
                for pipe in self._pipes:
                    pipe.send(None)
        return not stopped

    def _receive(self, pipe: Pipe) -> Any:
        try:
            return pipe.recv()
        except (EOFError, ConnectionResetError):
            process = self._processes[self._pipes.index(pipe)]
            process.join(_STOP_SECONDS)
            raise CommandError(
                f"a process of the load test ended by itself, with exit code {process.exitcode}"
            ) from None


class Interrupt:
    """Tells whether the user wants the load test to end."""

    def __init__(self) -> None:
        self.requested = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.requested:  # twice: at once, and without a report
            raise KeyboardInterrupt
        self.requested = True


@contextmanager
def interrupt() -> Iterator[Interrupt]:
    """Notes Ctrl-C and SIGTERM instead of raising KeyboardInterrupt, so that there is a report of what ran."""
    noted = Interrupt()
    before = {number: signal.signal(number, noted) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
