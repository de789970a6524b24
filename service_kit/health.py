"""The health service, grpc.health.v1."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2


class Health(health.aio.HealthServicer):
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
