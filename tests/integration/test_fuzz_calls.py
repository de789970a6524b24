"""Hostile calls of every RPC of both services: each is answered with a code of the contract, and nothing else changes.

LOOKALIKE_FUZZ_CALLS is how many; the first n are always the same, others by LOOKALIKE_FUZZ_SEED. `make fuzz` makes
50,000.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import status_pb2
from hostile_calls import COLLECTIONS, METHODS, HostileCall, hostile_call, sound_calls
from hostile_frames import send_hostile_frames

from lookalike import Client, Embedding, IndexSpec, IndexType, Item, LookalikeError, VectorSpace
from workbench.demo_images import DemoImages
from workbench.services import ServerProcess, Services

COUNT = int(os.environ.get("LOOKALIKE_FUZZ_CALLS", "1500"))
SEED = int(os.environ.get("LOOKALIKE_FUZZ_SEED", "0"))
AT_A_TIME = 500
CALLERS = 8
KEPT = "kept"
# What may remain in memory after the first calls, for allocators to keep and caches to fill.
GROWTH = 150 << 20

Code = grpc.StatusCode
# Neither INTERNAL nor UNKNOWN, which nobody promises; and nothing is away, so that nothing is UNAVAILABLE.
CONTRACT = {
    Code.OK,
    Code.INVALID_ARGUMENT,
    Code.NOT_FOUND,
    Code.ALREADY_EXISTS,
    Code.FAILED_PRECONDITION,
    Code.RESOURCE_EXHAUSTED,
    Code.DEADLINE_EXCEEDED,
    Code.UNIMPLEMENTED,
}
# What a call in which nothing is wrong may meet, as those before it leave things.
SOUND = {Code.OK, Code.ALREADY_EXISTS, Code.NOT_FOUND, Code.FAILED_PRECONDITION}
_BY_NUMBER = {code.value[0]: code for code in Code}


def statuses(message: Message) -> Iterator[status_pb2.Status]:
    """What became of single items, wherever a reply tells."""
    if isinstance(message, status_pb2.Status):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        for each in value if field.is_repeated else [value]:
            yield from statuses(each)


def make(channel: grpc.Channel, call: HostileCall) -> list[tuple[grpc.StatusCode, str]]:
    """Makes a call, and returns the codes, with their messages, that it and its items ended with."""
    method = call.method
    kind = {
        (False, False): channel.unary_unary,
        (False, True): channel.unary_stream,
        (True, False): channel.stream_unary,
        (True, True): channel.stream_stream,
    }[method.client_streaming, method.server_streaming]
    made: Any = kind(call.path, None, GetMessageClass(method.output_type).FromString)
    if not method.server_streaming:
        made = made.future
    ended = threading.Event()

    def requests() -> Iterator[bytes]:
        yield from call.messages
        if call.hold:
            ended.wait()

    try:
        running = made(
            requests() if method.client_streaming else call.messages[0], timeout=call.timeout, metadata=call.metadata
        )
    except ValueError as error:  # gRPC itself does not send such metadata
        if "metadata" not in str(error):
            raise
        return []
    timer = threading.Timer(call.cancel_after or 0, running.cancel)
    if call.cancel_after is not None:
        timer.start()
    found: list[tuple[grpc.StatusCode, str]] = []
    try:
        for reply in running if method.server_streaming else [running.result()]:
            found += [(_BY_NUMBER[status.code], status.message) for status in statuses(reply)]
    except (grpc.RpcError, grpc.FutureCancelledError):
        pass
    finally:
        ended.set()
        timer.cancel()
    return [*found, (running.code(), running.details() or "")]


def reset(client: Client) -> None:
    """Puts what the calls are about back as it was, and what they made away."""
    for collection in client.list_collections():
        if collection.name != KEPT:
            client.delete_collection(collection.name)
    for name in COLLECTIONS:
        multi_tenant = name != "fuzzed"
        index = IndexSpec(IndexType.HNSW if multi_tenant else IndexType.FLAT)
        client.create_collection(name, space=VectorSpace("mine", 4), index=index, multi_tenant=multi_tenant)
        rows = [
            Item(row_id, vector=Embedding([1, n, 0, 2], "mine"), attributes={"n": n}) for n, row_id in enumerate("abc")
        ]
        client.upsert(name, rows, tenant="acme" if multi_tenant else "")
    client.create_collection_version("fuzzed", space=VectorSpace("mine", 4), index=IndexSpec(IndexType.FLAT))


def memory(server: ServerProcess) -> int:
    """Bytes that a process has in memory."""
    found = re.search(r"^VmRSS:\s+(\d+) kB$", Path(f"/proc/{server.pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])


def faults(server: ServerProcess) -> list[str]:
    """What a server calls its own fault: in its log, and in its count of calls."""
    lines = server.log.read_text(errors="replace").splitlines()
    found = [line for line in lines if re.search(r"Traceback|\bERROR\b|\bCRITICAL\b", line)]
    with urllib.request.urlopen(f"http://{server.addresses.metrics}/metrics", timeout=30) as page:
        counts = page.read().decode().splitlines()
    return found + [line for line in counts if re.search(r'handled_total.*grpc_code="(Internal|Unknown)"', line)]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_hostile_calls_are_answered_by_the_contract_and_leave_nothing_behind(
    backend: str, services: Services, client: Client, demo_images: DemoImages
) -> None:
    # A server takes seconds for each collection that is made away with.
    count = COUNT if backend == "lite" else COUNT // 3
    images = [path.read_bytes() for path in demo_images.queries]
    client.create_collection(KEPT)
    client.upsert(KEPT, [Item(str(n), image=image, attributes={"n": n}) for n, image in enumerate(images)])

    def search() -> list[tuple[str, float]]:
        hits = client.search(KEPT, image=images[0], top_k=5, read_your_writes=True).hits
        return [(hit.id, round(hit.similarity, 4)) for hit in hits]

    expected = search()
    servers = {"search": services.search, "embedder": services.embedder}
    channels = {name: grpc.insecure_channel(server.addresses.grpc) for name, server in servers.items()}
    codes: Counter[str] = Counter()
    wrong: list[str] = []

    def one(number: int) -> None:
        call = hostile_call(number, SEED)
        name = "search" if "search" in call.path else "embedder"
        channel = channels[name]
        if number % 10 == 0:
            send_hostile_frames(servers[name].addresses.grpc, call.path, number)
        allowed = CONTRACT | ({Code.CANCELLED} if call.cancel_after is not None else set())
        for code, message in make(channel, call):
            codes[code.name] += 1
            if code not in allowed:
                wrong.append(f"call {number} of seed {SEED}, {call.method.name}: {code.name}: {message[:300]}")

    reset(client)
    for method in METHODS:
        for messages in sound_calls()[method.name]:
            channel = channels["search" if "search" in method.full_name else "embedder"]
            for code, message in make(channel, HostileCall(method, messages, (), 60, None, hold=False)):
                assert code in SOUND, f"the sound call of {method.name} is none: {message}"

    grown: dict[str, list[int]] = {name: [] for name in servers}
    with ThreadPoolExecutor(CALLERS) as pool:
        for start in range(0, count, AT_A_TIME):
            reset(client)
            list(pool.map(one, range(start, min(start + AT_A_TIME, count))))
            for name, server in servers.items():
                server.check()
                grown[name].append(memory(server))
            print(
                f"\n{start + AT_A_TIME:,}: {dict(codes)}; MiB: { {n: m[-1] >> 20 for n, m in grown.items()} }", end=""
            )
    for channel in channels.values():
        channel.close()
    assert not wrong, f"{len(wrong)}: " + "\n".join(wrong[:20])
    assert min(codes["OK"], codes["INVALID_ARGUMENT"]) > count // 10, "the calls do not try both ways"
    for name, server in servers.items():
        assert faults(server) == []
        after_warm_up = grown[name][len(grown[name]) // 5]
        assert grown[name][-1] < after_warm_up + GROWTH, grown
    # After all that, both are what they were.
    assert search() == expected
    reset(client)
    with pytest.raises(LookalikeError, match="NOT_FOUND"):
        client.get("nowhere", ["a"])
    client.delete_collection(KEPT)
