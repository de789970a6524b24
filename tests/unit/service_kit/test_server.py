"""The life cycle of a real server on loopback, and what its interceptor does around every call."""

import asyncio
import json
import os
import signal
import socket
import time
import urllib.request

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_status import rpc_status
from hostile_frames import call_frames
from prometheus_client import REGISTRY
from running_server import code_of, ready, watch
from small_server import ACCESS, SERVICE

from lookalike.embedder.v1 import embedder_pb2, embedder_pb2_grpc
from service_kit.server import Server
from service_kit.settings import ServerSettings

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.mark.parametrize("service", ["", SERVICE])
async def test_health_follows_the_check(start, service):
    broken = True

    async def check():
        if broken:
            raise RuntimeError("no model")

    async with start(check) as running:
        status = watch(running, service)
        assert await status() == NOT_SERVING
        broken = False
        assert await status() == SERVING
        broken = True
        assert await status() == NOT_SERVING
        broken = False
        assert await status() == SERVING


async def test_a_check_that_never_ends_counts_as_failed(start):
    hanging = False

    async def check():
        if hanging:
            await asyncio.Event().wait()

    async with start(check) as running:
        status = watch(running)
        while await status() != SERVING:
            pass
        hanging = True
        assert await status() == NOT_SERVING


async def test_the_address_file_appears_when_the_server_is_ready_and_goes_when_it_stops(start, tmp_path):
    path = tmp_path / "address.json"
    broken = True

    async def check():
        if broken:
            raise RuntimeError("no model")

    async with start(check, address_file=path) as running:
        status = watch(running)
        assert await status() == NOT_SERVING
        assert not path.exists()
        broken = False
        assert await status() == SERVING
        assert await running.embed(b"ok")
        assert json.loads(path.read_text()) == {"grpc": running.address, "metrics": running.metrics}
    assert not path.exists()


async def test_a_call_in_flight_finishes_after_sigterm(start):
    async with start(drain_delay=0.05) as running:
        status = watch(running)
        while await status() != SERVING:
            pass
        call = asyncio.create_task(running.embed(b"hold"))
        await running.servicer.holding.wait()
        stopping = asyncio.create_task(running.stop())
        assert await status() == NOT_SERVING  # told before calls are refused
        running.release.set()
        assert (await call).model_fingerprint == "abc"
        assert await stopping == 0


async def test_a_call_that_outlasts_the_grace_is_cut_off(start):
    async with start(grace=0.05) as running:
        call = asyncio.create_task(running.embed(b"hold"))
        await running.servicer.holding.wait()
        assert await running.stop() == 0
        assert (await code_of(call)).code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)


async def test_a_second_signal_cuts_the_drain_delay_short(start):
    async with start(drain_delay=3600.0) as running:
        status = watch(running)
        while await status() != SERVING:
            pass
        stopping = asyncio.create_task(running.stop())
        assert await status() == NOT_SERVING
        os.kill(os.getpid(), signal.SIGTERM)
        assert await asyncio.wait_for(stopping, 10) == 0


async def test_draining_begins_after_the_drain_delay_and_before_calls_are_cut_off(start):
    async with start(drain_delay=3600.0, grace=3600.0) as running:
        status = watch(running)
        while await status() != SERVING:
            pass
        call = asyncio.create_task(running.embed(b"hold"))
        await running.servicer.holding.wait()
        stopping = asyncio.create_task(running.stop())
        assert await status() == NOT_SERVING
        assert not running.server.draining.is_set()
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(running.server.draining.wait(), 10)
        running.release.set()
        assert (await call).model_fingerprint == "abc"
        assert await stopping == 0


async def test_a_full_server_refuses_calls_and_still_answers_health_checks_and_reflection(start):
    async with start(max_concurrent_rpcs=1) as running:
        held = asyncio.create_task(running.embed(b"hold"))
        await running.servicer.holding.wait()
        refused = running.call(b"ok")
        assert (await code_of(refused)).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        info = error_details_pb2.RetryInfo()
        assert (await rpc_status.aio.from_call(refused)).details[0].Unpack(info)
        assert info.retry_delay.ToNanoseconds() > 0
        assert (await running.health.Check(health_pb2.HealthCheckRequest())).status == SERVING
        lookup = running.reflection.ServerReflectionInfo()
        await lookup.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        assert (await lookup.read()).list_services_response.service
        lookup.cancel()
        running.release.set()
        await held
        assert await running.embed(b"ok")


@pytest.mark.parametrize("image", [b"wrong", b"bug"])
async def test_a_call_that_fails_gives_its_place_back(start, image):
    async with start(max_concurrent_rpcs=1) as running:
        await code_of(running.embed(image))
        assert await running.embed(b"ok")


async def test_a_call_that_its_caller_cancels_gives_its_place_back(start):
    async with start(max_concurrent_rpcs=1) as running:
        held = running.call(b"hold")
        await running.servicer.holding.wait()
        assert (await code_of(running.embed(b"ok"))).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        held.cancel()
        async with asyncio.timeout(10):
            while True:  # the server hears of it a moment later
                try:
                    assert await running.embed(b"ok")
                    break
                except grpc.aio.AioRpcError as error:
                    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # noqa: PT017


async def test_health_checks_are_bounded_too(start, monkeypatch):
    monkeypatch.setattr("service_kit.server._SPARE_CALLS", 1)
    async with start(max_concurrent_rpcs=1) as running:
        watches = [watch(running), watch(running)]
        for status in watches:
            await status()
        error = await code_of(running.health.Check(health_pb2.HealthCheckRequest()))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_request_that_is_no_message_is_the_callers_fault_and_leaves_no_stack_trace(start, caplog):
    async with start() as running:
        embed = running.channel.unary_unary(f"/{SERVICE}/Embed")
        error = await code_of(embed(b"\xff\xff"))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        stream = running.channel.stream_stream(f"/{SERVICE}/EmbedStream")(iter([b"\xff\xff"]))
        assert (await code_of(stream.read())).code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "DecodeError" not in caplog.text
    assert "call failed" not in caplog.text


def test_a_server_whose_grpc_takes_no_more_calls_ends_for_another_to_be_started(start_process):
    process, said = start_process("--address", "127.0.0.1:0", "--metrics-address", "127.0.0.1:0")
    host, _, port = said["address"].rpartition(":")
    # A call that goes on would have gRPC wait for ever.
    with grpc.insecure_channel(said["address"]) as channel, socket.create_connection((host, int(port))) as connection:
        call = embedder_pb2_grpc.EmbedderServiceStub(channel).Embed.future(embedder_pb2.EmbedRequest(image=b"hold"))
        connection.sendall(call_frames(b"/a/\xff"))  # no UTF-8
        assert process.wait(30) == 1
        assert call.exception(30).code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)
    assert "gRPC takes no more calls" in process.stderr.read()


async def test_reflection_lists_the_services(start):
    async with start() as running:
        call = running.reflection.ServerReflectionInfo()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        names = {service.name for service in (await call.read()).list_services_response.service}
        call.cancel()
        assert {SERVICE, "grpc.health.v1.Health"} <= names


async def test_reflection_can_be_switched_off(start):
    async with start(reflection=False) as running:
        call = running.reflection.ServerReflectionInfo()
        error = await code_of(call.read())
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_port_in_use_is_named(start):
    async with start() as running:
        other = Server(ServerSettings(address=running.address), ACCESS)
        with pytest.raises(OSError, match=f"cannot serve on {running.address}: the port is in use"):
            await other.run([SERVICE], ready)


async def test_a_metrics_port_in_use_is_named(start):
    async with start() as running:
        other = Server(ServerSettings(metrics_address=running.metrics), ACCESS)
        with pytest.raises(OSError, match=f"cannot serve metrics on {running.metrics}: Address already in use"):
            await other.run([SERVICE], ready)


async def test_a_service_error_becomes_its_code_and_message(start):
    async with start() as running:
        error = await code_of(running.embed(b"wrong"))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert error.details() == "the image is wrong"


async def test_a_full_queue_says_when_to_try_again(start):
    async with start() as running:
        call = running.stub.Embed(embedder_pb2.EmbedRequest(image=b"full"))
        assert (await code_of(call)).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        status = await rpc_status.aio.from_call(call)
        info = error_details_pb2.RetryInfo()
        assert status.details[0].Unpack(info)
        assert info.retry_delay.ToNanoseconds() == 2_500_000_000


async def test_an_unknown_exception_is_internal_and_its_text_stays_in_the_log(start, caplog):
    async with start() as running:
        error = await code_of(running.embed(b"bug"))
        assert error.code() is grpc.StatusCode.INTERNAL
        assert "secret" not in error.details()
        assert "secret detail" in caplog.text


async def test_a_slow_call_is_logged_with_its_code(start, caplog):
    def slow():
        return [record.fields for record in caplog.records if record.message == "slow call"]

    async with start(slow_call=0.0) as running:
        assert (await code_of(running.embed(b"full"))).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    # Now that the server has ended: a call is logged after its answer.
    (fields,) = slow()  # and none of the health check
    assert (fields["method"], fields["code"]) == ("Embed", "RESOURCE_EXHAUSTED")
    assert fields["seconds"] >= 0
    caplog.clear()
    async with start(slow_call=60.0) as running:
        await running.embed(b"ok")
    assert slow() == []


async def test_an_error_within_a_stream_becomes_its_code_after_the_responses_before_it(start):
    async with start() as running:
        requests = [
            embedder_pb2.EmbedStreamRequest(correlation_id="1", image=b"ok"),
            embedder_pb2.EmbedStreamRequest(correlation_id="2", image=b"wrong"),
        ]
        call = running.stub.EmbedStream(iter(requests))
        assert (await call.read()).correlation_id == "1"
        assert (await code_of(call.read())).code() is grpc.StatusCode.UNIMPLEMENTED


def sample(name, **labels):
    return REGISTRY.get_sample_value(name, {"grpc_service": SERVICE, **labels}) or 0.0


@pytest.mark.parametrize(
    ("image", "code"),
    [(b"ok", "OK"), (b"wrong", "InvalidArgument"), (b"full", "ResourceExhausted"), (b"bug", "Internal")],
)
async def test_calls_are_counted_by_method_and_code(start, image, code):
    def counts():
        return (
            sample("grpc_server_started_total", grpc_method="Embed"),
            sample("grpc_server_handled_total", grpc_method="Embed", grpc_code=code),
            sample("grpc_server_handling_seconds_count", grpc_method="Embed"),
        )

    before = counts()
    async with start() as running:
        await asyncio.gather(running.embed(image), return_exceptions=True)
    assert counts() == tuple(count + 1 for count in before)


async def test_a_call_that_its_caller_cancels_is_counted_as_cancelled(start):
    def count():
        return sample("grpc_server_handled_total", grpc_method="Embed", grpc_code="Cancelled")

    before = count()
    async with start() as running:
        call = asyncio.create_task(running.embed(b"hold"))
        await running.servicer.holding.wait()
        call.cancel()
    assert count() == before + 1


async def test_how_late_the_event_loop_is_is_measured(start):
    def late():
        name = "server_event_loop_delay_seconds"
        return (REGISTRY.get_sample_value(f"{name}_count") or 0) - (
            REGISTRY.get_sample_value(f"{name}_bucket", {"le": "0.1"}) or 0
        )

    before = late()
    async with start(), asyncio.timeout(20):
        while late() == before:
            time.sleep(0.2)  # noqa: ASYNC251 - in which the loop does nothing that is due
            await asyncio.sleep(0.01)


async def test_metrics_are_served_over_http(start):
    async with start() as running:
        await running.embed(b"ok")
        page = await asyncio.to_thread(
            lambda: urllib.request.urlopen(f"http://{running.metrics}/metrics").read().decode()
        )
    assert f'grpc_server_handled_total{{grpc_code="OK",grpc_method="Embed",grpc_service="{SERVICE}"}}' in page


async def test_a_client_connects_anew_after_the_connection_age_and_its_calls_go_on(start):
    async with start(max_connection_age=1.0) as running:
        held = running.call(b"hold")
        await running.servicer.holding.wait()
        await asyncio.wait_for(running.channel.wait_for_state_change(grpc.ChannelConnectivity.READY), 10)
        running.release.set()
        assert (await held).model_fingerprint == "abc"
        assert (await running.embed(b"ok")).model_fingerprint == "abc"
