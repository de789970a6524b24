"""What a call to the embedding service brings along, and what becomes of one to a busy embedder."""

import asyncio
import time

import grpc
import pytest

from lookalike.embedder.v1 import embedder_pb2, embedder_pb2_grpc
from search_service.embedder_client import EmbedderClient
from service_kit import calls, sharing, status
from service_kit.errors import ResourceExhausted

KEY = "lookalike-request-id"


class _Servicer(embedder_pb2_grpc.EmbedderServiceServicer):
    """Notes the request ids of the calls that come."""

    def __init__(self):
        self.request_ids = []
        self.callers = []
        self.refusals = 0
        self.retry_after = 0.01

    async def GetModel(self, request, context):  # noqa: N802
        self.request_ids.append([value for key, value in context.invocation_metadata() if key == KEY])
        self.callers.append([value for key, value in context.invocation_metadata() if key == sharing.CALLER_KEY])
        return embedder_pb2.GetModelResponse(
            model=embedder_pb2.Model(fingerprint="abc", dimension=4), limits=embedder_pb2.Limits(max_batch_images=2)
        )

    async def EmbedBatch(self, request, context):  # noqa: N802
        if self.refusals:
            self.refusals -= 1
            await status.abort(context, ResourceExhausted("the queue is full", self.retry_after))
        result = embedder_pb2.EmbedResult(embedding=embedder_pb2.Embedding(values=[1, 0, 0, 0]))
        return embedder_pb2.EmbedBatchResponse(results=[result] * len(request.images), model_fingerprint="abc")


@pytest.fixture
async def embedder():
    """An embedding service and a client of it."""
    server, servicer = grpc.aio.server(), _Servicer()
    embedder_pb2_grpc.add_EmbedderServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    client = EmbedderClient(f"127.0.0.1:{port}", 1 << 20)
    yield client, servicer
    await client.aclose()
    await server.stop(None)


async def test_the_request_id_of_a_call_is_passed_on(embedder):
    client, servicer = embedder

    async def call(request_id):
        calls.begin(((KEY, request_id),))
        await client.space(time.monotonic() + 10)

    await asyncio.create_task(call("a-1"))
    await asyncio.create_task(call("a-2"))
    await client.space(time.monotonic() + 10)
    assert servicer.request_ids == [["a-1"], ["a-2"], []]


async def test_the_embedder_is_told_for_whom_it_is_asked(embedder):
    client, servicer = embedder

    async def call(caller):
        sharing.begin(caller)
        await client.space(time.monotonic() + 10)

    await asyncio.create_task(call("anybody/acme"))
    await client.space(time.monotonic() + 10)
    assert servicer.callers == [["anybody/acme"], []]


async def test_a_patient_call_waits_for_room_in_the_embedder(embedder):
    client, servicer = embedder
    servicer.refusals = 3
    vectors = await client.embed([b"image"] * 3, interactive=False, patient=True, deadline=time.monotonic() + 10)
    assert [vector.fingerprint for vector in vectors] == ["abc"] * 3
    assert servicer.refusals == 0


@pytest.mark.parametrize(("patient", "retry_after"), [(False, 0.01), (True, None), (True, 60.0)])
async def test_a_call_is_refused_at_once_if_it_is_not_patient_or_waiting_cannot_help(embedder, patient, retry_after):
    client, servicer = embedder
    servicer.refusals, servicer.retry_after = 2, retry_after
    with pytest.raises(ResourceExhausted, match="the queue is full"):
        await client.embed([b"image"], interactive=False, patient=patient, deadline=time.monotonic() + 10)
    assert servicer.refusals == 1
