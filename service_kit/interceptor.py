"""What happens around every call: it is counted and timed, and its errors become statuses."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
from prometheus_client import Counter, Histogram

from service_kit import status
from service_kit.errors import ServiceError
from service_kit.logs import log

_STARTED = Counter("grpc_server_started_total", "Calls started.", ["grpc_service", "grpc_method"])
_HANDLED = Counter(
    "grpc_server_handled_total", "Calls ended, by status code.", ["grpc_service", "grpc_method", "grpc_code"]
)
_HANDLING = Histogram(
    "grpc_server_handling_seconds",
    "Time from a call's start to its end.",
    ["grpc_service", "grpc_method"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.25, 0.35, 0.5, 0.75, 1, 2.5, 5),
)
_log = logging.getLogger(__name__)


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Counts, times and guards every call of every service of a server."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = await continuation(handler_call_details)
        if handler is None:  # no such method: gRPC answers UNIMPLEMENTED
            return handler
        _, service, method = handler_call_details.method.split("/")
        return _guarded(handler, service, method)


def _guarded(handler: Any, service: str, method: str) -> grpc.RpcMethodHandler[Any, Any]:
    def unary(behaviour: Any) -> Any:
        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            async with _call(context, service, method):
                return await behaviour(request, context)

        return call

    def stream(behaviour: Any) -> Any:
        if inspect.iscoroutinefunction(behaviour):  # it writes to the context instead of yielding, as health's Watch
            return unary(behaviour)

        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            async with _call(context, service, method):
                async for response in behaviour(request, context):
                    yield response

        return call

    kinds: dict[tuple[bool, bool], tuple[Any, Any, Any]] = {
        (False, False): (grpc.unary_unary_rpc_method_handler, handler.unary_unary, unary),
        (False, True): (grpc.unary_stream_rpc_method_handler, handler.unary_stream, stream),
        (True, False): (grpc.stream_unary_rpc_method_handler, handler.stream_unary, unary),
        (True, True): (grpc.stream_stream_rpc_method_handler, handler.stream_stream, stream),
    }
    make, behaviour, wrap = kinds[handler.request_streaming, handler.response_streaming]
    guarded: grpc.RpcMethodHandler[Any, Any] = make(
        wrap(behaviour),
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )
    return guarded


@asynccontextmanager
async def _call(context: grpc.aio.ServicerContext[Any, Any], service: str, method: str) -> AsyncIterator[None]:
    started = time.monotonic()
    _STARTED.labels(service, method).inc()
    code = grpc.StatusCode.CANCELLED  # what it is if the call is torn down from outside
    try:
        yield
        code = _code(context.code())
    except ServiceError as error:
        code = status.code_of(error)
        await status.abort(context, error)
    except grpc.aio.AbortError:
        code = _code(context.code())
        raise
    except NotImplementedError:  # from the generated base class of a service
        code = grpc.StatusCode.UNIMPLEMENTED
        await context.abort(code, f"{method} is part of the contract, but this server does not have it yet")
    except Exception:
        code = grpc.StatusCode.INTERNAL
        log(_log, logging.ERROR, "call failed", service=service, method=method)
        await context.abort(code, "internal error; the server's log has the details")
    finally:
        _HANDLED.labels(service, method, status.code_name(code)).inc()
        _HANDLING.labels(service, method).observe(time.monotonic() - started)


def _code(code: Any) -> grpc.StatusCode:
    """Returns the code that a handler set on its context, which gRPC gives as an enum, a number, or nothing for OK."""
    if isinstance(code, grpc.StatusCode):
        return code
    return next((known for known in grpc.StatusCode if known.value[0] == code), grpc.StatusCode.OK)
