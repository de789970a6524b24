"""What all clients are: a connection to one service, open as long as a context lasts, with one deadline for calls."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from lookalike.channel import connect, connect_aio
from lookalike.errors import translated


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
