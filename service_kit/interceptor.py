"""What happens around every call: named, identified, limited, read, timed, traced; its errors made statuses."""

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

from service_kit import calls, identity, sharing, status, tracing
from service_kit.access import AccessTable, MethodAccess, Needs
from service_kit.errors import (
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    ResourceExhausted,
    ServiceError,
    Unauthenticated,
    Unimplemented,
)
from service_kit.fair import Share, Turns
from service_kit.identity import Role
from service_kit.logs import log
from service_kit.reloading import Reloaded
from service_kit.settings import ServerSettings
from service_kit.sharing import CallerOf
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

    def __init__(
        self,
        settings: ServerSettings,
        access: AccessTable,
        tokens: Reloaded[Tokens] | None,
        caller_of: CallerOf,
        turns: int,
    ) -> None:
        """
        Args:
            settings: limits on calls. Those in progress do not count calls to health and reflection; calls beyond are
                refused before their request is read.
            access: what each method asks of its caller.
            tokens: who calls; None means that nobody is asked.
            caller_of: names the caller, each of which may have a share of the calls.
            turns: of one caller while there are others, where the settings do not say.
        """
        self._access = access
        self._tokens = tokens
        self._max_calls = settings.max_concurrent_rpcs
        self._full = ResourceExhausted(f"the server has {self._max_calls} calls in progress, its limit", _RETRY_AFTER)
        self._settings = settings
        self._callers = _Callers(settings.max_caller_rpcs, settings.caller_turns or turns, caller_of)
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
            method = self._methods[name] = _Method(
                name, handler, self._access, self._full, self._settings, self._callers
            )
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


class _Callers:
    """Who has how many calls in progress. The place of a call is its task's: it lasts until the reply is written."""

    def __init__(self, most: int, turns: int, caller_of: CallerOf) -> None:
        self._most = most
        self._caller_of = caller_of
        self._share = Share(most)
        self._turns = Turns(turns)

    async def admit(self, request: Any, context: _Context, *, in_turn: bool) -> None:
        """Notes who makes a call, and waits for his turn. Raises ResourceExhausted if the caller has too many."""
        name = self._caller_of(request, context.invocation_metadata() or ())
        give_back = self._share.take(name)
        if give_back is None:
            raise ResourceExhausted(
                f"caller {name!r} has {self._most} calls in progress, the limit for one: wait for some to end",
                _RETRY_AFTER,
            )
        task = asyncio.current_task()
        assert task is not None
        task.add_done_callback(lambda _: give_back())
        sharing.begin(name)
        if in_turn:
            await self._turns.acquire(name)
            task.add_done_callback(lambda _: self._turns.release(name))


class _Method:
    """A method's guarded handler, and the one that refuses its calls while the server is `full`; made once."""

    def __init__(
        self,
        name: str,
        handler: Any,
        access: AccessTable,
        full: ServiceError,
        settings: ServerSettings,
        callers: _Callers,
    ) -> None:
        _, self.service, self.name = name.split("/")
        self.exempt = self.service in _EXEMPT
        self.open = self.service in _OPEN
        needs = _EXEMPT_NEEDS if self.exempt else access.get(self.service, {}).get(self.name)
        self.access = MethodAccess(self.service, self.name, needs)
        streams = handler.request_streaming or handler.response_streaming
        self.slow = math.inf if self.exempt or streams else settings.slow_call
        self._request_timeout = settings.request_timeout
        self._idle_timeout = settings.stream_idle_timeout
        self._callers = callers
        self.started = _STARTED.labels(self.service, self.name)
        self.seconds = _HANDLING.labels(self.service, self.name)
        self.handled = functools.cache(lambda code: _HANDLED.labels(self.service, self.name, status.code_name(code)))
        self.guarded = self._guard(handler)
        self.refusing = self.refusing_for(full)

    def refusing_for(self, error: ServiceError) -> _Handler:
        """Returns a handler that ends calls with an error."""
        return self._guard(_refusing(error))

    def _guard(self, handler: Any) -> _Handler:
        """Returns a handler that reads requests within the guard, whatever the kind of the call.

        gRPC would wait for a single request for ever, and answer a damaged one with a stack trace in the log.
        """

        def unary(behaviour: Any) -> Any:
            async def call(messages: AsyncIterator[Any], context: _Context) -> Any:
                async with _Call(self, context):
                    return await behaviour(await self._received(handler, messages, context), context)

            return call

        def stream(behaviour: Any) -> Any:
            if inspect.iscoroutinefunction(
                behaviour
            ):  # it writes to the context instead of yielding, as health's Watch
                return unary(behaviour)

            async def call(messages: AsyncIterator[Any], context: _Context) -> AsyncIterator[Any]:
                async with _Call(self, context):
                    async for response in behaviour(await self._received(handler, messages, context), context):
                        yield response

            return call

        if handler.response_streaming:
            make, wrapped = grpc.stream_stream_rpc_method_handler, stream(handler.unary_stream or handler.stream_stream)
        else:
            make, wrapped = grpc.stream_unary_rpc_method_handler, unary(handler.unary_unary or handler.stream_unary)
        guarded: _Handler = make(
            wrapped,
            request_deserializer=handler.request_deserializer if handler.request_streaming else None,
            response_serializer=handler.response_serializer,
        )
        return guarded

    async def _received(self, handler: Any, messages: AsyncIterator[Any], context: _Context) -> Any:
        """Returns the request of a call, or its stream of requests, from a caller who may have one more call."""
        request = None
        if not handler.request_streaming:
            request = await _next(
                messages, self._request_timeout, "the request did not arrive within {} s: send it faster"
            )
            if request is None:
                raise InvalidArgument(f"the call ended without the request that {self.name} takes")
            if handler.request_deserializer is not None:
                request = handler.request_deserializer(request)
            if self.access.names_tenant:
                self.access.check(request, identity.current())
        if not self.exempt:
            in_turn = not (handler.request_streaming or handler.response_streaming)  # those may last for ever
            await self._callers.admit(request, context, in_turn=in_turn)
        return self._stream(messages) if request is None else request

    async def _stream(self, messages: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """Yields the messages of a stream that come in time, and that its caller may send."""
        late = "no message came for {} s: end a stream that has no more, and begin another one later"
        begun = False
        while (message := await _next(messages, self._idle_timeout, late)) is not None:
            if self.access.names_tenant:
                self.access.check(message, identity.current(), begun=begun)
            begun = True
            yield message


async def _next(messages: AsyncIterator[Any], seconds: float, late: str) -> Any:
    """Returns the next message, or None at the end. Raises DeadlineExceeded if it is late."""
    try:
        async with asyncio.timeout(seconds):
            return await anext(messages, None)
    except TimeoutError as error:
        raise DeadlineExceeded(late.format(seconds)) from error


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
