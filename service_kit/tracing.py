"""Traces, with OpenTelemetry: off, at no cost and with nothing imported, unless the environment asks for them.

They are asked for with OpenTelemetry's own variables: `OTEL_TRACES_EXPORTER` or an `OTEL_EXPORTER_OTLP_ENDPOINT`. Its
sampler, resource, batching and exporter variables hold as well.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

import grpc

from service_kit.errors import FailedPrecondition

if TYPE_CHECKING:
    from opentelemetry.trace import Span, SpanKind, Tracer

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_INSTALL = "pip install 'lookalike[tracing]', or unset the OTEL_* variables"
# The codes that are a server's fault, by OpenTelemetry's conventions for gRPC; to a client every error is one.
_SERVER_FAULTS = (
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DATA_LOSS,
)
_OFF: AbstractContextManager[None] = nullcontext()
_tracer: Tracer | None = None


def configure(service: str, *, instrument_clients: bool = False) -> None:
    """Sets up the process' traces if the environment asks for them. To be called once, before the first channel.

    Args:
        service: the service's name in traces, unless the environment gives another.
        instrument_clients: whether all gRPC calls that this process makes get spans, those of health checks excepted.

    Raises:
        FailedPrecondition: traces are asked for, but what they need is not installed.
    """
    global _tracer
    names = _exporters(os.environ)
    if not names:
        return
    try:
        from opentelemetry import trace
        from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        raise FailedPrecondition(f"traces need the package {error.name}, which is not installed: {_INSTALL}") from None
    resource = Resource.create({SERVICE_NAME: service}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource)
    for name in names:
        provider.add_span_processor(BatchSpanProcessor(_load_exporter(name)))
    trace.set_tracer_provider(provider)
    _tracer = trace.get_tracer("lookalike")
    if instrument_clients:
        _instrument_clients()


def on() -> bool:
    """Whether traces are made."""
    return _tracer is not None


def span(name: str, **attributes: str | int | float | bool) -> AbstractContextManager[Any]:
    """Makes the block a span, a part of the current one. Costs next to nothing while traces are off."""
    if _tracer is None:
        return _OFF
    return _tracer.start_as_current_span(name, attributes=attributes, record_exception=False)


def part(name: str, **attributes: str | int | float | bool) -> AbstractContextManager[Any]:
    """Makes the block a span, as `span` does, but only within another one: background work is no trace."""
    if _tracer is None:
        return _OFF
    from opentelemetry import trace

    return span(name, **attributes) if trace.get_current_span().get_span_context().is_valid else _OFF


def record(name: str, began: float, ended: float, **attributes: str | int | float | bool) -> None:
    """Adds a span to the current one for what was measured elsewhere; times are of time.monotonic, in seconds."""
    if _tracer is not None:
        epoch = time.time() - time.monotonic()
        start, end = (int((epoch + moment) * 1e9) for moment in (began, ended))
        _tracer.start_span(name, attributes=attributes, start_time=start).end(end)


def begin_call(
    service: str, method: str, call: grpc.aio.ServicerContext[Any, Any], request_id: str, identity: str
) -> Span | None:
    """Starts the span of a call that came in, a child of its caller's, and makes it the current one of this task.

    It stays so until the task ends. Returns None while traces are off.
    """
    if _tracer is None:
        return None
    from opentelemetry import context, propagate, trace

    parent = propagate.extract(dict(call.invocation_metadata() or ()))
    span = _start(service, method, trace.SpanKind.SERVER, parent)
    span.set_attribute("lookalike.request_id", request_id)
    span.set_attribute("lookalike.identity", identity)
    # Never detached: a generator that is closed late is closed in another context, which must not be changed.
    context.attach(trace.set_span_in_context(span, parent))
    return span


def end_call(span: Span | None, code: grpc.StatusCode) -> None:
    """Ends the span of a call that came in."""
    if span is not None:
        _end(span, code, fault=code in _SERVER_FAULTS)


def client_span(service: str, method: str) -> AbstractContextManager[None]:
    """Makes the block, a call to another service that raises grpc.RpcError, a span."""
    return _OFF if _tracer is None else _client_span(service, method)


def outgoing_metadata() -> tuple[tuple[str, str], ...]:
    """Returns the metadata that names the current span to another service; none while traces are off."""
    if _tracer is None:
        return ()
    from opentelemetry import propagate

    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return tuple((key.lower(), value) for key, value in carrier.items())


@contextmanager
def _client_span(service: str, method: str) -> Iterator[None]:
    from opentelemetry import trace

    span = _start(service, method, trace.SpanKind.CLIENT, None)
    code = grpc.StatusCode.CANCELLED  # what it is if the caller goes away
    try:
        with trace.use_span(span, record_exception=False, set_status_on_exception=False):
            yield
        code = grpc.StatusCode.OK
    except grpc.aio.AioRpcError as error:
        code = error.code()
        raise
    finally:
        _end(span, code, fault=code is not grpc.StatusCode.OK)


def _start(service: str, method: str, kind: SpanKind, parent: Any) -> Span:
    assert _tracer is not None
    attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}
    return _tracer.start_span(f"{service}/{method}", context=parent, kind=kind, attributes=attributes)


def _end(span: Span, code: grpc.StatusCode, *, fault: bool) -> None:
    from opentelemetry.trace import StatusCode

    span.set_attribute("rpc.grpc.status_code", code.value[0])
    if fault:
        span.set_status(StatusCode.ERROR, code.name)
    span.end()


def _exporters(environ: Mapping[str, str]) -> list[str]:
    """Returns the names of the exporters that the environment asks for."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return []
    asked = environ.get("OTEL_TRACES_EXPORTER", "")
    if not asked and any(environ.get(name) for name in _ENDPOINTS):
        asked = "otlp"
    return [name for name in map(str.strip, asked.split(",")) if name not in ("", "none")]


def _load_exporter(name: str) -> Any:
    protocol = next((os.environ[variable] for variable in _PROTOCOLS if os.environ.get(variable)), "grpc")
    known = {"otlp": "otlp_proto_http" if protocol.startswith("http") else "otlp_proto_grpc"}
    found = tuple(entry_points(group="opentelemetry_traces_exporter", name=known.get(name, name)))
    if not found:
        raise FailedPrecondition(f"no exporter {known.get(name, name)!r} of traces is installed: {_INSTALL}")
    try:
        return found[0].load()()
    except ModuleNotFoundError as error:
        raise FailedPrecondition(f"traces need the package {error.name}, which is not installed: {_INSTALL}") from None


def _instrument_clients() -> None:
    try:
        from opentelemetry.instrumentation.grpc import GrpcAioInstrumentorClient, GrpcInstrumentorClient, filters
    except ModuleNotFoundError as error:
        raise FailedPrecondition(f"traces need the package {error.name}, which is not installed: {_INSTALL}") from None
    instrumentors: tuple[Any, ...] = (GrpcInstrumentorClient, GrpcAioInstrumentorClient)
    for instrumentor in instrumentors:
        instrumentor(filters.negate(filters.health_check())).instrument()
