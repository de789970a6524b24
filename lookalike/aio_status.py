"""How a stream of grpc.aio ended: a write that meets the end of its call hides the status (grpc/grpc#36066)."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import grpc
import grpc.aio

T = TypeVar("T")

_HIDDEN = "Internal error from Core"  # what is said instead
_PATIENCE = 1.0  # seconds that the status gets to come after all
_INTERVAL = 0.01


class StreamEnd:
    """Remembers the status that a call ended with first; the hiding one may come before it, or after."""

    def __init__(self, call: Any) -> None:
        """
        Args:
            call: a stream of `grpc.aio` that has just begun.
        """
        self._call = call
        self._first: grpc.RpcError | None = None
        call.add_done_callback(self._ended)

    async def error(self, raised: grpc.RpcError) -> grpc.RpcError:
        """Returns why the call failed: what it `raised`, or what that hides."""
        if not _hides(raised):
            return raised
        if self._first is not None and not _hides(self._first):
            return self._first
        for _ in range(round(_PATIENCE / _INTERVAL)):  # nothing tells of a status that replaces another
            if not _hides(latest := _status(self._call)):
                return latest
            await asyncio.sleep(_INTERVAL)
        return raised

    def _ended(self, call: Any) -> None:
        self._first = _status(call)


def _hides(error: grpc.RpcError) -> bool:
    return error.code() is grpc.StatusCode.INTERNAL and error.details() == _HIDDEN


def _status(call: Any) -> grpc.aio.AioRpcError:
    """Returns the status of a call that has ended."""
    return grpc.aio.AioRpcError(
        _immediate(call.code()),
        grpc.aio.Metadata(),
        _immediate(call.trailing_metadata()),
        _immediate(call.details()),
    )


def _immediate(result: Coroutine[Any, Any, T]) -> T:
    """Returns the result of a coroutine that has nothing to wait for: a task would run after the hiding write."""
    try:
        result.send(None)
    except StopIteration as end:
        value: T = end.value
        return value
    raise AssertionError("the call has not ended")
