"""What a call to the embedding service brings along."""

import asyncio
import time

import grpc
import pytest

from lookalike.embedder.v1 import embedder_pb2, embedder_pb2_grpc
from search_service.embedder_client import EmbedderClient
from service_kit import calls

KEY = "lookalike-request-id"


class _Servicer(embedder_pb2_grpc.EmbedderServiceServicer):
    """Notes the request ids of the calls that come."""

    def __init__(self):
        self.request_ids = []

    async def GetModel(self, request, context):  # noqa: N802
        self.request_ids.append([value for key, value in context.invocation_metadata() if key == KEY])
        return embedder_pb2.GetModelResponse(model=embedder_pb2.Model(fingerprint="abc", dimension=4))


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
