"""What happens around every call: named, identified, limited, counted, timed, traced, and its errors made statuses."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection
from prometheus_client import Counter, Histogram

from service_kit import calls, identity, status, tracing
from service_kit.access import AccessTable, MethodAccess, Needs
from service_kit.errors import (
    Internal,
    InvalidArgument,
    ResourceExhausted,
    ServiceError,
    Unauthenticated,
    Unimplemented,
)
from service_kit.identity import Role
from service_kit.logs import log
from service_kit.reloading import Reloaded
from service_kit.tokens import Tokens

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
# What tells others how the server is must be told when it is full, too; of these calls no traces are made.
_EXEMPT = (health.SERVICE_NAME, reflection.SERVICE_NAME)
# Health checks come from those who have no token; what reflection tells of is any caller's.
_OPEN = (health.SERVICE_NAME,)
_EXEMPT_NEEDS = Needs(Role.READ, shared=True)
_RETRY_AFTER = 1.0  # seconds
_CODES = {code.value[0]: code for code in grpc.StatusCode}
_log = logging.getLogger(__name__)

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Guards every call of every service of a server."""

    def __init__(self, max_calls: int, slow_call: float, access: AccessTable, tokens: Reloaded[Tokens] | None) -> None:
        """
        Args:
            max_calls: calls in progress at most, but for those to health and reflection; others are refused before
                their request is read.
            slow_call: seconds from which on a call that is no stream is logged.
            access: what each method asks of its caller.
            tokens: who calls; None means that nobody is asked.
        """
        self._access = access
        self._tokens = tokens
        self._max_calls = max_calls
        self._full = ResourceExhausted(f"the server has {max_calls} calls in progress, its limit", _RETRY_AFTER)
        self._slow_call = slow_call
        self._calls = 0
        self._methods: dict[str, _Method] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler | None:
        # This runs in the task that runs the call: the id lasts as long as the call, and so does its place.
        calls.begin(handler_call_details.invocation_metadata)
        name: str = handler_call_details.method
        method = self._methods.get(name)
        if method is None:
            handler = await continuation(handler_call_details)
            if handler is None:
                return _unknown(name)
            method = self._methods[name] = _Method(name, handler, self._access, self._full, self._slow_call)
        # Before anything else, so that whoever may not call takes nobody's place.
        caller = identity.ANYBODY
        if self._tokens is not None and not method.open:
            known = self._tokens.value.identify(handler_call_details.invocation_metadata)
            caller = identity.UNKNOWN if isinstance(known, Unauthenticated) else known
            identity.begin(caller)
            if isinstance(known, Unauthenticated):
                return method.refusing_for(known)
        if (denied := method.access.refusal(caller)) is not None:
            return method.refusing_for(denied)
        if method.exempt:
            return method.guarded
        if self._calls >= self._max_calls:
            return method.refusing
        task = asyncio.current_task()
        assert task is not None
        self._calls += 1
        task.add_done_callback(self._ended)
        return method.guarded

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._calls -= 1


class _Method:
    """A method's guarded handler, and the one that refuses its calls while the server is `full`; made once."""

    def __init__(self, name: str, handler: Any, access: AccessTable, full: ServiceError, slow_call: float) -> None:
        _, self.service, self.name = name.split("/")
        self.exempt = self.service in _EXEMPT
        self.open = self.service in _OPEN
        needs = _EXEMPT_NEEDS if self.exempt else access.get(self.service, {}).get(self.name)
        self.access = MethodAccess(self.service, self.name, needs)
        streams = handler.request_streaming or handler.response_streaming
        self.slow = math.inf if self.exempt or streams else slow_call
        self.started = _STARTED.labels(self.service, self.name)
        self.seconds = _HANDLING.labels(self.service, self.name)
        self.handled = functools.cache(lambda code: _HANDLED.labels(self.service, self.name, status.code_name(code)))
        self.guarded = self._guard(handler)
        self.refusing = self.refusing_for(full)

    def refusing_for(self, error: ServiceError) -> _Handler:
        """Returns a handler that ends calls with an error."""
        return self._guard(_refusing(error))

    def _guard(self, handler: Any) -> _Handler:
        deserialize = handler.request_deserializer
        names_tenant = self.access.names_tenant and deserialize is not None

        def unary(behaviour: Any) -> Any:
            async def call(request: Any, context: _Context) -> Any:
                async with _Call(self, context):
                    return await behaviour(received(request), context)

            return call

        def stream(behaviour: Any) -> Any:
            if inspect.iscoroutinefunction(
                behaviour
            ):  # it writes to the context instead of yielding, as health's Watch
                return unary(behaviour)

            async def call(request: Any, context: _Context) -> AsyncIterator[Any]:
                async with _Call(self, context):
                    async for response in behaviour(received(request), context):
                        yield response

            return call

        def received(request: Any) -> Any:
            """Reads a message within the guard: gRPC answers one that is damaged with a stack trace in the log."""
            if handler.request_streaming or deserialize is None:
                return checked(request) if names_tenant and identity.current().tenants is not None else request
            message = deserialize(request)
            if names_tenant:
                self.access.check(message, identity.current())
            return message

        async def checked(messages: AsyncIterator[Any]) -> AsyncIterator[Any]:
            begun = False
            async for message in messages:
                self.access.check(message, identity.current(), begun=begun)
                begun = True
                yield message

        kinds: dict[tuple[bool, bool], tuple[Any, Any, Any]] = {
            (False, False): (grpc.unary_unary_rpc_method_handler, handler.unary_unary, unary),
            (False, True): (grpc.unary_stream_rpc_method_handler, handler.unary_stream, stream),
            (True, False): (grpc.stream_unary_rpc_method_handler, handler.stream_unary, unary),
            (True, True): (grpc.stream_stream_rpc_method_handler, handler.stream_stream, stream),
        }
        make, behaviour, wrap = kinds[handler.request_streaming, handler.response_streaming]
        guarded: _Handler = make(
            wrap(behaviour),
            request_deserializer=deserialize if handler.request_streaming else None,
            response_serializer=handler.response_serializer,
        )
        return guarded


class _Call:
    """The guard of one call, around its handler."""

    __slots__ = ("_caller", "_context", "_method", "_peer", "_span", "_started")

    def __init__(self, method: _Method, context: _Context) -> None:
        self._method = method
        self._context = context

    async def __aenter__(self) -> None:
        method, context = self._method, self._context
        self._started = time.monotonic()
        method.started.inc()
        calls.return_request_id(context)
        # Asked now: a stream that is closed late has no call any more that could be asked, and runs anywhere.
        self._caller = identity.current().name
        self._peer = context.peer() if _log.isEnabledFor(logging.DEBUG) else ""
        self._span = None
        if not method.exempt:
            self._span = tracing.begin_call(method.service, method.name, context, calls.request_id(), self._caller)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        method, context = self._method, self._context
        code = grpc.StatusCode.CANCELLED  # what it is if the call is torn down from outside
        try:
            if error is None or isinstance(error, grpc.aio.AbortError):
                code = _code(context.code())
            elif isinstance(error, grpc.aio.InternalError):
                # A message could not be written: the call has just ended, as by its deadline.
                raise asyncio.CancelledError from error
            elif isinstance(error, Exception):
                answer = _answer(error, method)
                code = status.code_of(answer)
                await status.abort(context, answer)
        finally:
            seconds = time.monotonic() - self._started
            method.handled(code).inc()
            method.seconds.observe(seconds)
            tracing.end_call(self._span, code)
            if seconds >= method.slow or self._peer:
                fields: dict[str, Any] = {"service": method.service, "method": method.name, "code": code.name}
                fields |= {"identity": self._caller, "seconds": round(seconds, 6)}
                if seconds >= method.slow:
                    log(_log, logging.WARNING, "slow call", **fields, **calls.notes())
                if self._peer:
                    log(_log, logging.DEBUG, "call ended", **fields, peer=self._peer)


def _answer(error: Exception, method: _Method) -> ServiceError:
    """Returns what a caller is told of an error; a fault of our own goes to the log."""
    match error:
        case ServiceError():
            return error
        case NotImplementedError():  # from the generated base class of a service
            return Unimplemented(f"{method.name} is part of the contract, but this server does not have it yet")
        case DecodeError():
            return InvalidArgument(f"the request is not a message that {method.name} takes")
    log(_log, logging.ERROR, "call failed", service=method.service, method=method.name)
    return Internal("internal error; the server's log has the details")


def _refusing(error: ServiceError) -> _Handler:
    """Returns a handler that ends a call of any kind with `error`, without reading a request."""

    async def refuse(requests: Any, context: _Context) -> None:
        await status.abort(context, error)

    handler: _Handler = grpc.stream_stream_rpc_method_handler(refuse)
    return handler


def _unknown(name: str) -> _Handler:
    """Returns a handler for a method that nobody has; not counted, because anybody can make up names."""

    async def refuse(requests: Any, context: _Context) -> None:
        calls.return_request_id(context)
        await status.abort(context, Unimplemented(f"this server has no method {name}"))

    handler: _Handler = grpc.stream_stream_rpc_method_handler(refuse)
    return handler


def _code(code: Any) -> grpc.StatusCode:
    """Returns the code that a handler set on its context, which gRPC gives as an enum, a number, or nothing for OK."""
    return code if isinstance(code, grpc.StatusCode) else _CODES.get(code, grpc.StatusCode.OK)
