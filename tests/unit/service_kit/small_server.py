# ruff: noqa: N802 - the names of methods are gRPC's
"""A small service under a real `service_kit` server. As a process: python small_server.py [FLAGS]."""

import asyncio
import sys
import time

from lookalike.embedder.v1 import embedder_pb2, embedder_pb2_grpc
from service_kit import calls, process, tracing
from service_kit.access import Needs
from service_kit.errors import Broken, FailedPrecondition, InvalidArgument, ResourceExhausted, Unimplemented
from service_kit.identity import Role
from service_kit.server import Server
from service_kit.settings import ServerSettings

SERVICE = "lookalike.embedder.v1.EmbedderService"
ACCESS = {SERVICE: dict.fromkeys(("GetModel", "Embed", "EmbedBatch", "EmbedStream"), Needs(Role.READ, shared=True))}


class SmallServicer(embedder_pb2_grpc.EmbedderServiceServicer):
    """Does what the image's bytes say. `hold` is awaited by the calls that stay in flight; `fail` ends the server."""

    def __init__(self, hold, fail):
        self._hold = hold
        self._fail = fail
        self.holding = asyncio.Event()
        self.held = 0

    async def GetModel(self, request, context):
        return embedder_pb2.GetModelResponse()

    async def Embed(self, request, context):
        match request.image:
            case b"wrong":
                raise InvalidArgument("the image is wrong")
            case b"stages":
                with tracing.span("decode", pixels=4):
                    await asyncio.to_thread(hash, request.image)
                now = time.monotonic()
                tracing.record("queue", now - 2.0, now - 0.5)
            case b"full":
                raise ResourceExhausted("the queue is full", retry_after=2.5)
            case b"bug":
                raise RuntimeError("secret detail")
            case b"timed":
                calls.add_trailing_metadata(context, ("lookalike-timing-run", "0.5"))
            case b"timed, wrong":
                calls.add_trailing_metadata(context, ("lookalike-timing-run", "0.5"))
                raise InvalidArgument("the image is wrong")
            case b"break":
                self._fail(Broken("the worker is lost"))
            case b"hold":
                self.held += 1
                self.holding.set()
                await self._hold()
        return embedder_pb2.EmbedResponse(model_fingerprint="abc")

    async def EmbedBatch(self, request, context):
        return embedder_pb2.EmbedBatchResponse()

    async def EmbedStream(self, request_iterator, context):
        async for request in request_iterator:
            if request.image == b"wrong":
                raise Unimplemented("no streams of wrong images")
            yield embedder_pb2.EmbedStreamResponse(correlation_id=request.correlation_id)
            if request.image == b"hold":
                await self._hold()


async def serve(settings):
    server = Server(settings, ACCESS)
    # Calls in flight end when a line comes on the standard input.
    servicer = SmallServicer(lambda: asyncio.to_thread(sys.stdin.readline), server.fail)
    embedder_pb2_grpc.add_EmbedderServiceServicer_to_server(servicer, server.grpc)

    async def check():
        if settings.log_level == "DEBUG":
            raise FailedPrecondition("never ready")

    return await server.run([SERVICE], check)


if __name__ == "__main__":
    sys.exit(process.run(ServerSettings, "SMALL", serve))
