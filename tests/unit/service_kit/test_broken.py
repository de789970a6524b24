"""The end of a server that cannot recover by itself."""

import asyncio
import faulthandler
import json
import logging
import threading

import grpc
from grpc_health.v1 import health_pb2
from running_server import code_of, ready, watch
from small_server import SERVICE

from lookalike.embedder.v1 import embedder_pb2, embedder_pb2_grpc
from service_kit import process
from service_kit.errors import Broken
from service_kit.server import Server
from service_kit.settings import ServerSettings

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def test_a_broken_server_says_so_gives_calls_a_short_grace_and_returns_1(start, caplog):
    async with start(grace=3600.0, drain_delay=3600.0) as running:
        liveness = watch(running, "liveness")
        assert await liveness() == SERVING
        held = asyncio.create_task(running.embed(b"hold"))
        await running.servicer.holding.wait()
        await running.embed(b"break")
        assert await liveness() == NOT_SERVING
        await asyncio.wait_for(running.server.draining.wait(), 10)
        assert (await code_of(held)).code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)
        assert await asyncio.wait_for(running.task, 10) == 1
    [line] = [record for record in caplog.records if record.getMessage() == "broken"]
    assert (line.levelname, line.fields["reason"]) == ("CRITICAL", "the worker is lost")


async def test_a_call_that_ends_within_the_short_grace_is_answered(start):
    async with start() as running:
        held = asyncio.create_task(running.embed(b"hold"))
        await running.servicer.holding.wait()
        await running.embed(b"break")
        await asyncio.wait_for(running.server.draining.wait(), 10)
        running.release.set()
        assert (await held).model_fingerprint == "abc"
        assert await asyncio.wait_for(running.task, 10) == 1


async def test_a_check_can_say_that_the_server_is_broken(start):
    broken = False

    async def check():
        if broken:
            raise Broken("the device is gone")

    async with start(check) as running:
        broken = True
        assert await asyncio.wait_for(running.task, 10) == 1


async def test_a_server_that_breaks_while_it_drains_does_not_wait_for_all_of_the_grace(start):
    async with start(grace=3600.0) as running:
        held = asyncio.create_task(running.embed(b"hold"))
        await running.servicer.holding.wait()
        stopping = asyncio.create_task(running.stop())
        await asyncio.wait_for(running.server.draining.wait(), 10)
        running.server.fail(Broken("the worker is lost"))
        await code_of(held)
        assert await asyncio.wait_for(stopping, 10) == 1


def test_the_process_ends_although_a_thread_hangs(start_process):
    server, events = start_process()
    with grpc.insecure_channel(events["address"]) as channel:
        stub = embedder_pb2_grpc.EmbedderServiceStub(channel)
        # Its thread reads from a pipe to which nobody writes.
        held = stub.Embed.future(embedder_pb2.EmbedRequest(image=b"hold"))
        stub.Embed(embedder_pb2.EmbedRequest(image=b"break"), timeout=10)
        assert held.exception(timeout=10).code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)
    assert server.wait(15) == 1
    log = server.stderr.read()
    assert json.loads(log.splitlines()[0])["event"] == "broken"
    assert '"event": "stopped"' in log  # it ended in order, but for the thread
    assert "Timeout (0:00:05)!" in log  # then come the stacks of its threads


def test_in_another_process_a_broken_server_just_returns(monkeypatch):
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])  # the logs are set up, and these are pytest's
    monkeypatch.setattr(root, "level", root.level)
    armed = threading.Event()
    monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda *_, **__: armed.set())

    async def serve(settings):
        server = Server(settings, {})
        asyncio.get_running_loop().call_soon(server.fail, Broken("the worker is lost"))
        return await server.run([SERVICE], ready)

    assert process.run(ServerSettings, "SMALL", serve, ["--grace=0"]) == 1
    assert not armed.is_set()
