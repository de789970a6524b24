"""UpsertStream as its callers see it: both services running, real images, Milvus Lite."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from lookalike import AsyncClient, Client, Embedding, Item, LookalikeError, UpsertOutcome, VectorSpace
from lookalike.search.v1 import search_pb2 as pb
from lookalike.search.v1 import search_pb2_grpc
from workbench.demo_images import DemoImages
from workbench.services import ServerProcess, Services


def point(id: str, n: int = 0) -> Item:
    return Item(id, vector=Embedding([1, n, 0, 0], "mine"), attributes={"n": n})


def test_images_and_vectors_are_stored_together_and_bad_ones_fail_alone(
    client: Client, photos: str, demo_images: DemoImages
) -> None:
    image = demo_images.queries[0].read_bytes()
    client.upsert(photos, [Item("first", image=image)])
    vector = client.get(photos, ["first"], include_vector=True, read_your_writes=True).records[0].vector
    items = [
        Item("image", image=image, attributes={"n": 1}),
        Item("vector", vector=vector),
        Item("text", image=b"this is not an image"),
        Item("other model", vector=Embedding([1, 2], "theirs")),
        Item("", image=image),
        Item("last", image=image),
    ]
    results = list(client.upsert_stream(photos, items))
    assert [result.id for result in results] == [item.id for item in items]
    stored, failed = UpsertOutcome.STORED, UpsertOutcome.FAILED
    assert [result.outcome for result in results] == [stored, stored, failed, failed, failed, stored]
    codes = [result.error.code for result in results if result.error]
    invalid, precondition = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION
    assert codes == [invalid, precondition, invalid]
    assert client.count(photos) == 4
    assert {hit.id for hit in client.search(photos, id="first", read_your_writes=True).hits} == {
        "image",
        "vector",
        "last",
    }


async def test_a_stream_of_asyncio_stores_any_number_of_rows(client: Client, services: Services, points: str) -> None:
    async def items() -> AsyncIterator[Item]:
        for n in range(3000):
            yield point(str(n), n)

    async with AsyncClient(services.search.addresses.grpc) as streaming:
        ids = [result.id async for result in streaming.upsert_stream(points, items())]
    assert ids == [str(n) for n in range(3000)]
    assert client.count(points) == 3000


def test_the_last_of_many_rows_with_one_id_is_the_one_that_stays(client: Client, points: str) -> None:
    outcomes = [result.outcome for result in client.upsert_stream(points, (point("a", n) for n in range(2000)))]
    assert outcomes[-1] is UpsertOutcome.STORED
    assert set(outcomes) <= {UpsertOutcome.STORED, UpsertOutcome.SUPERSEDED}
    assert client.get(points, ["a"], read_your_writes=True).records[0].attributes == {"n": 1999}


def test_a_row_that_changes_back_and_forth_ends_as_it_was_sent_last(
    client: Client, photos: str, demo_images: DemoImages
) -> None:
    images = [path.read_bytes() for path in demo_images.queries[:2]]
    for last in (0, 1):

        def items(last: int = last) -> Iterator[Item]:
            for n in range(30 + last):
                yield Item("a", image=images[n % 2])
                time.sleep(0.01 * (n % 4))  # for batches of one row, and of some

        outcomes = {result.outcome for result in client.upsert_stream(photos, items(), if_content_changed=True)}
        assert UpsertOutcome.FAILED not in outcomes
        [record] = client.get(photos, ["a"], read_your_writes=True).records
        assert record.content_sha256 == hashlib.sha256(images[(29 + last) % 2]).hexdigest()
    [again] = client.upsert_stream(photos, [Item("a", image=images[0])], if_content_changed=True)
    assert again.outcome is UpsertOutcome.UNCHANGED


def test_a_message_that_does_not_belong_ends_the_stream_with_a_reason(services: Services, points: str) -> None:
    def message(sequence: int, collection: str = "", tenant: str = "") -> pb.UpsertStreamRequest:
        vector = pb.Vector(values=[1, 2, 3, 4], model_fingerprint="mine")
        item = pb.UpsertItem(id=str(sequence), vector=vector)
        return pb.UpsertStreamRequest(collection=collection, tenant=tenant, sequence=sequence, item=item)

    first = message(1, points)
    cases = [
        ([message(1)], "names no collection", []),
        ([first, message(5), message(5)], "sequence 5 follows 5", [1, 5]),
        ([first, message(2, points), message(3, "others")], "'others'", [1, 2]),
        ([first, message(2, tenant="acme")], "'acme'", [1]),
        ([message(1, points, "acme")], "not multi-tenant", []),
    ]
    with grpc.insecure_channel(services.search.addresses.grpc) as channel:
        stub = search_pb2_grpc.SearchServiceStub(channel)
        for messages, complaint, acknowledged in cases:
            call = stub.UpsertStream(iter(messages), timeout=30)
            seen: list[int] = []
            with pytest.raises(grpc.RpcError) as caught:
                seen.extend(response.sequence for response in call)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert complaint in caught.value.details()
            assert seen == acknowledged


def test_a_client_that_does_not_read_its_results_is_not_read_and_harms_nobody(client: Client, points: str) -> None:
    sent, stop = 0, False

    def items() -> Iterator[Item]:
        nonlocal sent
        while not stop:
            sent += 1
            yield point(f"{sent:0512d}")  # long, for the results to fill what the connection holds of them

    results = client.upsert_stream(points, items())
    next(results)
    before, still_since = 0, time.monotonic()
    while time.monotonic() - still_since < 2:
        if sent != before:
            before, still_since = sent, time.monotonic()
        assert sent < 50_000
        time.sleep(0.05)
    # Others are served meanwhile.
    [other] = client.upsert_stream(points, [point("other")])
    assert other.outcome is UpsertOutcome.STORED
    stop = True
    assert sum(result.outcome is UpsertOutcome.STORED for result in results) == sent - 1
    assert client.count(points) == sent + 1


def test_a_client_that_vanishes_harms_nobody(client: Client, services: Services, points: str) -> None:
    program = """
import sys, itertools
from lookalike import Client, Embedding, Item
with Client(sys.argv[1]) as client:
    items = (Item(f"gone {n}", vector=Embedding([1, n, 0, 0], "mine")) for n in itertools.count())
    for result in client.upsert_stream(sys.argv[2], items):
        print(result.id, flush=True)
"""
    command = [sys.executable, "-c", program, services.search.addresses.grpc, points]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process,
        ThreadPoolExecutor(1) as pool,
    ):
        other = pool.submit(lambda: list(client.upsert_stream(points, (point(str(n), n) for n in range(2000)))))
        assert process.stdout
        acknowledged = [process.stdout.readline().strip() for _ in range(400)]
        process.kill()
        assert {result.outcome for result in other.result(60)} == {UpsertOutcome.STORED}
    assert client.get(points, acknowledged, read_your_writes=True).missing_ids == ()
    assert client.count(points, filter="id in {ids}", filter_values={"ids": [str(n) for n in range(2000)]}) == 2000


def test_streams_wait_for_a_busy_embedder(tmp_path: Path, bundle: Path, demo_images: DemoImages) -> None:
    local = ["--address", "127.0.0.1:0", "--metrics-address", "127.0.0.1:0"]
    small = ["--bundle", str(bundle), "--queue-images", "8", "--max-batch-images", "4"]
    images = [path.read_bytes() for path in sorted(demo_images.copies.rglob("*.*"))[:24]]

    def ingest(name: str) -> list[UpsertOutcome]:
        with Client(search.addresses.grpc) as client:
            items = (Item(f"{name} {n}", image=image) for n, image in enumerate(images))
            return [result.outcome for result in client.upsert_stream("photos", items)]

    with ServerProcess("embedder", "embedder_service.main", [*small, *local], tmp_path) as embedder:
        flags = ["--milvus-uri", str(tmp_path / "milvus.db"), "--embedder", embedder.addresses.grpc, *local]
        with ServerProcess("search-service", "search_service.main", flags, tmp_path) as search:
            with Client(search.addresses.grpc) as client:
                client.create_collection("photos")
            with ThreadPoolExecutor(3) as pool:
                outcomes = list(pool.map(ingest, "abc"))
            assert outcomes == [[UpsertOutcome.STORED] * len(images)] * 3


def test_a_server_that_stops_acknowledges_what_it_took_and_sends_the_client_elsewhere(tmp_path: Path) -> None:
    flags = ["--milvus-uri", str(tmp_path / "milvus.db"), "--embedder", "127.0.0.1:1"]
    flags += ["--address", "127.0.0.1:0", "--metrics-address", "127.0.0.1:0"]
    sent = 0

    def items() -> Iterator[Item]:
        nonlocal sent
        while True:
            yield point(str(sent), sent)
            sent += 1

    acknowledged: list[str] = []

    def ingest(client: Client, server: ServerProcess) -> None:
        for result in client.upsert_stream("points", items()):
            acknowledged.append(result.id)
            if len(acknowledged) == 500:
                os.kill(server.pid, signal.SIGTERM)

    with (
        ServerProcess("search-service", "search_service.main", flags, tmp_path) as first,
        Client(first.addresses.grpc) as client,
    ):
        client.create_collection("points", space=VectorSpace("mine", 4))
        with pytest.raises(LookalikeError, match="send what is not acknowledged to another one") as caught:
            ingest(client, first)
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    assert acknowledged == [str(n) for n in range(len(acknowledged))]
    with (
        ServerProcess("search-service", "search_service.main", flags, tmp_path) as second,
        Client(second.addresses.grpc) as client,
    ):
        # What was taken was acknowledged: nothing else is there.
        assert client.count("points") == len(acknowledged)
        assert client.get("points", acknowledged[-300:]).missing_ids == ()
