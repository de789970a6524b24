"""A small server in the process of the tests, and what they ask of it."""

import asyncio
import os
import signal
import socket
from contextlib import asynccontextmanager

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2_grpc
from small_server import ACCESS, SERVICE, SmallServicer

from lookalike.channel import connect_aio
from lookalike.embedder.v1 import embedder_pb2, embedder_pb2_grpc
from lookalike.security import PLAINTEXT
from service_kit.server import Server
from service_kit.settings import ServerSettings


class Running:
    """A server in this process, its servicer and a channel to it."""

    def __init__(self, server, address, metrics, task, servicer, channel, release):
        self.server = server
        self.address = address
        self.metrics = metrics
        self.task = task
        self.servicer = servicer
        self.release = release
        self.channel = channel
        self.stub = embedder_pb2_grpc.EmbedderServiceStub(channel)
        self.health = health_pb2_grpc.HealthStub(channel)
        self.reflection = reflection_pb2_grpc.ServerReflectionStub(channel)

    def call(self, image, **options):
        return self.stub.Embed(embedder_pb2.EmbedRequest(image=image), **options)

    async def embed(self, image):
        return await self.call(image)

    async def stop(self):
        os.kill(os.getpid(), signal.SIGTERM)
        return await self.task


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


async def ready():
    pass


@asynccontextmanager
async def start(check=ready, access=ACCESS, security=PLAINTEXT, **settings):
    address, metrics = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    settings = {"drain_delay": 0.0, "readiness_interval": 0.1, "grace": 5.0, **settings}
    server = Server(ServerSettings(address=address, metrics_address=metrics, **settings), access)
    release = asyncio.Event()
    servicer = SmallServicer(release.wait, server.fail)
    embedder_pb2_grpc.add_EmbedderServiceServicer_to_server(servicer, server.grpc)
    task = asyncio.create_task(server.run([SERVICE], check))
    async with connect_aio(address, security=security, retry=False) as channel:
        await asyncio.wait_for(channel.channel_ready(), 10)
        running = Running(server, address, metrics, task, servicer, channel, release)
        try:
            yield running
        finally:
            if not task.done():
                assert await running.stop() == 0


def watch(running, service=""):
    """Returns a function that awaits the next change of a service's health."""
    stream = running.health.Watch(health_pb2.HealthCheckRequest(service=service))

    async def status():
        return (await asyncio.wait_for(stream.read(), 10)).status

    return status


async def code_of(call):
    """Returns the error with which a call ends."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value
