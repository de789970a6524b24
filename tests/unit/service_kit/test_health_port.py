"""What health checks are told by name, on the server's port and on the one apart."""

import asyncio
import json
import signal
import socket

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from running_server import code_of, free_port
from small_server import SERVICE

from lookalike.embedder.v1 import embedder_pb2, embedder_pb2_grpc
from service_kit.server import Server
from service_kit.settings import ServerSettings

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
NAMES = ("startup", "readiness", "liveness", "", SERVICE)


def probe(address, name):
    """Asks as a kubelet does, with a connection of its own."""
    with grpc.insecure_channel(address) as channel:
        request = health_pb2.HealthCheckRequest(service=name)
        return health_pb2_grpc.HealthStub(channel).Check(request, timeout=5).status


async def told(*addresses):
    """Returns what each address says of every name, after making sure that all say the same."""
    answers = [[await asyncio.to_thread(probe, address, name) for name in NAMES] for address in addresses]
    assert all(answer == answers[0] for answer in answers)
    return dict(zip(NAMES, answers[0], strict=True))


def ready_names(status):
    return {"readiness": status, "": status, SERVICE: status}


async def until(name, status, address):
    """Waits on the port apart until it says so."""
    async with grpc.aio.insecure_channel(address) as channel, asyncio.timeout(10):
        changes = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=name))
        while (await changes.read()).status != status:
            pass
        changes.cancel()


async def test_both_ports_tell_the_same_from_start_to_drain(start):
    broken = True

    async def check():
        if broken:
            raise RuntimeError("no model")

    apart = f"127.0.0.1:{free_port()}"
    async with start(check, health_address=apart, drain_delay=3600.0) as running:
        both = (running.address, apart)
        assert await told(*both) == {"startup": NOT_SERVING, "liveness": SERVING, **ready_names(NOT_SERVING)}
        broken = False
        await until("", SERVING, apart)
        assert await told(*both) == dict.fromkeys(NAMES, SERVING)
        broken = True
        await until("", NOT_SERVING, apart)
        assert await told(*both) == {"startup": SERVING, "liveness": SERVING, **ready_names(NOT_SERVING)}
        broken = False
        await until("", SERVING, apart)
        stopping = asyncio.create_task(running.stop())
        await until("", NOT_SERVING, apart)
        assert await told(*both) == {"startup": SERVING, "liveness": SERVING, **ready_names(NOT_SERVING)}
        signal.raise_signal(signal.SIGTERM)
        assert await stopping == 0
    with pytest.raises(grpc.RpcError):
        probe(apart, "")


async def test_the_port_apart_serves_health_checks_alone(start):
    apart = f"127.0.0.1:{free_port()}"
    async with start(health_address=apart), grpc.aio.insecure_channel(apart) as channel:
        call = embedder_pb2_grpc.EmbedderServiceStub(channel).GetModel(embedder_pb2.GetModelRequest())
        assert (await code_of(call)).code() is grpc.StatusCode.UNIMPLEMENTED
        unknown = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service="nobody"))
        assert (await code_of(unknown)).code() is grpc.StatusCode.NOT_FOUND


async def test_a_busy_event_loop_does_not_delay_answers_and_a_stuck_one_is_told_of(start, caplog):
    apart = f"127.0.0.1:{free_port()}"
    async with start(health_address=apart, liveness_timeout=1.0):
        await until("liveness", SERVING, apart)
        # From here on the loop does nothing but these questions, so whoever answers is not on it.
        assert probe(apart, "liveness") == SERVING
        while probe(apart, "liveness") == SERVING:
            pass
        assert probe(apart, "readiness") == NOT_SERVING
        await until("liveness", SERVING, apart)
        await until("readiness", SERVING, apart)
    [hang] = [record for record in caplog.records if record.getMessage() == "the event loop hangs"]
    assert "in probe" in hang.fields["stack"]


async def test_a_port_in_use_is_named():
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        server = Server(ServerSettings(health_address=address), {})
        with pytest.raises(OSError, match=f"cannot serve health checks on {address}: the port is in use"):
            await server.run([SERVICE], lambda: None)


async def test_the_address_file_names_the_port(start, tmp_path):
    path = tmp_path / "address.json"
    async with start(health_address="127.0.0.1:0", address_file=path) as running:
        async with asyncio.timeout(10):
            await until("", SERVING, running.address)
        address = json.loads(path.read_text())["health"]
        assert await asyncio.to_thread(probe, address, "") == SERVING
