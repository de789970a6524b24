"""What all clients are: a connection to one service, open as long as a context lasts, with one deadline for calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Generator, Iterable, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar

from lookalike.channel import connect, connect_aio
from lookalike.errors import LookalikeError, translated

T = TypeVar("T")


class Connection:
    """A synchronous client's connection. Safe to share between threads."""

    def __init__(self, target: str, timeout: float) -> None:
        self._channel = connect(target)
        self._timeout = timeout

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; calls in progress fail as CANCELLED."""
        self._channel.close()

    def _call(self, method: Callable[..., Any], request: object) -> Any:
        with translated():
            return method(request, timeout=self._timeout)

    def _stream(self, method: Callable[..., Any], requests: Iterable[object]) -> Generator[Any]:
        """Yields the responses of a stream; an error of `requests` itself ends it, and is raised as it is."""
        broken: list[Exception] = []

        def watched() -> Iterator[object]:
            try:
                yield from requests
            except Exception as error:  # gRPC would make UNKNOWN of it
                broken.append(error)
                raise

        call = method(watched())
        try:
            with translated():
                yield from call
        except LookalikeError:
            if broken:
                raise broken[0] from None
            raise
        finally:
            call.cancel()  # does nothing after the end


class AsyncConnection:
    """An asyncio client's connection. Belongs to one event loop."""

    def __init__(self, target: str, timeout: float) -> None:
        self._channel = connect_aio(target)
        self._timeout = timeout

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection; calls in progress fail as CANCELLED."""
        await self._channel.close()

    async def _call(self, method: Callable[..., Any], request: object) -> Any:
        with translated():
            return await method(request, timeout=self._timeout)

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

        call = method(watched())
        try:
            with translated():
                async for response in call:
                    yield response
        except (LookalikeError, asyncio.CancelledError):
            if broken:
                raise broken[0] from None
            raise
        finally:
            call.cancel()  # does nothing after the end


async def aiter_any(items: Iterable[T] | AsyncIterable[T]) -> AsyncIterator[T]:
    """Iterates over items of either kind."""
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
