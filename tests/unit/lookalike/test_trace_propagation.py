"""The clients in an application that has OpenTelemetry instrument gRPC, as a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import lookalike

_APPLICATION = """
import asyncio, json
from concurrent.futures import ThreadPoolExecutor

import grpc
from opentelemetry import trace
from opentelemetry.instrumentation.grpc import GrpcAioInstrumentorClient, GrpcInstrumentorClient
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from lookalike import AsyncClient, Client, LookalikeError
from lookalike.search.v1 import search_pb2 as pb, search_pb2_grpc

exporter = InMemorySpanExporter()
trace.set_tracer_provider(TracerProvider())
trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(exporter))
GrpcInstrumentorClient().instrument()
GrpcAioInstrumentorClient().instrument()

received = []


class Servicer(search_pb2_grpc.SearchServiceServicer):
    def Count(self, request, context):
        received.append(dict(context.invocation_metadata()).get("traceparent"))
        if request.collection == "missing":
            context.set_trailing_metadata((("lookalike-request-id", "a-1"),))
            context.abort(grpc.StatusCode.NOT_FOUND, "no such collection")
        return pb.CountResponse(count=7)


server = grpc.server(ThreadPoolExecutor(1))
search_pb2_grpc.add_SearchServiceServicer_to_server(Servicer(), server)
target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
server.start()
errors = []


def call(client):
    assert client.count("photos") == 7
    try:
        client.count("missing")
    except LookalikeError as error:
        errors.append(str(error))


async def call_async():
    async with AsyncClient(target) as client:
        assert await client.count("photos") == 7
        try:
            await client.count("missing")
        except LookalikeError as error:
            errors.append(str(error))


with trace.get_tracer("application").start_as_current_span("work") as work:
    with Client(target) as client:
        call(client)
    asyncio.run(call_async())
server.stop(None).wait()
spans = [span for span in exporter.get_finished_spans() if span.name.endswith("/Count")]
print(json.dumps({
    "sent": received,
    "expected": [
        f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-{span.context.trace_flags:02x}" for span in spans
    ],
    "parents": [span.parent.span_id == work.get_span_context().span_id for span in spans],
    "errors": errors,
}))
"""


def test_calls_of_both_kinds_of_client_are_parts_of_the_applications_trace():
    environment = {**os.environ, "PYTHONPATH": str(Path(lookalike.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", _APPLICATION], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found["sent"]) == 4
    assert sorted(found["sent"]) == sorted(found["expected"])
    assert found["parents"] == [True] * 4
    assert found["errors"] == ["NOT_FOUND: no such collection (request a-1)"] * 2
