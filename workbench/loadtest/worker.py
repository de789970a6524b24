"""A process that sends calls, at the times that they are due, and reports what became of them."""

from __future__ import annotations

import asyncio
import gc
import itertools
import selectors
import signal
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection as Pipe
from typing import TypeAlias

import grpc
import grpc.aio
import numpy as np

from workbench.loadtest.connection import Connection, Service
from workbench.loadtest.load import SAMPLE, Batch, ClosedLoop, Job, OpenLoop, RecallSample, StageSample
from workbench.loadtest.operations import CUT_OFF, OK, Choice, Chooser, Workload, build
from workbench.loadtest.schedule import Schedule

_REPORT_SECONDS = 0.25
_LAG_SECONDS = 0.02
# Calls that this process could not send within this time of their due time are not sent at all.
_LATEST_SECONDS = 1.0
_WANT_TIMINGS = ("lookalike-timings", "1")

_Method: TypeAlias = "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]"
_Call: TypeAlias = "grpc.aio.UnaryUnaryCall[bytes, bytes]"


def main(pipe: Pipe, process: int, processes: int, workload: Workload, connection: Connection) -> None:
    """Runs the jobs that come through the pipe until it is closed; reports go back through it.

    Args:
        pipe: jobs come in; `None` cuts the present one short. Out go `True` once ready, then `Batch`es.
        process: this process' number.
        processes: how many there are: each takes every so manieth call.
        workload: what to send.
        connection: how to connect.
    """
    # Ctrl-C is for the parent, which tells us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

    # epoll's timeouts are whole milliseconds, by which calls would be late; those of select are not.
    def loop() -> asyncio.AbstractEventLoop:
        return asyncio.SelectorEventLoop(selectors.SelectSelector())

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(_serve(pipe, _Share(process, processes), workload, connection))


class _Share:
    """Which calls are this process'."""

    def __init__(self, process: int, processes: int) -> None:
        self.process, self._processes = process, processes

    def of(self, total: int) -> int:
        """Returns this process' part of a number."""
        return total // self._processes + (self.process < total % self._processes)

    def numbers(self) -> Iterator[int]:
        """Yields the numbers of its calls."""
        return itertools.count(self.process, self._processes)

    def due(self, schedule: Schedule) -> Iterator[tuple[int, float]]:
        """Yields the number of each of its calls, and when it is due in seconds from the schedule's start."""
        first = 0
        for times in schedule.times():
            skip = (self.process - first) % self._processes
            yield from zip(
                range(first + skip, first + len(times), self._processes),
                times[skip :: self._processes].tolist(),
                strict=True,
            )
            first += len(times)


async def _serve(pipe: Pipe, share: _Share, workload: Workload, connection: Connection) -> None:
    jobs: asyncio.Queue[Job | None] = asyncio.Queue()
    running: _Run | None = None
    ended = asyncio.Event()

    def read() -> None:
        try:
            message: Job | None = pipe.recv()
        except (EOFError, OSError):
            asyncio.get_running_loop().remove_reader(pipe.fileno())
            ended.set()
            message = None
        if message is None and running is not None:
            running.stop()
        jobs.put_nowait(message)

    caller = _Caller(workload, connection)
    asyncio.get_running_loop().add_reader(pipe.fileno(), read)
    pipe.send(True)
    gc.collect()
    gc.freeze()  # what is there now is there to stay: later collections need not look at it
    while not ended.is_set():
        if (job := await jobs.get()) is None:
            continue
        running = _Run(caller, pipe, share, job)
        try:
            await running.run()
        except (BrokenPipeError, ConnectionResetError):
            return  # nobody is there any more to report to
        running = None
    await caller.close()


class _Caller:
    """Makes calls."""

    def __init__(self, workload: Workload, connection: Connection) -> None:
        self.choose = Chooser(workload)
        self.operations = build(workload)
        services: dict[Service, list[grpc.aio.Channel]] = {}
        for operation in self.operations:
            if operation.service not in services:
                services[operation.service] = [connection.open(operation.service) for _ in range(connection.channels)]
        self._channels = [channel for channels in services.values() for channel in channels]
        self._methods: list[list[_Method]] = [
            [channel.unary_unary(operation.path) for channel in services[operation.service]]
            for operation in self.operations
        ]
        self._plain = connection.metadata() or None
        self._timed = (*connection.metadata(), _WANT_TIMINGS)
        self._turn = itertools.count()

    def start(self, choice: Choice, request: bytes, timeout: float) -> _Call:
        """Starts a call."""
        methods = self._methods[choice.operation]
        metadata = self._timed if choice.stages else self._plain
        return methods[next(self._turn) % len(methods)](request, timeout=timeout, metadata=metadata)

    async def close(self) -> None:
        """Closes the channels."""
        for channel in self._channels:
            await channel.close()


class _Run:
    """Makes the calls of one job."""

    def __init__(self, caller: _Caller, pipe: Pipe, share: _Share, job: Job) -> None:
        self._caller, self._pipe, self._share, self._job = caller, pipe, share, job
        self._most = max(1, share.of(job.most_in_flight))
        self._in_flight: dict[asyncio.Task[None], _Call] = {}
        self._callers: set[asyncio.Task[None]] = set()
        self._load: asyncio.Task[None] | None = None
        self._stopped = False
        self._empty()

    def _empty(self) -> None:
        self._samples: list[tuple[float, float, float, int, int, bool]] = []
        self._planned = self._crowded = self._overdue = 0
        self._stages: list[StageSample] = []
        self._recall: list[RecallSample] = []
        self._details: dict[int, str] = {}
        self._lags: list[float] = []

    def stop(self) -> None:
        """Ends the job now: what is in flight is cut off."""
        self._stopped = True
        if self._load is not None:
            self._load.cancel()
        for call in self._in_flight.values():
            call.cancel()

    async def run(self) -> None:
        """Runs the job to its end."""
        looking = [asyncio.create_task(self._measure_lag()), asyncio.create_task(self._report_now_and_then())]
        try:
            load = self._job.load
            self._load = asyncio.create_task(self._open(load) if isinstance(load, OpenLoop) else self._closed(load))
            await asyncio.wait([self._load])
            if not self._load.cancelled():
                self._load.result()
            while waiting := {*self._in_flight, *self._callers}:
                await asyncio.wait(waiting)
        finally:
            for task in looking:
                task.cancel()
        self._report(done=True)

    async def _open(self, load: OpenLoop) -> None:
        if load.warm_up is not None:
            await self._send_all(load.warm_up, self._job.begin - load.warm_up.seconds, measured=False)
        await self._send_all(load.schedule, self._job.begin, measured=True)

    async def _send_all(self, schedule: Schedule, begin: float, *, measured: bool) -> None:
        for number, offset in self._share.due(schedule):
            due = begin + offset
            choice = self._caller.choose(number)
            request = self._caller.operations[choice.operation].request(choice)
            # Also when it is late already: the calls before it have to be sent.
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            self._planned += measured
            if len(self._in_flight) >= self._most:
                self._crowded += measured
            elif time.monotonic() - due > _LATEST_SECONDS:
                self._overdue += measured
            else:
                self._send(choice, request, due, measured)

    async def _closed(self, load: ClosedLoop) -> None:
        begin, end = self._job.begin, self._job.begin + load.seconds
        await asyncio.sleep(begin - load.warm_up_seconds - time.monotonic())
        numbers = self._share.numbers()

        async def call_again_and_again() -> None:
            while not self._stopped and (now := time.monotonic()) < end:
                choice = self._caller.choose(next(numbers))
                request = self._caller.operations[choice.operation].request(choice)
                self._planned += now >= begin
                await self._send(choice, request, None, now >= begin)

        for _ in range(self._share.of(load.callers)):
            task = asyncio.create_task(call_again_and_again())
            self._callers.add(task)
            task.add_done_callback(self._callers.discard)

    def _send(self, choice: Choice, request: bytes, due: float | None, measured: bool) -> asyncio.Task[None]:
        """Sends a call; the task that is returned waits for its end. Without a time that it was due, it is due now."""
        sent = time.monotonic()
        call = self._caller.start(choice, request, self._job.timeout)
        task = asyncio.create_task(self._finish(call, choice, sent if due is None else due, sent, measured))
        self._in_flight[task] = call
        task.add_done_callback(self._in_flight.pop)
        return task

    async def _finish(self, call: _Call, choice: Choice, due: float, sent: float, measured: bool) -> None:
        operation = self._caller.operations[choice.operation]
        reply: bytes | None = None
        try:
            reply = await call
            ended, code = time.monotonic(), OK
        except grpc.aio.AioRpcError as error:
            ended, code = time.monotonic(), int(error.code().value[0])
            self._details.setdefault(code, error.details() or "")
        except asyncio.CancelledError:  # what `stop` does
            ended, code = time.monotonic(), CUT_OFF
        if reply is not None:
            code = operation.outcome(reply)
            if choice.stages and (stages := operation.stages(reply, await call.trailing_metadata())):
                self._stages.append(StageSample(choice.operation, ended - sent, stages))
            if choice.recall and measured:
                self._recall.append(RecallSample(choice.number, operation.ranked(reply)))
        self._samples.append((due, sent, ended, choice.operation, code, measured))

    async def _measure_lag(self) -> None:
        while True:
            due = time.monotonic() + _LAG_SECONDS
            await asyncio.sleep(_LAG_SECONDS)
            self._lags.append(time.monotonic() - due)

    async def _report_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(_REPORT_SECONDS)
            self._report(done=False)

    def _report(self, *, done: bool) -> None:
        batch = Batch(
            self._share.process,
            np.array(self._samples, SAMPLE),
            self._planned,
            self._crowded,
            self._overdue,
            self._stages,
            self._recall,
            self._details,
            np.array(self._lags, np.float64),
            time.process_time(),
            len(self._in_flight),
            time.monotonic(),
            done,
        )
        self._empty()
        self._pipe.send(batch)
