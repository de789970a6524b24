"""Reading the requests of a stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TypeVar

T = TypeVar("T")


async def until(event: asyncio.Event, items: AsyncIterator[T]) -> AsyncGenerator[T]:
    """Yields items, none of them None, until they end or the event is set, even while none comes."""
    stop = asyncio.ensure_future(event.wait())
    try:
        while not stop.done():
            step = asyncio.ensure_future(_next(items))
            try:
                await asyncio.wait((stop, step), return_when=asyncio.FIRST_COMPLETED)
                if step.done():
                    if (item := step.result()) is None:
                        return
                    yield item
            finally:
                step.cancel()
    finally:
        stop.cancel()


async def _next(items: AsyncIterator[T]) -> T | None:
    return await anext(items, None)
