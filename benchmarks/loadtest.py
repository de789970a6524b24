"""`make bench-loadtest`: what the load-test client itself adds to the times that it measures.

A server that answers at once, in a process of its own, gets unary calls at a rate. What the client adds is how late it
sends a call, and how late it notices a reply: the latter as its event loop is late for timers. The rest of a response
time is the network, gRPC's and the server's.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection as Pipe

import grpc
import grpc.aio

from workbench.loadtest import summary
from workbench.loadtest.bottleneck import reasons
from workbench.loadtest.connection import Connection
from workbench.loadtest.fleet import Fleet
from workbench.loadtest.load import Job, OpenLoop
from workbench.loadtest.operations import Workload
from workbench.loadtest.payloads import Images
from workbench.loadtest.record import Record, milliseconds
from workbench.loadtest.schedule import steady

_IMAGES = 64
_HEAD_START = 0.2
_WARM_UP = 2.0
_TIMEOUT = 10.0
_MOST_IN_FLIGHT = 4096


def serve(pipe: Pipe) -> None:
    """Answers every call with an empty message; sends its address through the pipe, and ends when that is closed."""

    async def answer(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        return b""

    class Handler(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
            return grpc.unary_unary_rpc_method_handler(answer)

    async def run() -> None:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((Handler(),))
        pipe.send(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
        await server.start()
        closed = asyncio.Event()
        asyncio.get_running_loop().add_reader(pipe.fileno(), closed.set)
        await closed.wait()
        await server.stop(None)

    asyncio.run(run())


def main(argv: Sequence[str]) -> int:
    """Runs it; returns the exit code: 1 if the client added a millisecond or more to one call in a hundred."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loadtest", description=__doc__.partition("\n")[0])
    parser.add_argument("--rate", type=float, default=1500.0, metavar="R", help="calls a second (default: %(default)s)")
    parser.add_argument("--bytes", type=int, default=15_000, metavar="N", help="of each call (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="of the client (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, metavar="S", help="default: %(default)s")
    args = parser.parse_args(argv)
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    server = spawn.Process(target=serve, args=(theirs,))
    server.start()
    theirs.close()
    try:
        record = _measure(args, ours.recv())
    finally:
        ours.close()
        server.join()
    use = record.client()
    added = use.late_ms["p99"] + use.lag_ms["p99"]
    rows = [["", "mean", "p50", "p90", "p99", "p99.9", "max"]]
    figures = {
        "sent late, ms": use.late_ms,
        "event loop late, ms": use.lag_ms,
        "response time, ms": milliseconds(record.all.response),
    }
    rows += [[name, *(summary.ms(values[column]) for column in rows[0][1:])] for name, values in figures.items()]
    print(summary.columns(rows))
    print(f"{record.goodput:,.0f} replies/s of {args.rate:,.0f}; {record.counts}")
    print(f"client CPU {', '.join(f'{cores:.0%}' for cores in use.cpu)} of a core; {reasons(record, args.processes)}")
    print(f"{'PASS' if added < 1.0 else 'FAIL'}  added at p99: {added:.2f} ms < 1 ms")
    return 0 if added < 1.0 else 1


def _measure(args: argparse.Namespace, address: str) -> Record:
    images = Images(tuple(os.urandom(args.bytes) for _ in range(_IMAGES)), (1.0,) * _IMAGES, "random bytes")
    workload = Workload((("embed", 1.0),), images=images, stage_share=0.0)
    load = OpenLoop(steady(args.rate, args.seconds, "poisson", 1), steady(args.rate, _WARM_UP, "poisson", 2))
    with Fleet(workload, Connection(embedder=address), args.processes) as fleet:
        job = Job(load, time.monotonic() + _HEAD_START + _WARM_UP, _TIMEOUT, _MOST_IN_FLIGHT)
        record = Record(job, workload.names, args.processes)
        fleet.run(job, record.add, lambda: False)
    return record


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
