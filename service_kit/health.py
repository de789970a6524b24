"""The health service, grpc.health.v1: what it says, and who is told.

Beside the server as a whole ("") and each of its services, which say whether calls are served, it has a name for each
probe of Kubernetes:

- `startup`: SERVING from when the server was ready for the first time;
- `readiness`: SERVING while calls are served, as "";
- `liveness`: NOT_SERVING when the server cannot recover by itself, and should be started again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2

from service_kit.health_port import HealthPort

STARTUP, READINESS, LIVENESS = "startup", "readiness", "liveness"
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Health:
    """What all health checks are told, on the server's port and on the one apart."""

    def __init__(self, servicer: HealthServicer, port: HealthPort | None, services: Sequence[str]) -> None:
        """
        Args:
            servicer: of the server's port.
            port: the one apart, if there is one.
            services: full names of the services.
        """
        self._servicer = servicer
        self._port = port
        self._ready_names = ("", READINESS, *services)

    async def begin(self) -> None:
        """Says that the server is alive, but not ready yet."""
        await self._set(STARTUP, False)
        await self._set(LIVENESS, True)
        await self.set_ready(False)

    async def set_ready(self, ready: bool) -> None:
        """Says whether calls are served."""
        for name in self._ready_names:
            await self._set(name, ready)
        if ready:
            await self._set(STARTUP, True)

    async def set_dead(self) -> None:
        """Says that the server cannot recover."""
        await self.set_ready(False)
        await self._set(LIVENESS, False)

    async def _set(self, name: str, serving: bool) -> None:
        await self._servicer.set(name, _SERVING if serving else _NOT_SERVING)
        if self._port:
            self._port.set(name, serving)


class HealthServicer(health.aio.HealthServicer):
    """The health service whose streams can be ended.

    A Watch lasts as long as its client wants: a server that waits for its calls to finish would always wait for all of
    the grace it gives them.
    """

    def __init__(self) -> None:
        super().__init__()
        self._ended = asyncio.Event()

    async def Watch(  # noqa: N802 - gRPC's name
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        """Writes the status of a service now and whenever it changes, until the client or `end_watches` ends it."""
        watch = asyncio.ensure_future(super().Watch(request, context))
        ended = asyncio.ensure_future(self._ended.wait())
        try:
            await asyncio.wait((watch, ended), return_when=asyncio.FIRST_COMPLETED)
        finally:
            watch.cancel()
            ended.cancel()

    def end_watches(self) -> None:
        """Ends every Watch, those to come included."""
        self._ended.set()
