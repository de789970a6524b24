"""A small server in the process of the tests, and what they ask of it."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import grpc
import pytest
import small_server
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2_grpc

import service_kit
from lookalike.channel import connect_aio
from lookalike.embedder.v1 import embedder_pb2, embedder_pb2_grpc
from lookalike.security import PLAINTEXT
from service_kit import sharing
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
async def start(check=ready, access=small_server.ACCESS, security=PLAINTEXT, caller_of=sharing.by_tenant, **settings):
    address, metrics = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    settings = {"drain_delay": 0.0, "readiness_interval": 0.1, "grace": 5.0, **settings}
    server = Server(ServerSettings(address=address, metrics_address=metrics, **settings), access, caller_of)
    release = asyncio.Event()
    servicer = small_server.SmallServicer(release.wait, server.fail)
    embedder_pb2_grpc.add_EmbedderServiceServicer_to_server(servicer, server.grpc)
    task = asyncio.create_task(server.run([small_server.SERVICE], check))
    async with connect_aio(address, security=security, retry=False) as channel:
        await asyncio.wait_for(channel.channel_ready(), 10)
        running = Running(server, address, metrics, task, servicer, channel, release)
        try:
            yield running
        finally:
            if not task.done():
                assert await running.stop() == 0


@contextmanager
def processes():
    """Starts small servers as processes, and returns each once it has logged the event `until`, if any."""
    environment = {**os.environ, "PYTHONPATH": str(Path(service_kit.__file__).parents[1])}
    started = []

    def start(*flags, until="serving", **variables):
        process = subprocess.Popen(
            [sys.executable, small_server.__file__, "--log-format=json", "--drain-delay=0", *flags],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**environment, **variables},
        )
        started.append(process)
        events = []
        while until and (not events or events[-1]["event"] != until):
            events.append(json.loads(process.stderr.readline()))
        return process, {name: value for event in events for name, value in event.items()}

    try:
        yield start
    finally:
        for process in started:
            process.kill()
            process.communicate()


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
