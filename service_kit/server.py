"""The life of a gRPC server: bind, serve health and metrics, watch readiness, drain on a signal, stop."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Thread
from wsgiref.simple_server import WSGIServer

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import start_http_server

from service_kit.health import Health
from service_kit.interceptor import CallInterceptor
from service_kit.logs import log
from service_kit.settings import ServerSettings, describe

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_log = logging.getLogger(__name__)


class Server:
    """A gRPC server with health, reflection, metrics and a graceful end.

    Register services on `grpc`, then await `run`.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self.grpc = grpc.aio.server(
            interceptors=(CallInterceptor(),),
            maximum_concurrent_rpcs=settings.max_concurrent_rpcs,
            options=(
                ("grpc.max_receive_message_length", settings.max_message_bytes),
                ("grpc.max_send_message_length", settings.max_message_bytes),
                # Two servers on one port would each get a part of the calls, silently.
                ("grpc.so_reuseport", 0),
            ),
        )
        self._health = Health()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.grpc)
        self._stopping = asyncio.Event()

    async def run(self, services: Sequence[str], check: Callable[[], Awaitable[None]]) -> int:
        """Serves until SIGTERM or SIGINT, then drains and stops.

        Args:
            services: full names of the registered services, for health and reflection.
            check: raises if the server could not serve a real request now; decides what health says.

        Returns:
            The process' exit code: 0 after a signal.

        Raises:
            OSError: an address cannot be bound.
        """
        names = ("", *services)
        for name in names:
            await self._health.set(name, _NOT_SERVING)
        if self._settings.reflection:
            reflection.enable_server_reflection((*services, health.SERVICE_NAME, reflection.SERVICE_NAME), self.grpc)
        try:
            address = self._bind()
            metrics, metrics_thread, metrics_address = _serve_metrics(self._settings.metrics_address)
        except OSError:
            await self.grpc.stop(None)  # else it complains at the end of the process
            raise
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        await self.grpc.start()
        log(
            _log,
            logging.INFO,
            "listening",
            **{**describe(self._settings), "address": address, "metrics_address": metrics_address},
        )
        readiness = asyncio.create_task(self._watch_readiness(names, check, address, metrics_address))
        try:
            await self._stopping.wait()
            log(_log, logging.INFO, "draining", drain_delay=self._settings.drain_delay, grace=self._settings.grace)
            readiness.cancel()
            with suppress(asyncio.CancelledError):
                await readiness
            await self._health.enter_graceful_shutdown()
            self._stopping.clear()  # a second signal cuts the wait short
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), self._settings.drain_delay)
            self._health.end_watches()
            await self.grpc.stop(self._settings.grace)
        finally:
            metrics.shutdown()
            metrics.server_close()
            metrics_thread.join()
            if self._settings.address_file:
                self._settings.address_file.unlink(missing_ok=True)
        log(_log, logging.INFO, "stopped")
        return 0

    def _bind(self) -> str:
        host = self._settings.address.rpartition(":")[0]
        try:
            port = self.grpc.add_insecure_port(self._settings.address)
        except RuntimeError:
            port = 0
        if port == 0:
            raise OSError(
                f"cannot serve on {self._settings.address}: the port is in use, or the address is not this host's"
            )
        return f"{host}:{port}"

    async def _watch_readiness(
        self, names: Sequence[str], check: Callable[[], Awaitable[None]], address: str, metrics_address: str
    ) -> None:
        serving: bool | None = None
        while True:
            try:
                await asyncio.wait_for(check(), max(1.0, self._settings.readiness_interval))
                ready = True
            except Exception as error:
                ready = False
                if serving is not False:
                    log(_log, logging.WARNING, "not ready", reason=str(error) or type(error).__name__)
            if ready is not serving:
                for name in names:
                    await self._health.set(name, _SERVING if ready else _NOT_SERVING)
                if ready:
                    log(_log, logging.INFO, "serving")
                    if self._settings.address_file:
                        _write_atomically(
                            self._settings.address_file, json.dumps({"grpc": address, "metrics": metrics_address})
                        )
                serving = ready
            # Until it is ready for the first time somebody waits for it: look more often.
            await asyncio.sleep(self._settings.readiness_interval if serving else 0.2)


def _serve_metrics(address: str) -> tuple[WSGIServer, Thread, str]:
    host, _, port = address.rpartition(":")
    try:
        server, thread = start_http_server(int(port), host)
    except OSError as error:
        raise OSError(f"cannot serve metrics on {address}: {error.strerror}") from None
    return server, thread, f"{host}:{server.server_port}"


def _write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text)
    temporary.replace(path)
