"""What all clients are: a connection to one service, open as long as a context lasts, with one deadline for calls."""

from __future__ import annotations

import asyncio
import copy
import time
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Sequence,
)
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc

from lookalike.aio_status import StreamEnd
from lookalike.batches import IN_FLIGHT, Batch, Batches, merged, sendable
from lookalike.call import Call
from lookalike.channel import connect, connect_aio
from lookalike.errors import LookalikeError, translated
from lookalike.retries import Attempts
from lookalike.security import Bearer, Security

T = TypeVar("T")
Q = TypeVar("Q")


class _Settings:
    """What both kinds of connection know beside their channel."""

    _timeout: float
    _retry: bool
    _bearer: Bearer

    def with_timeout(self, seconds: float) -> Self:
        """Returns this client with another deadline for calls, such as what is left of a caller's own.

        It shares the connection, and is closed with it; making one costs next to nothing.

        >>> client.with_timeout(2.5).count("photos")
        3
        """
        other = copy.copy(self)
        other._timeout = seconds
        return other

    def _metadata(self) -> tuple[tuple[str, str], ...] | None:
        return self._bearer.metadata() or None

    def _attempts(self, call: Call[Any]) -> Attempts:
        return Attempts(call.method, self._timeout, retry=self._retry)


class Connection(_Settings):
    """A synchronous client's connection. Safe to share between threads."""

    def __init__(
        self, target: str, timeout: float, retry: bool, security: Security | None, stub: Callable[[grpc.Channel], Any]
    ) -> None:
        security = security or Security.from_environment()
        self._bearer = security.bearer()
        self._channel = connect(target, security=security, retry=retry)
        self._stub = stub(self._channel)
        self._timeout = timeout
        self._retry = retry

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; calls in progress fail as CANCELLED."""
        self._channel.close()

    def _call(self, call: Call[T]) -> T:
        method, attempts = getattr(self._stub, call.method), self._attempts(call)
        while True:
            try:
                with translated():
                    response = method(call.request, timeout=attempts.seconds_left, metadata=self._metadata())
                return call.result(response)
            except LookalikeError as error:
                pause = attempts.pause_after(error)
                if pause is None:
                    raise
            time.sleep(pause)

    def _read(self, call: Call[T]) -> Generator[T]:
        """Yields the results of a call with a stream of responses, which has no deadline once it has begun."""
        method, attempts = getattr(self._stub, call.method), self._attempts(call)
        begun = False
        while True:
            responses = method(call.request, metadata=self._metadata())
            try:
                with translated():
                    for response in responses:
                        begun = True
                        yield call.result(response)
                return
            except LookalikeError as error:
                pause = None if begun else attempts.pause_after(error)
                if pause is None:
                    raise
            finally:
                responses.cancel()  # does nothing after the end
            time.sleep(pause)

    def _stream(self, method: Callable[..., Any], requests: Iterable[object]) -> Generator[Any]:
        """Yields the responses of a stream; an error of `requests` itself ends it, and is raised as it is."""
        broken: list[Exception] = []

        def watched() -> Iterator[object]:
            try:
                yield from requests
            except Exception as error:  # gRPC would make UNKNOWN of it
                broken.append(error)
                raise

        call = method(watched(), metadata=self._metadata())
        try:
            with translated():
                yield from call
        except LookalikeError:
            if broken:
                raise broken[0] from None
            raise
        finally:
            call.cancel()  # does nothing after the end

    def _in_batches(
        self,
        items: Iterable[Q],
        size: Callable[[Q], int],
        batches: Batches[Q],
        send: Callable[[list[Q]], Sequence[T | LookalikeError]],
    ) -> Generator[T | LookalikeError]:
        """Yields the result of each item, in order; `send` sends some of them, in a thread."""
        pending: deque[tuple[Batch[Q], Future[Sequence[T | LookalikeError]]]] = deque()
        senders = ThreadPoolExecutor(IN_FLIGHT, "lookalike-batch")

        def send_any(ready: list[Q]) -> Sequence[T | LookalikeError]:
            return send(ready) if ready else ()

        def begin(batch: Batch[Q]) -> None:
            pending.append((batch, senders.submit(send_any, sendable(batch))))

        def end() -> Iterator[T | LookalikeError]:
            batch, sent = pending.popleft()
            return merged(batch, sent.result())

        try:
            for item in items:
                if full := batches.add(item, size(item)):
                    if len(pending) == IN_FLIGHT:
                        yield from end()
                    begin(full)
            if rest := batches.rest():
                begin(rest)
            while pending:
                yield from end()
        finally:
            senders.shutdown(wait=False, cancel_futures=True)  # those on their way end by their deadline


class AsyncConnection(_Settings):
    """An asyncio client's connection. Belongs to one event loop."""

    def __init__(
        self,
        target: str,
        timeout: float,
        retry: bool,
        security: Security | None,
        stub: Callable[[grpc.aio.Channel], Any],
    ) -> None:
        security = security or Security.from_environment()
        self._bearer = security.bearer()
        self._channel = connect_aio(target, security=security, retry=retry)
        self._stub = stub(self._channel)
        self._timeout = timeout
        self._retry = retry

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection; calls in progress fail as CANCELLED."""
        await self._channel.close()

    async def _call(self, call: Call[T]) -> T:
        method, attempts = getattr(self._stub, call.method), self._attempts(call)
        while True:
            try:
                with translated():
                    response = await method(call.request, timeout=attempts.seconds_left, metadata=self._metadata())
                return call.result(response)
            except LookalikeError as error:
                pause = attempts.pause_after(error)
                if pause is None:
                    raise
            await asyncio.sleep(pause)

    async def _read(self, call: Call[T]) -> AsyncGenerator[T]:
        """Yields the results of a call with a stream of responses, which has no deadline once it has begun."""
        method, attempts = getattr(self._stub, call.method), self._attempts(call)
        begun = False
        while True:
            responses = method(call.request, metadata=self._metadata())
            try:
                with translated():
                    async for response in responses:
                        begun = True
                        yield call.result(response)
                return
            except LookalikeError as error:
                pause = None if begun else attempts.pause_after(error)
                if pause is None:
                    raise
            finally:
                responses.cancel()  # does nothing after the end
            await asyncio.sleep(pause)

    async def _stream(self, method: Callable[..., Any], requests: AsyncIterable[object]) -> AsyncGenerator[Any]:
        """Yields the responses of a stream; an error of `requests` itself ends it, and is raised as it is."""
        broken: list[Exception] = []

        async def watched() -> AsyncIterator[object]:
            try:
                async for request in requests:
                    yield request
            except Exception as error:  # gRPC would make a cancellation of it
                broken.append(error)
                raise

        call = method(watched(), metadata=self._metadata())
        end = StreamEnd(call)
        try:
            with translated():
                try:
                    async for response in call:
                        yield response
                except grpc.RpcError as error:
                    raise await end.error(error) from None
        except (LookalikeError, asyncio.CancelledError):
            if broken:
                raise broken[0] from None
            raise
        finally:
            call.cancel()  # does nothing after the end

    async def _in_batches(
        self,
        items: Iterable[Q] | AsyncIterable[Q],
        size: Callable[[Q], int],
        batches: Batches[Q],
        send: Callable[[list[Q]], Awaitable[Sequence[T | LookalikeError]]],
    ) -> AsyncGenerator[T | LookalikeError]:
        """Yields the result of each item, in order; `send` sends some of them, in a task."""
        pending: deque[tuple[Batch[Q], asyncio.Task[Sequence[T | LookalikeError]]]] = deque()

        async def send_any(ready: list[Q]) -> Sequence[T | LookalikeError]:
            return await send(ready) if ready else ()

        def begin(batch: Batch[Q]) -> None:
            pending.append((batch, asyncio.create_task(send_any(sendable(batch)))))

        async def end() -> Iterator[T | LookalikeError]:
            batch, sent = pending[0]
            results = merged(batch, await sent)
            pending.popleft()
            return results

        try:
            async for item in aiter_any(items):
                if full := batches.add(item, size(item)):
                    if len(pending) == IN_FLIGHT:
                        for result in await end():
                            yield result
                    begin(full)
            if rest := batches.rest():
                begin(rest)
            while pending:
                for result in await end():
                    yield result
        finally:
            for _, sent in pending:
                sent.cancel()
            await asyncio.gather(*(sent for _, sent in pending), return_exceptions=True)


async def aiter_any(items: Iterable[T] | AsyncIterable[T]) -> AsyncIterator[T]:
    """Iterates over items of either kind."""
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
