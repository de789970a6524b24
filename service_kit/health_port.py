"""A port for health checks alone, served by threads of its own: a busy event loop does not delay its answers."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from service_kit.logs import log

_MAX_CHECKS = 64  # in progress, those of Watch included
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_log = logging.getLogger(__name__)


class HealthPort:
    """Serves health checks, in plaintext, for as long as the context lasts.

    If the event loop, on which the context is entered, hangs for `stall_timeout` seconds, all that is SERVING becomes
    NOT_SERVING until it goes on: a server that cannot say so itself.
    """

    def __init__(self, address: str, stall_timeout: float) -> None:
        """
        Args:
            address: HOST:PORT; port 0 takes any free one.
            stall_timeout: in seconds.

        Raises:
            OSError: the address cannot be bound.
        """
        self._servicer = health.HealthServicer()
        self._server = grpc.server(
            ThreadPoolExecutor(2, thread_name_prefix="health"),
            maximum_concurrent_rpcs=_MAX_CHECKS,
            options=(("grpc.so_reuseport", 0),),
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, self._server)
        try:
            port = self._server.add_insecure_port(address)
        except RuntimeError:
            raise OSError(
                f"cannot serve health checks on {address}: the port is in use, or the address is not this host's"
            ) from None
        self.address = f"{address.rpartition(':')[0]}:{port}"
        self._stall_timeout = stall_timeout
        self._lock = threading.Lock()
        self._serving: dict[str, bool] = {}
        self._stalled = False
        self._ended = threading.Event()
        self._beat = time.monotonic()
        self._watchdog = threading.Thread(target=self._watch, name="health-watchdog", daemon=True)

    def __enter__(self) -> Self:
        self._loop_thread = threading.get_ident()
        self._beating = asyncio.create_task(self._keep_beating())
        self._server.start()
        self._watchdog.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._beating.cancel()
        self._watchdog.join()
        self._server.stop(None).wait()

    def set(self, name: str, serving: bool) -> None:
        """Sets what is said of `name` while the event loop runs."""
        with self._lock:
            self._serving[name] = serving
            self._publish(name)

    async def _keep_beating(self) -> None:
        while True:
            self._beat = time.monotonic()
            await asyncio.sleep(self._stall_timeout / 4)

    def _watch(self) -> None:
        while not self._ended.wait(self._stall_timeout / 4):
            silent = time.monotonic() - self._beat
            if (silent > self._stall_timeout) is not self._stalled:
                self._turn(not self._stalled, silent)

    def _turn(self, stalled: bool, silent: float) -> None:
        if stalled:
            frame = sys._current_frames().get(self._loop_thread)
            stack = "".join(traceback.format_stack(frame)) if frame else ""
            log(_log, logging.CRITICAL, "the event loop hangs", seconds=round(silent, 1), stack=stack)
        else:
            log(_log, logging.WARNING, "the event loop runs again")
        with self._lock:
            self._stalled = stalled
            for name in self._serving:
                self._publish(name)

    def _publish(self, name: str) -> None:
        self._servicer.set(name, _SERVING if self._serving[name] and not self._stalled else _NOT_SERVING)
