"""The processes that make load, apart from the servers and from the program that measures them."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import ParamSpec, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from benchmarks import calls, load, mix
from benchmarks.calls import Call, Target
from benchmarks.load import OK, Calls, Measured, Send
from benchmarks.processes import alive
from workbench.errors import CommandError

P = ParamSpec("P")
T = TypeVar("T")

_READY_SECONDS = 300.0
_BETWEEN_ATTEMPTS = 0.02

# Set once in each of the processes.
_images: list[bytes] = []


class Clients:
    """Client processes, each with the images in memory, for as long as the context is open.

    A job is one of the functions of this module.
    """

    def __init__(self, images: Sequence[Path], processes: int = 1) -> None:
        spawn = multiprocessing.get_context("spawn")  # gRPC does not survive a fork
        self._processes = [
            ProcessPoolExecutor(1, mp_context=spawn, initializer=_read, initargs=(list(images),))
            for _ in range(processes)
        ]
        self._open = ExitStack()

    def __enter__(self) -> Self:
        for process in self._processes:
            self._open.enter_context(process)
        for started in [process.submit(os.getpid) for process in self._processes]:
            started.result(_READY_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def __len__(self) -> int:
        return len(self._processes)

    def submit(self, process: int, job: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Runs a job in the process of a number."""
        return self._processes[process].submit(job, *args, **kwargs)

    def run(self, job: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs a job in the first process and returns its result."""
        return self.submit(0, job, *args, **kwargs).result()


def first_answer(target: Target, server: int) -> float:
    """Calls a server that is starting until it answers well, and returns when that was, on the monotonic clock.

    Raises:
        CommandError: its process, `server`, ended, or it did not answer in time.
    """

    async def attempt(call: Call) -> float:
        deadline = time.monotonic() + _READY_SECONDS
        while (code := (await call(0, _READY_SECONDS))[0]) != OK:
            if not alive(server):
                raise CommandError("the server ended while it was starting")
            if time.monotonic() > deadline:
                raise CommandError(f"the server did not serve within {_READY_SECONDS:.0f} s: {code}")
            await asyncio.sleep(_BETWEEN_ATTEMPTS)
        return time.monotonic()

    return asyncio.run(_with_call(target, attempt))


def vectors(target: Target, count: int) -> NDArray[np.float32]:
    """Returns the embeddings of the first images, float32 [count, D].

    Raises:
        CommandError: the server gave none.
    """

    async def ask(call: Call) -> NDArray[np.float32]:
        found = []
        for number in range(count):
            code, reply = await call(number, _READY_SECONDS)
            if code != OK:
                raise CommandError(f"the server answered an image with {code}")
            found.append(calls.vector(target, reply))
        return np.stack(found)

    return asyncio.run(_with_call(target, ask))


def closed_loop(target: Target, callers: int, seconds: float, warm_up: float, server: int | None = None) -> Measured:
    """Runs `load.closed_loop` against a target."""

    async def run(call: Call) -> Measured:
        return await load.closed_loop(_codes(call), callers, seconds, warm_up, server)

    return asyncio.run(_with_call(target, run))


def open_loop(target: Target, due: NDArray[np.float64], limit: float) -> Calls:
    """Runs `load.open_loop` against a target."""

    async def run(call: Call) -> Calls:
        return await load.open_loop(_codes(call), due, limit)

    return asyncio.run(_with_call(target, run))


def mixed_load(address: str, callers: int, until: float) -> tuple[mix.Answers, int]:
    """Runs `mix.run` against an embedder."""
    return asyncio.run(mix.run(address, _images, callers, until))


async def _with_call(target: Target, use: Callable[[Call], Awaitable[T]]) -> T:
    async with calls.connect(target, _images) as call:
        return await use(call)


def _codes(call: Call) -> Send:
    async def send(number: int, limit: float) -> str:
        return (await call(number, limit))[0]

    return send


def _read(paths: Sequence[Path]) -> None:
    _images.extend(path.read_bytes() for path in paths)
