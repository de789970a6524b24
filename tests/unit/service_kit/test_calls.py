"""The id of a request: where it comes from, and where it goes; and the metadata that goes back with a call."""

import asyncio
import json
import re

import grpc
import pytest
from grpc_status import rpc_status
from running_server import code_of
from small_server import SERVICE

from lookalike.embedder.v1 import embedder_pb2
from service_kit import calls

KEY = "lookalike-request-id"


async def returned(call):
    """Returns the values of the request id with which a call ended."""
    return [value for key, value in await call.trailing_metadata() if key == KEY]


@pytest.mark.parametrize("image", [b"ok", b"wrong", b"full", b"bug", b"timed", b"timed, wrong"])
async def test_every_end_of_a_call_returns_the_callers_id(start, image):
    async with start() as running:
        assert await returned(running.call(image, metadata=((KEY, "from the caller"),))) == ["from the caller"]


async def test_streams_refused_unknown_and_damaged_calls_return_it_too(start):
    metadata = ((KEY, "a-1"),)
    async with start(max_concurrent_rpcs=1) as running:
        stream = running.stub.EmbedStream(iter([embedder_pb2.EmbedStreamRequest()]), metadata=metadata)
        assert [response async for response in stream]
        assert await returned(stream) == ["a-1"]
        damaged = running.channel.unary_unary(f"/{SERVICE}/Embed")(b"\xff", metadata=metadata)
        assert await returned(damaged) == ["a-1"]
        unknown = running.channel.unary_unary(f"/{SERVICE}/Nothing")(b"", metadata=metadata)
        assert await unknown.code() is grpc.StatusCode.UNIMPLEMENTED
        assert await returned(unknown) == ["a-1"]
        held = running.call(b"hold", metadata=metadata)
        await running.servicer.holding.wait()
        assert await returned(running.call(b"ok", metadata=metadata)) == ["a-1"]
        running.release.set()
        assert await returned(held) == ["a-1"]


@pytest.mark.parametrize("metadata", [(), ((KEY, ""),), ((KEY, "x" * 129),)])
async def test_without_a_usable_id_each_call_gets_one_of_its_own(start, metadata):
    async with start() as running:
        first = await returned(running.call(b"ok", metadata=metadata))
        second = await returned(running.call(b"ok", metadata=metadata))
    for [made] in (first, second):
        assert re.fullmatch("[0-9a-f]{16}", made)
    assert first != second


async def test_the_longest_id_is_taken(start):
    async with start() as running:
        assert await returned(running.call(b"ok", metadata=((KEY, "x" * 128),))) == ["x" * 128]


@pytest.mark.parametrize("image", [b"timed", b"timed, wrong"])
async def test_what_a_handler_adds_goes_back_beside_it(start, image):
    async with start() as running:
        assert ("lookalike-timing-run", "0.5") in tuple(await running.call(image).trailing_metadata())


async def test_the_details_of_an_error_go_back_beside_what_a_handler_added(start):
    async with start() as running:
        call = running.call(b"timed, wrong")
        assert (await code_of(call)).code() is grpc.StatusCode.INVALID_ARGUMENT
        assert (await rpc_status.aio.from_call(call)).message == "the image is wrong"


def in_a_call(request_id, work):
    async def call():
        calls.begin(((KEY, request_id),))
        return await work()

    return asyncio.create_task(call())


async def test_calls_at_the_same_time_keep_their_ids_apart_and_pass_them_on():
    meeting = asyncio.Barrier(2)

    async def work():
        await meeting.wait()
        return calls.request_id(), calls.outgoing_metadata(), await asyncio.to_thread(calls.request_id)

    found = await asyncio.gather(in_a_call("a", work), in_a_call("b", work))
    assert found == [(name, ((KEY, name),), name) for name in ("a", "b")]
    assert calls.request_id() == ""
    assert calls.outgoing_metadata() == ()


def lines_until(process, event):
    found = []
    while not found or found[-1]["event"] != event:
        found.append(json.loads(process.stderr.readline()))
    return found


def embed(target, image, request_id):
    with grpc.insecure_channel(target) as channel:
        call = channel.unary_unary(f"/{SERVICE}/Embed")
        request = embedder_pb2.EmbedRequest(image=image).SerializeToString()
        call(request, timeout=10, metadata=((KEY, request_id),))


def test_a_server_fault_is_logged_with_the_id_and_a_refusal_is_not_logged(start_process):
    process, events = start_process()
    for image in (b"wrong", b"full", b"bug"):
        with pytest.raises(grpc.RpcError):
            embed(events["address"], image, f"id of {image.decode()}")
    [failed] = lines_until(process, "call failed")
    assert (failed["severity"], failed["request_id"]) == ("ERROR", "id of bug")
    assert "secret detail" in failed["exception"]


def test_debug_logs_every_end_of_a_call(start_process):
    process, events = start_process("--log-level=DEBUG", until="not ready")
    with pytest.raises(grpc.RpcError):
        embed(events["address"], b"full", "a-1")
    ended = lines_until(process, "call ended")[-1]
    assert (ended["severity"], ended["service"], ended["method"]) == ("DEBUG", SERVICE, "Embed")
    assert (ended["code"], ended["request_id"]) == ("RESOURCE_EXHAUSTED", "a-1")
    assert ended["peer"].startswith("ipv4:127.0.0.1:")
    assert 0 < ended["seconds"] < 10


def test_a_console_line_has_the_id_as_well(start_process):
    process, _ = start_process("--log-format=console", until=None)
    address = re.search(r" address=(\S+)", process.stderr.readline()).group(1)
    with pytest.raises(grpc.RpcError):
        embed(address, b"bug", "a 1")
    while "call failed" not in (line := process.stderr.readline()):
        assert line
    assert line.endswith(' request_id="a 1"\n')
