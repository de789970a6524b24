"""What a server bears from callers who mean it ill or are broken: each limit at its edge, over real connections."""

import asyncio
import re
import threading
import zlib
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
import raw_http2 as http2
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2
from grpc_status import rpc_status
from raw_http2 import Connection
from running_server import code_of, processes
from small_server import SERVICE

from lookalike.embedder.v1 import embedder_pb2
from service_kit import sharing

GET_MODEL, EMBED, EMBED_STREAM = (f"/{SERVICE}/{method}" for method in ("GetModel", "Embed", "EmbedStream"))
CODES = {code.value[0]: code.name for code in grpc.StatusCode}


def ask(connection, stream=1, *metadata):
    """Makes a small call and returns the name of its status."""
    connection.send(http2.call(GET_MODEL, stream, *metadata), http2.message(b"", stream))
    return CODES[connection.status(stream)]


@pytest.fixture(scope="module")
def address():
    """A small server with a patience that suits tests."""
    with processes() as start:
        _, log = start(
            *("--handshake-timeout=1", "--request-timeout=1", "--stream-idle-timeout=1", "--max-connection-idle=2"),
            *("--max-connection-rpcs=3", "--max-metadata-bytes=4096", "--max-message-bytes=1M"),
        )
        yield log["address"]


# ---- Connections


def test_connections_beyond_the_limit_are_closed_at_once_and_leave_room_when_they_go(start_process):
    _, log = start_process("--max-connections=4")
    address = log["address"]
    with ExitStack() as stack:
        connections = [stack.enter_context(Connection(address)) for _ in range(4)]
        assert [ask(connection) for connection in connections] == ["OK"] * 4
        with Connection(address, speak=False) as surplus:
            assert surplus.closed() == b""
    for _ in range(100):  # the server hears of their end a moment later
        with Connection(address, speak=False) as again:
            if any(True for _ in again.frames()):
                return
    pytest.fail("no connection was let in after the others had gone")


def test_a_connection_that_says_nothing_is_closed(address):
    with Connection(address, speak=False) as connection:
        assert b"timeout" in connection.closed()


def test_a_connection_that_does_not_accept_the_limits_is_closed(address):
    with Connection(address, acknowledge=False) as connection:
        assert b"settings_timeout" in connection.closed()


def test_a_connection_without_calls_is_closed_also_with_half_the_headers_of_one(address):
    for sent in ([], [http2.call(GET_MODEL, 1, flags=0)]):
        with Connection(address) as connection:
            connection.send(*sent)
            assert b"idle" in connection.closed()


def test_a_flood_of_pings_ends_the_connection(address):
    with Connection(address) as connection:
        connection.send(*(http2.frame(http2.PING, payload=bytes(8)) for _ in range(100)))
        assert connection.closed().endswith(b"too_many_pings")


def test_the_pings_of_an_honest_client_do_not(address):
    with Connection(address) as connection:
        for _ in range(2):
            connection.send(http2.frame(http2.PING, payload=bytes(8)))
            connection.until(http2.PING)
        assert ask(connection) == "OK"


def test_a_connection_has_as_many_calls_in_progress_as_it_may_and_no_more(address):
    with Connection(address) as connection:
        connection.send(*(http2.call(EMBED_STREAM, stream) for stream in (1, 3, 5, 7)))
        assert int.from_bytes(connection.until(http2.RST_STREAM, 7)) in (7, 11)  # REFUSED_STREAM, ENHANCE_YOUR_CALM
        connection.send(http2.message(b"", 1))
        assert CODES[connection.status(1)] == "OK"
        assert ask(connection, 9) == "OK"


async def test_of_calls_that_come_while_the_loop_is_busy_some_wait_and_the_others_end_at_once(start):
    async with start(max_pending_rpcs=4) as running:
        with grpc.insecure_channel(running.address) as channel:
            calls, ended = [channel.unary_unary(GET_MODEL).future(b"") for _ in range(20)], threading.Semaphore(0)
            for call in calls:
                call.add_done_callback(lambda _: ended.release())
            # The server's loop is this one, which takes no call meanwhile, but for the one that it has waited for.
            assert all(ended.acquire(timeout=10) for _ in range(20 - 2 * 4 - 1))
            codes = await asyncio.to_thread(lambda: [call.code().name for call in calls])
    assert 4 <= codes.count("OK") <= 9
    assert codes.count("CANCELLED") == 20 - codes.count("OK")


# ---- What a call brings


def test_metadata_up_to_the_limit_is_taken_and_a_byte_more_is_refused(address):
    # Each entry counts with 32 bytes of its own (RFC 9113, section 6.5.2).
    fixed = {":method": "POST", ":scheme": "http", ":path": GET_MODEL, ":authority": "test", "te": "trailers"}
    fixed |= {"content-type": "application/grpc", "x": ""}
    room = 4096 - sum(len(name) + len(value) + 32 for name, value in fixed.items())
    with Connection(address) as connection:
        assert ask(connection, 1, ("x", "y" * room)) == "OK"
        assert ask(connection, 3, ("x", "y" * (room + 1))) == "RESOURCE_EXHAUSTED"
        assert ask(connection, 5) == "OK"


def embed_request(size):
    """An EmbedRequest of so many bytes."""
    request = embedder_pb2.EmbedRequest(image=bytes(size)).SerializeToString()
    return embedder_pb2.EmbedRequest(image=bytes(2 * size - len(request))).SerializeToString()


def test_a_message_up_to_the_limit_is_taken_and_a_byte_more_is_refused(address):
    with grpc.insecure_channel(address) as channel:
        embed = channel.unary_unary(EMBED)
        assert len(embed_request(1 << 20)) == 1 << 20
        embed(embed_request(1 << 20))
        with pytest.raises(grpc.RpcError) as caught:
            embed(embed_request((1 << 20) + 1))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "1048577 vs. 1048576" in caught.value.details()


def test_a_message_that_unpacks_to_more_than_the_limit_is_refused_before_it_takes_the_memory(start_process):
    process, log = start_process("--max-message-bytes=1M")
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(512)) + packer.flush()
    packed = b"\1" + len(bomb).to_bytes(4) + bomb
    with Connection(log["address"]) as connection:
        connection.send(http2.call(EMBED, 1, ("grpc-encoding", "gzip")))
        for start in range(0, len(packed), 16_000):
            end = http2.END_STREAM if start + 16_000 >= len(packed) else 0
            connection.send(http2.frame(http2.DATA, end, 1, packed[start : start + 16_000]))
        assert CODES[connection.status(1)] == "RESOURCE_EXHAUSTED"
        assert ask(connection, 3) == "OK"
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
    assert int(peak[1]) < 256 << 10


# ---- Slow callers


@pytest.mark.parametrize("part", [b"", b"\0\0\0\1\0", b"\0\0\0\1\0half a message"])
@pytest.mark.parametrize("path", [EMBED, EMBED_STREAM])
def test_a_call_whose_message_does_not_arrive_ends_and_its_connection_serves_on(address, path, part):
    with Connection(address) as connection:
        connection.send(http2.call(path, 1), http2.frame(http2.DATA, 0, 1, part))
        assert CODES[connection.status(1)] == "DEADLINE_EXCEEDED"
        assert ask(connection, 3) == "OK"


def test_a_call_that_ends_without_its_request_is_an_invalid_one(address):
    with Connection(address) as connection:
        connection.send(http2.call(EMBED, 1, flags=http2.END_HEADERS | http2.END_STREAM))
        assert CODES[connection.status(1)] == "INVALID_ARGUMENT"


async def test_the_patience_is_for_each_message_of_a_stream_and_its_end_says_what_to_do(start):
    async with start(stream_idle_timeout=0.5) as running:
        call = running.stub.EmbedStream()
        for _ in range(5):
            await asyncio.sleep(0.2)
            await call.write(embedder_pb2.EmbedStreamRequest(correlation_id="1"))
            assert (await call.read()).correlation_id == "1"
        error = await code_of(call.read())
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "no message came for 0.5 s: end a stream that has no more" in error.details()


async def test_a_call_that_takes_long_is_not_a_slow_request(start):
    async with start(request_timeout=0.1) as running:
        held = asyncio.create_task(running.embed(b"hold"))
        await running.servicer.holding.wait()
        await asyncio.sleep(0.3)
        running.release.set()
        assert (await held).model_fingerprint == "abc"


# ---- The share of a caller


def as_caller(name):
    return {"metadata": ((sharing.CALLER_KEY, name),)}


async def test_a_caller_has_as_many_calls_in_progress_as_one_may_and_takes_none_from_others(start):
    async with start(max_caller_rpcs=2, caller_of=sharing.by_metadata) as running:
        held = [running.call(b"hold", **as_caller("flood")) for _ in range(2)]
        while running.servicer.held < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        refused = running.call(b"ok", **as_caller("flood"))
        error = await code_of(refused)
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "caller 'flood' has 2 calls in progress, the limit for one" in error.details()
        info = error_details_pb2.RetryInfo()
        assert (await rpc_status.aio.from_call(refused)).details[0].Unpack(info)
        stream = running.stub.EmbedStream(iter([embedder_pb2.EmbedStreamRequest()]), **as_caller("flood"))
        assert (await code_of(stream.read())).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await running.call(b"ok", **as_caller("modest"))
        assert await running.call(b"ok")
        assert (await running.health.Check(health_pb2.HealthCheckRequest())).status
        running.release.set()
        await asyncio.gather(*held)
        assert await running.call(b"ok", **as_caller("flood"))


async def test_beside_others_a_callers_calls_beyond_its_turns_wait_and_those_of_others_do_not(start):
    async with start(caller_turns=1, caller_of=sharing.by_metadata) as running:
        held = [running.call(b"hold", **as_caller("modest"))]
        await running.servicer.holding.wait()
        held += [running.call(b"hold", **as_caller("flood")) for _ in range(3)]
        while running.servicer.held < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert await running.call(b"ok", **as_caller("third"))
        stream = running.stub.EmbedStream(iter([embedder_pb2.EmbedStreamRequest()]), **as_caller("flood"))
        assert [response async for response in stream]  # which takes no turn
        assert running.servicer.held == 2
        running.release.set()
        await asyncio.gather(*held)
        assert running.servicer.held == 4


async def test_names_are_printable_and_short(start):
    async with start(max_caller_rpcs=1, caller_of=sharing.by_tenant) as running:
        held = asyncio.create_task(running.embed(b"hold"))
        await running.servicer.holding.wait()
        # Who may not name himself is taken for who he is.
        assert (await code_of(running.call(b"ok", **as_caller("other")))).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        running.release.set()
        await held
    assert sharing.of_tenant("t\n\u00e9" + "x" * 1000) == "anybody/t??" + "x" * 245
    assert sharing.by_metadata(None, [(sharing.CALLER_KEY, "c" * 1000)]) == "c" * 256
    assert sharing.by_metadata(None, [(sharing.CALLER_KEY, ""), ("x", b"y")]) == "anybody"


async def test_calls_that_fail_give_their_callers_place_back(start):
    async with start(max_caller_rpcs=1) as running:
        for image in (b"wrong", b"bug", b"full"):
            await code_of(running.embed(image))
        assert await running.embed(b"ok")


async def test_a_reply_that_nobody_reads_keeps_the_place_of_its_caller(start):
    async with start(max_caller_rpcs=1) as running:
        window = http2.setting(http2.INITIAL_WINDOW_SIZE, 0)
        with await asyncio.to_thread(Connection, running.address, settings=window) as connection:
            connection.send(http2.call(EMBED, 1), http2.message(b"", 1))
            await asyncio.to_thread(connection.until, http2.HEADERS, 1)
            assert (await code_of(running.embed(b"ok"))).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        async with asyncio.timeout(10):
            while True:  # it is free when the connection has gone
                try:
                    assert await running.embed(b"ok")
                    break
                except grpc.aio.AioRpcError as error:
                    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # noqa: PT017
