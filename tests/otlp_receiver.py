"""A receiver of traces, as OpenTelemetry's protocol has it: what a collector is to the services."""

import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


class OtlpReceiver(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps the spans that are sent to it, for as long as the context lasts."""

    def __init__(self):
        self._arrived = threading.Condition()
        self._spans = []

    def __enter__(self):
        self._server = grpc.server(ThreadPoolExecutor(2))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)
        self.environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}",
            "OTEL_BSP_SCHEDULE_DELAY": "50",
        }
        self._server.start()
        return self

    def __exit__(self, *_):
        self._server.stop(None).wait()

    def Export(self, request, context):  # noqa: N802
        with self._arrived:
            for resource_spans in request.resource_spans:
                names = {item.key: item.value.string_value for item in resource_spans.resource.attributes}
                for scope_spans in resource_spans.scope_spans:
                    self._spans += [Span(span, names["service.name"]) for span in scope_spans.spans]
            self._arrived.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    def wait_for(self, *names):
        """Returns spans with these names, in their order, once all are there; of a name given twice, two."""
        with self._arrived:
            assert self._arrived.wait_for(lambda: self._find(names), 20), [span.name for span in self._spans]
            return self._find(names)

    def _find(self, names):
        left, found = list(self._spans), []
        for name in names:
            span = next((span for span in left if span.name == name), None)
            if span is None:
                return None
            left.remove(span)
            found.append(span)
        return found

    @property
    def spans(self):
        """All spans so far."""
        with self._arrived:
            return list(self._spans)


class Span:
    """A span, with what tests ask of it."""

    def __init__(self, message, service):
        self.service = service
        self.name = message.name
        self.trace = message.trace_id.hex()
        self.id = message.span_id.hex()
        self.parent = message.parent_span_id.hex()
        self.kind = message.kind
        self.failed = message.status.code == message.status.STATUS_CODE_ERROR
        self.seconds = (message.end_time_unix_nano - message.start_time_unix_nano) / 1e9
        self.attributes = {item.key: getattr(item.value, item.value.WhichOneof("value")) for item in message.attributes}
