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
from prometheus_client import Histogram, start_http_server

from lookalike.addresses import is_local
from lookalike.channel import KEEPALIVE_SECONDS, PING_TIMEOUT_OPTION
from service_kit import process, sharing
from service_kit.access import AccessTable
from service_kit.certificates import ServerCertificate
from service_kit.errors import Broken, FailedPrecondition
from service_kit.health import Health, HealthServicer
from service_kit.health_port import HealthPort
from service_kit.interceptor import CallInterceptor
from service_kit.logs import log
from service_kit.reloading import Reloaded
from service_kit.settings import ServerSettings, describe
from service_kit.sharing import CallerOf
from service_kit.tokens import Tokens

# Calls beyond the limit that gRPC lets in: those to health and reflection, and those that are just being refused.
_SPARE_CALLS = 256
_BROKEN_GRACE = 2.0  # seconds
_GRPC_SECONDS = 0.5  # between two looks at whether gRPC still takes calls
_LOOP_SECONDS = 0.5  # between two looks at how late the event loop is
_LOOP_DELAY = Histogram(
    "server_event_loop_delay_seconds",
    "How late the event loop does what is due. It begins one call each time that it comes round.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
)
_log = logging.getLogger(__name__)


class Server:
    """A gRPC server with TLS, tokens, health, reflection, metrics and a graceful end.

    Register services on `grpc`, then await `run`.

    Attributes:
        grpc: the server that calls come to.
        draining: set when the server stops to take calls and waits for those in progress. Streams that would go on for
            ever stop reading then, finish what they have read and end; what is left after the grace is cut off.
    """

    def __init__(
        self, settings: ServerSettings, access: AccessTable, caller_of: CallerOf = sharing.by_tenant, turns: int = 16
    ) -> None:
        """
        Args:
            settings: whose files of certificates and tokens are read now.
            access: what each method of the services asks of its caller.
            caller_of: names whom a call is made for: who may have so many calls in progress, and takes turns.
            turns: calls of each caller that are worked on at a time while there are several, unless the settings tell.

        Raises:
            FailedPrecondition: these files are not what they should be, or others could reach a server without TLS.
        """
        self._settings = settings
        self._certificate = _certificate(settings)
        self._tokens = _tokens(settings)
        self.grpc = grpc.aio.server(
            interceptors=(CallInterceptor(settings, access, self._tokens, caller_of, turns),),
            maximum_concurrent_rpcs=settings.max_concurrent_rpcs + _SPARE_CALLS,
            options=(
                ("grpc.max_receive_message_length", settings.max_message_bytes),
                ("grpc.max_send_message_length", settings.max_message_bytes),
                # Two servers on one port would each get a part of the calls, silently.
                ("grpc.so_reuseport", 0),
                ("grpc.max_allowed_incoming_connections", settings.max_connections),
                # Calls come faster than the event loop takes them, one at a time: what waits for it waits in vain when
                # that takes longer than its deadline, and so does everything behind.
                ("grpc.server.max_pending_requests", settings.max_pending_rpcs),
                ("grpc.server.max_pending_requests_hard_limit", 2 * settings.max_pending_rpcs),
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
                # A client behind a dead connection would keep its streams, and their places, for two hours.
                ("grpc.keepalive_time_ms", KEEPALIVE_SECONDS * 1000),
                ("grpc.keepalive_timeout_ms", KEEPALIVE_SECONDS * 1000),
                (PING_TIMEOUT_OPTION, KEEPALIVE_SECONDS * 1000),
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
            watches = [
                asyncio.create_task(self._watch_readiness(health_state, check, addresses)),
                asyncio.create_task(self._watch_grpc()),
                asyncio.create_task(_watch_loop()),
                *(asyncio.create_task(each.watch()) for each in (self._certificate, self._tokens) if each is not None),
            ]
            await self._stopping.wait()
            for watch in watches:
                watch.cancel()
            await asyncio.gather(*watches, return_exceptions=True)
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
        address = self._settings.address
        try:
            if self._certificate is None:
                port = self.grpc.add_insecure_port(address)
            else:
                port = self.grpc.add_secure_port(address, self._certificate.credentials())
        except RuntimeError:
            port = 0
        if port == 0:
            raise OSError(f"cannot serve on {address}: the port is in use, or the address is not this host's")
        return address if address.startswith("unix") else f"{address.rpartition(':')[0]}:{port}"

    async def _watch_grpc(self) -> None:
        """Ends the process when gRPC takes no more calls: its loop ends, once and for all, by a request to a method
        whose name is no UTF-8, and says so to those alone who ask.
        """
        try:
            while await self.grpc.wait_for_termination(timeout=_GRPC_SECONDS):
                pass
        except Exception as error:
            self.fail(Broken(f"gRPC takes no more calls: {error}"))

    async def _watch_readiness(
        self, health_state: Health, check: Callable[[], Awaitable[None]], addresses: dict[str, str]
    ) -> None:
        serving: bool | None = None
        told = self._settings.address_file is None
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
                serving = ready
            if ready and not told:
                told = self._tell(addresses)
            # Until it is ready for the first time somebody waits for it: look more often.
            await asyncio.sleep(self._settings.readiness_interval if serving else 0.2)

    def _tell(self, addresses: dict[str, str]) -> bool:
        """Writes the address file, and returns whether it is there: on a full disk it may take some attempts."""
        assert self._settings.address_file
        try:
            _write_atomically(self._settings.address_file, json.dumps(addresses))
        except OSError as error:
            log(_log, logging.ERROR, "the address file cannot be written, and is tried again", reason=str(error))
            return False
        return True


async def _watch_loop() -> None:
    """Measures how busy the event loop is, until it is cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + _LOOP_SECONDS
        await asyncio.sleep(_LOOP_SECONDS)
        _LOOP_DELAY.observe(max(0.0, loop.time() - due))


def _certificate(settings: ServerSettings) -> ServerCertificate | None:
    """Returns what the server shows, or None where it may serve in plaintext."""
    if settings.tls_cert is not None and settings.tls_key is not None:
        return ServerCertificate(settings.tls_cert, settings.tls_key, settings.tls_client_ca)
    if settings.tls_cert or settings.tls_key or settings.tls_client_ca:
        raise FailedPrecondition("TLS takes both a certificate and its key: give --tls-cert and --tls-key")
    if not (settings.insecure or is_local(settings.address)):
        raise FailedPrecondition(
            f"cannot serve on {settings.address} without TLS: others could read and change what is sent. Give "
            "--tls-cert and --tls-key, and for who may call --tokens or --tls-client-ca; or --insecure, where the "
            "network itself keeps others out"
        )
    return None


def _tokens(settings: ServerSettings) -> Reloaded[Tokens] | None:
    """Returns who may call, or None where nobody is asked."""
    if settings.tokens is not None:
        return Reloaded("tokens", [settings.tokens], lambda contents: Tokens.parse(contents[0]))
    if not (settings.tls_client_ca or is_local(settings.address)):
        log(_log, logging.WARNING, "whoever reaches the server may do everything: give --tokens or --tls-client-ca")
    return None


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
    try:
        temporary.write_text(text)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
