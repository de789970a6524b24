"""Several embedders behind one name: who gets the calls, and what becomes of them when one of them is away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing

import grpc
import pytest
from embedding_server import EmbeddingServer
from milvus_samples import free_port, within
from test_embedders import NEW, OLD, version_of

from lookalike.embedder.v1 import embedder_pb2_grpc
from search_service.embedder_client import EmbedderClient
from search_service.embedders import Embedders, targets
from search_service.records import Embedding, VectorSpace
from service_kit.errors import DeadlineExceeded, FailedPrecondition, Unavailable


class Replica:
    """An embedding service that can be stopped and started again on its port."""

    def __init__(self, space: VectorSpace) -> None:
        self.servicer = EmbeddingServer(space)
        self.port = free_port()

    async def start(self) -> None:
        self._server = grpc.aio.server()
        embedder_pb2_grpc.add_EmbedderServiceServicer_to_server(self.servicer, self._server)
        assert self._server.add_insecure_port(f"127.0.0.1:{self.port}") == self.port
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(None)


@pytest.fixture
async def replicas() -> AsyncIterator[list[Replica]]:
    """Three embedding services with one model."""
    replicas = [Replica(OLD) for _ in range(3)]
    await asyncio.gather(*(replica.start() for replica in replicas))
    yield replicas
    await asyncio.gather(*(replica.stop() for replica in replicas))


@pytest.fixture
async def client(replicas: list[Replica]) -> AsyncIterator[EmbedderClient]:
    addresses = ",".join(f"127.0.0.1:{replica.port}" for replica in replicas)
    (target,) = targets(f"ipv4:{addresses}")
    client = EmbedderClient(target, 1 << 20)
    async with aclosing(client):
        # Until all are connected, so that each can get its turn.
        end = within()
        while not all(replica.servicer.asked for replica in replicas):
            assert time.monotonic() < end
            await client.space(end)
        yield client


async def embed(client: EmbedderClient, image: bytes = b"cat", seconds: float = 10.0) -> None:
    (vector,) = await client.embed([image], interactive=True, deadline=within(seconds))
    assert isinstance(vector, Embedding)


async def test_calls_go_to_all_replicas_in_turn(client: EmbedderClient, replicas: list[Replica]) -> None:
    for _ in range(30):
        await embed(client)
    assert [len(replica.servicer.embedded) for replica in replicas] == [10, 10, 10]


async def test_no_call_fails_when_a_replica_stops(client: EmbedderClient, replicas: list[Replica]) -> None:
    async def go_on() -> None:
        for _ in range(40):
            await embed(client)
            await asyncio.sleep(0.01)

    going_on = [asyncio.create_task(go_on()) for _ in range(4)]
    await asyncio.sleep(0.1)
    await replicas[1].stop()
    await asyncio.gather(*going_on)
    embedded = len(replicas[1].servicer.embedded)
    assert embedded < 40
    await replicas[1].start()
    end = within()
    while len(replicas[1].servicer.embedded) == embedded:
        assert time.monotonic() < end, "it gets its turn again"
        await embed(client)


async def test_a_replica_that_hangs_costs_no_more_than_the_deadline_and_nothing_at_the_others(
    client: EmbedderClient, replicas: list[Replica]
) -> None:
    going_on = asyncio.Event()
    replicas[2].servicer.during = going_on.wait
    start = time.monotonic()
    outcomes = await asyncio.gather(*(embed(client, seconds=0.5) for _ in range(3)), return_exceptions=True)
    assert time.monotonic() - start < 0.7
    assert sorted(type(outcome).__name__ for outcome in outcomes) == [DeadlineExceeded.__name__, "NoneType", "NoneType"]
    going_on.set()
    for _ in range(6):
        await embed(client)


async def test_a_call_fails_at_once_while_no_replica_answers_and_passes_soon_after_one_does(
    client: EmbedderClient, replicas: list[Replica]
) -> None:
    await embed(client)
    await asyncio.gather(*(replica.stop() for replica in replicas))
    with pytest.raises(Unavailable):
        await embed(client)

    async def embed_until_refused() -> None:
        while True:
            await embed(client)

    with pytest.raises(Unavailable, match="has given no answer") as caught:
        await embed_until_refused()
    assert caught.value.retry_after is not None
    start = time.monotonic()
    with pytest.raises(Unavailable):
        await embed(client)
    assert time.monotonic() - start < 0.1
    patient = asyncio.create_task(client.embed([b"cat"], interactive=False, patient=True, deadline=within()))
    await asyncio.gather(*(replica.start() for replica in replicas))
    start = time.monotonic()
    while True:
        try:
            await embed(client)
            break
        except Unavailable:
            await asyncio.sleep(0.02)
    assert time.monotonic() - start < 2
    assert isinstance((await patient)[0], Embedding), "who is patient was not refused meanwhile"


async def test_vectors_of_a_replica_with_another_model_are_not_taken_for_those_of_the_version(
    client: EmbedderClient, replicas: list[Replica]
) -> None:
    embedders = Embedders([client])
    assert await embedders.serve(OLD, within())
    replicas[0].servicer.space = NEW
    spaces = set()
    for _ in range(3):
        try:
            (vector,) = await embedders.embed(version_of(OLD), [b"cat"], interactive=True, deadline=within())
        except FailedPrecondition:
            continue  # it has just said that it has the other model
        assert isinstance(vector, Embedding)
        spaces.add(vector.space)
    assert spaces <= {OLD, NEW}, "each says of which model it is, for the store to refuse"


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("a:1", ["a:1"]),
        ("a:1,b:2", ["a:1", "b:2"]),
        ("a:1, b:2,", ["a:1", "b:2"]),
        (" a:1 ;dns:///b:2\t", ["a:1", "dns:///b:2"]),
        ("ipv4:1.2.3.4:1,1.2.3.5:1", ["ipv4:1.2.3.4:1,1.2.3.5:1"]),
        ("ipv4:1.2.3.4:1,1.2.3.5:1 a:1,b:2", ["ipv4:1.2.3.4:1,1.2.3.5:1", "a:1", "b:2"]),
        ("ipv6:[::1]:1,[::1]:2;dns:///b:2", ["ipv6:[::1]:1,[::1]:2", "dns:///b:2"]),
    ],
)
def test_embedders_are_set_apart_by_spaces_or_by_commas(setting: str, expected: list[str]) -> None:
    assert targets(setting) == expected


@pytest.mark.parametrize("setting", ["", " ,", "a:1,ipv4:1.2.3.4:1,1.2.3.5:1"])
def test_a_list_of_embedders_that_can_be_read_in_two_ways_is_refused(setting: str) -> None:
    with pytest.raises(FailedPrecondition, match="separate them by spaces"):
        targets(setting)
