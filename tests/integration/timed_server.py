"""An embedder whose times are known: the contract's Embed, with timers instead of a model. Run as a process of its own.

It takes its orders as flags, and writes what it did to a file when it ends:

    python timed_server.py --service-ms 5 --stall-at 2 --stall 1.5 --log FILE
    python timed_server.py --capacity 300 --queue-ms 40

With a capacity it is a single queue that serves so many calls a second and refuses those that would wait too long. It
keeps that queue by the clock, not by timers, so that late timers do not change what it can do.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import time
from pathlib import Path

import grpc
import grpc.aio

_SERVICE = "/lookalike.embedder.v1.EmbedderService"


class Timed:
    """Answers calls after as long as it was told to.

    Attributes:
        calls: when each arrived and was answered, on the monotonic clock.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self.calls: list[tuple[float, float]] = []
        self.stall: tuple[float, float] | None = None
        self._first: float | None = None
        self._free = 0.0

    async def model(self, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        await self._require_token(context)
        return b""

    async def embed(self, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        args, arrived = self._args, time.monotonic()
        await self._require_token(context)
        if self._first is None:
            self._first = arrived
            print("called", flush=True)
        if args.capacity:
            self._free = max(self._free, arrived) + 1 / args.capacity
            if self._free - arrived > args.queue_ms / 1e3:
                self._free -= 1 / args.capacity
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full")
            await asyncio.sleep(self._free - time.monotonic())
        elif args.service_ms:
            await asyncio.sleep(args.service_ms / 1e3)
        if args.stall and self.stall is None and arrived - self._first >= args.stall_at:
            self.stall = (time.monotonic(), time.monotonic() + args.stall)
        if self.stall:
            await asyncio.sleep(max(0.0, self.stall[1] - time.monotonic()))
        context.set_trailing_metadata((("lookalike-timing-run", "0.001"), ("lookalike-timing-total", "0.002")))
        if args.log:
            self.calls.append((arrived, time.monotonic()))
        return b""

    async def _require_token(self, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        wanted = ("authorization", f"Bearer {self._args.token}")
        if self._args.token and wanted not in (context.invocation_metadata() or ()):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "no token, or another one")


async def _serve(args: argparse.Namespace) -> Timed:
    timed = Timed(args)

    class Handler(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes] | None:
            behaviour = {f"{_SERVICE}/Embed": timed.embed, f"{_SERVICE}/GetModel": timed.model}.get(details.method)
            return grpc.unary_unary_rpc_method_handler(behaviour) if behaviour else None

    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((Handler(),))
    if args.cert:
        with open(args.cert, "rb") as cert, open(args.key, "rb") as key:  # noqa: ASYNC230 - before it serves
            chain = cert.read()
            credentials = grpc.ssl_server_credentials([(key.read(), chain)], chain, require_client_auth=True)
        port = server.add_secure_port(args.address, credentials)
    else:
        port = server.add_insecure_port(args.address)
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    await told.wait()
    await server.stop(None)
    return timed


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--address", default="127.0.0.1:0")
    parser.add_argument("--service-ms", type=float, default=0.0)
    parser.add_argument("--capacity", type=float, default=0.0)
    parser.add_argument("--queue-ms", type=float, default=50.0)
    parser.add_argument("--stall-at", type=float, default=0.0)
    parser.add_argument("--stall", type=float, default=0.0)
    parser.add_argument("--token", default="")
    parser.add_argument("--cert", help="PEM file; clients must have one that it signs")
    parser.add_argument("--key", help="its private key")
    parser.add_argument("--log")
    flags = parser.parse_args()
    served = asyncio.run(_serve(flags))
    if flags.log:
        Path(flags.log).write_text(json.dumps({"calls": served.calls, "stall": served.stall}))
