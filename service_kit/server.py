"""The life of a gRPC server: bind, serve health and metrics, watch readiness, drain on a signal, stop."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import start_http_server

from lookalike.channel import KEEPALIVE_SECONDS
from service_kit import process, sharing
from service_kit.errors import Broken
from service_kit.health import Health, HealthServicer
from service_kit.health_port import HealthPort
from service_kit.interceptor import CallInterceptor
from service_kit.logs import log
from service_kit.settings import ServerSettings, describe
from service_kit.sharing import CallerOf

# Calls beyond the limit that gRPC lets in: those to health and reflection, and those that are just being refused.
_SPARE_CALLS = 256
_BROKEN_GRACE = 2.0  # seconds
_log = logging.getLogger(__name__)


class Server:
    """A gRPC server with health, reflection, metrics and a graceful end.

    Register services on `grpc`, then await `run`.

    Attributes:
        grpc: the server that calls come to.
        draining: set when the server stops to take calls and waits for those in progress. Streams that would go on for
            ever stop reading then, finish what they have read and end; what is left after the grace is cut off.
    """

    def __init__(self, settings: ServerSettings, caller_of: CallerOf = sharing.by_tenant, turns: int = 16) -> None:
        """`caller_of` names whom a call is made for: who may have so many calls in progress, and takes turns.

        While there are several callers, `turns` calls of each are worked on at a time, unless the settings tell.
        """
        self._settings = settings
        self.grpc = grpc.aio.server(
            interceptors=(CallInterceptor(settings, caller_of, turns),),
            maximum_concurrent_rpcs=settings.max_concurrent_rpcs + _SPARE_CALLS,
            options=(
                ("grpc.max_receive_message_length", settings.max_message_bytes),
                ("grpc.max_send_message_length", settings.max_message_bytes),
                # Two servers on one port would each get a part of the calls, silently.
                ("grpc.so_reuseport", 0),
                ("grpc.max_allowed_incoming_connections", settings.max_connections),
                ("grpc.max_concurrent_streams", settings.max_connection_rpcs),
                ("grpc.max_connection_idle_ms", _milliseconds(settings.max_connection_idle)),
                ("grpc.server_handshake_timeout_ms", _milliseconds(settings.handshake_timeout)),
                # Until a client has acknowledged our limits some of them are those of HTTP/2.
                ("grpc.http2.settings_timeout", _milliseconds(settings.handshake_timeout)),
                # The second is the limit, which gRPC wants exceeded by one; between both it would refuse some calls.
                ("grpc.max_metadata_size", settings.max_metadata_bytes + 1),
                ("grpc.absolute_max_metadata_size", settings.max_metadata_bytes + 1),
                # Clients ping this often where a call takes long; gRPC's own limit is five minutes. More than two that
                # come earlier end the connection.
                ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_SECONDS * 500),
                ("grpc.max_connection_age_ms", _milliseconds(settings.max_connection_age)),
            ),
        )
        self.draining = asyncio.Event()
        self._servicer = HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, self.grpc)
        self._stopping = asyncio.Event()
        self._broken = asyncio.Event()

    async def run(self, services: Sequence[str], check: Callable[[], Awaitable[None]]) -> int:
        """Serves until SIGTERM or SIGINT, then drains and stops; or until `fail`, then stops.

        Args:
            services: full names of the registered services, for health and reflection.
            check: raises if the server could not serve a real request now; decides what health says. If it raises
                `Broken`, the server ends as after `fail`.

        Returns:
            The process' exit code: 0 after a signal, 1 if the server was broken.

        Raises:
            OSError: an address cannot be bound.
        """
        if self._settings.reflection:
            reflection.enable_server_reflection((*services, health.SERVICE_NAME, reflection.SERVICE_NAME), self.grpc)
        with ExitStack() as stack:
            try:
                addresses = {"grpc": self._bind()}
                addresses["metrics"] = stack.enter_context(_serving_metrics(self._settings.metrics_address))
                port = None
                if self._settings.health_address:
                    port = HealthPort(self._settings.health_address, self._settings.liveness_timeout)
                    addresses["health"] = port.address
            except OSError:
                await self.grpc.stop(None)  # else it complains at the end of the process
                raise
            health_state = Health(self._servicer, port, services)
            await health_state.begin()
            if port:
                stack.enter_context(port)
            if self._settings.address_file:
                stack.callback(self._settings.address_file.unlink, missing_ok=True)
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self._stopping.set)
            await self.grpc.start()
            bound = {"address" if name == "grpc" else f"{name}_address": value for name, value in addresses.items()}
            log(_log, logging.INFO, "listening", **{**describe(self._settings), **bound})
            readiness = asyncio.create_task(self._watch_readiness(health_state, check, addresses))
            await self._stopping.wait()
            readiness.cancel()
            with suppress(asyncio.CancelledError):
                await readiness
            await self._stop(health_state)
        log(_log, logging.INFO, "stopped")
        return 1 if self._broken.is_set() else 0

    def fail(self, error: Exception) -> None:
        """Has the server end with exit code 1, soon, because it cannot recover by itself; returns at once.

        Calls in progress get a short grace; then the process ends even if a thread of it hangs, see `process.end_soon`.
        For use on the event loop. Calling it again does nothing.
        """
        if not self._broken.is_set():
            log(_log, logging.CRITICAL, "broken", reason=str(error) or type(error).__name__)
            self._broken.set()
            self._stopping.set()
            process.end_soon()

    async def _stop(self, health_state: Health) -> None:
        """Ends calls in order: says that the server is going, refuses calls, and waits for those in progress."""
        grace = self._settings.grace
        if self._broken.is_set():
            await health_state.set_dead()
        else:
            log(_log, logging.INFO, "draining", drain_delay=self._settings.drain_delay, grace=grace)
            await health_state.set_ready(False)
            self._stopping.clear()  # a second signal cuts the wait short
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), self._settings.drain_delay)
        self.draining.set()
        self._servicer.end_watches()
        if self._broken.is_set():
            await self.grpc.stop(min(grace, _BROKEN_GRACE))
            return
        stopping = asyncio.create_task(self.grpc.stop(grace))
        broken = asyncio.create_task(self._broken.wait())
        await asyncio.wait((stopping, broken), return_when=asyncio.FIRST_COMPLETED)
        broken.cancel()
        if self._broken.is_set():
            await health_state.set_dead()
            # The shorter grace holds. Two that end at the same time can crash gRPC.
            if grace > 2 * _BROKEN_GRACE and not stopping.done():
                await self.grpc.stop(_BROKEN_GRACE)
        await stopping

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
        self, health_state: Health, check: Callable[[], Awaitable[None]], addresses: dict[str, str]
    ) -> None:
        serving: bool | None = None
        while True:
            try:
                await asyncio.wait_for(check(), max(1.0, self._settings.readiness_interval))
                ready = True
            except Broken as error:
                self.fail(error)
                return
            except Exception as error:
                ready = False
                if serving is not False:
                    log(_log, logging.WARNING, "not ready", reason=str(error) or type(error).__name__)
            if ready is not serving:
                await health_state.set_ready(ready)
                if ready:
                    log(_log, logging.INFO, "serving")
                    if self._settings.address_file:
                        _write_atomically(self._settings.address_file, json.dumps(addresses))
                serving = ready
            # Until it is ready for the first time somebody waits for it: look more often.
            await asyncio.sleep(self._settings.readiness_interval if serving else 0.2)


def _milliseconds(seconds: float | None) -> int:
    """As gRPC wants a time; INT_MAX is its word for never."""
    return 2**31 - 1 if seconds is None else round(seconds * 1000)


@contextmanager
def _serving_metrics(address: str) -> Iterator[str]:
    host, _, port = address.rpartition(":")
    try:
        server, thread = start_http_server(int(port), host)
    except OSError as error:
        raise OSError(f"cannot serve metrics on {address}: {error.strerror}") from None
    try:
        yield f"{host}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text)
    temporary.replace(path)
