"""Traces of a server's calls, sent to a real receiver; and no trace of them while they are off."""

import os
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from small_server import SERVICE

import service_kit
from lookalike.embedder.v1 import embedder_pb2, embedder_pb2_grpc
from service_kit import tracing

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = ("traceparent", f"00-{TRACE}-{PARENT}-01")
SERVER, INTERNAL = 2, 1
EMBED = f"{SERVICE}/Embed"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(service_kit.__file__).parents[1])}


@pytest.fixture
def stub(start_process, collector):
    _, events = start_process(**collector.environment)
    with grpc.insecure_channel(events["address"]) as channel:
        yield embedder_pb2_grpc.EmbedderServiceStub(channel)


def embed(stub, image, *metadata):
    return stub.Embed(embedder_pb2.EmbedRequest(image=image), timeout=10, metadata=(TRACEPARENT, *metadata))


def test_a_call_continues_the_trace_of_its_caller(stub, collector):
    embed(stub, b"ok", ("lookalike-request-id", "a-1"))
    [span] = collector.wait_for(EMBED)
    assert (span.trace, span.parent, span.kind, span.service) == (TRACE, PARENT, SERVER, "small")
    assert span.attributes == {
        "rpc.system": "grpc",
        "rpc.service": SERVICE,
        "rpc.method": "Embed",
        "rpc.grpc.status_code": 0,
        "lookalike.request_id": "a-1",
        "lookalike.identity": "anybody",
    }
    assert not span.failed


def test_stages_are_parts_of_the_call(stub, collector):
    embed(stub, b"stages")
    call, decode, queue = collector.wait_for(EMBED, "decode", "queue")
    assert (decode.trace, decode.parent, decode.kind) == (TRACE, call.id, INTERNAL)
    assert decode.attributes == {"pixels": 4}
    assert (queue.trace, queue.parent) == (TRACE, call.id)
    assert queue.seconds == pytest.approx(1.5, abs=0.001)


@pytest.mark.parametrize(
    ("image", "code", "failed"),
    [
        (b"wrong", grpc.StatusCode.INVALID_ARGUMENT, False),  # the caller's fault, not the server's
        (b"bug", grpc.StatusCode.INTERNAL, True),
    ],
)
def test_an_error_has_its_code_and_is_a_failure_if_it_is_the_servers(stub, collector, image, code, failed):
    with pytest.raises(grpc.RpcError):
        embed(stub, image)
    [span] = collector.wait_for(EMBED)
    assert (span.attributes["rpc.grpc.status_code"], span.failed) == (code.value[0], failed)


def test_a_call_that_its_caller_cancels_has_a_span_too(stub, collector):
    requests = [embedder_pb2.EmbedStreamRequest(correlation_id="1", image=b"hold")]
    call = stub.EmbedStream(iter(requests), timeout=10, metadata=(TRACEPARENT,))
    next(call)
    call.cancel()
    [span] = collector.wait_for(f"{SERVICE}/EmbedStream")
    assert span.attributes["rpc.grpc.status_code"] == grpc.StatusCode.CANCELLED.value[0]


def test_a_stream_has_one_span(stub, collector):
    requests = [embedder_pb2.EmbedStreamRequest(correlation_id=str(number), image=b"ok") for number in range(3)]
    assert len(list(stub.EmbedStream(iter(requests), timeout=10, metadata=(TRACEPARENT,)))) == 3
    [span] = collector.wait_for(f"{SERVICE}/EmbedStream")
    assert (span.trace, span.parent) == (TRACE, PARENT)


def test_the_callers_wish_that_a_call_is_not_sampled_is_respected(stub, collector):
    stub.GetModel(embedder_pb2.GetModelRequest(), metadata=(("traceparent", f"00-{TRACE}-{PARENT}-00"),), timeout=10)
    embed(stub, b"ok")
    collector.wait_for(EMBED)
    assert {span.name for span in collector.spans} == {EMBED}


def test_health_checks_leave_no_traces(start_process, collector):
    _, events = start_process("--reflection=on", **collector.environment)
    with grpc.insecure_channel(events["address"]) as channel:
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        embed(embedder_pb2_grpc.EmbedderServiceStub(channel), b"ok")
    collector.wait_for(EMBED)
    assert {span.name for span in collector.spans} == {EMBED}


def test_the_environment_names_the_service(start_process, collector):
    _, events = start_process(**collector.environment, OTEL_SERVICE_NAME="another")
    with grpc.insecure_channel(events["address"]) as channel:
        embed(embedder_pb2_grpc.EmbedderServiceStub(channel), b"ok")
    assert [span.service for span in collector.wait_for(EMBED)] == ["another"]


def run(code, **variables):
    return subprocess.run(
        [sys.executable, "-c", code], env={**ENVIRONMENT, **variables}, capture_output=True, text=True, timeout=60
    )


OFF = """
import sys
from service_kit import calls, tracing

tracing.configure("small")
with tracing.span("decode", pixels=4), tracing.client_span("a.Service", "Call"):
    tracing.record("queue", 0.0, 1.0)
    assert calls.outgoing_metadata() == ()
print([name for name in sys.modules if name.startswith("opentelemetry")])
"""


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
        {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "true"},
    ],
)
def test_nothing_is_imported_unless_the_environment_asks_for_traces(variables):
    done = run(OFF, **variables)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_what_is_missing_is_named_with_how_to_get_it(tmp_path):
    # As where OpenTelemetry is not installed.
    (tmp_path / "opentelemetry.py").write_text('raise ModuleNotFoundError("gone", name="opentelemetry")')
    path = os.pathsep.join((str(tmp_path), ENVIRONMENT["PYTHONPATH"]))
    small = str(Path(__file__).with_name("small_server.py"))
    done = subprocess.run(
        [sys.executable, small],
        env={**ENVIRONMENT, "PYTHONPATH": path, "OTEL_TRACES_EXPORTER": "otlp"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert "cannot serve: traces need the package opentelemetry, which is not installed" in line
    assert "pip install 'lookalike[tracing]'" in line


def test_an_exporter_that_is_not_installed_is_named():
    done = run('from service_kit import tracing; tracing.configure("small")', OTEL_TRACES_EXPORTER="zipkin")
    assert "no exporter 'zipkin' of traces is installed: pip install" in done.stderr


def test_while_traces_are_off_a_span_is_the_same_object_each_time():
    assert tracing.span("decode", pixels=4) is tracing.span("run")
