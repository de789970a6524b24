"""A stream of images: so many in flight, and each answered when it is done."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

from embedder_service.jobs import Outcome
from embedder_service.lanes import Lane
from embedder_service.pipeline import Pipeline
from service_kit.errors import ServiceError, Unavailable
from service_kit.streams import until


@dataclass(frozen=True)
class Item:
    """One image of a stream; `refusal`, if there is one, is its answer."""

    correlation_id: str
    image: bytes
    lane: Lane
    deadline: float | None
    refusal: ServiceError | None = None


async def embed_stream(
    pipeline: Pipeline,
    items: AsyncIterator[Item],
    write: Callable[[str, Outcome], Awaitable[None]],
    *,
    in_flight: int,
    draining: asyncio.Event,
) -> None:
    """Embeds a stream of images until it ends.

    Backpressure in both directions: an item is read only when there is room for it, in the stream and in the server,
    and an item counts as in flight until its answer is written. A caller that does not read its answers holds no place
    that others could use.

    Args:
        items: what to embed; lane and deadline are each item's own.
        write: sends the outcome of the item with a correlation id. Never called twice at a time.
        in_flight: items read and not answered at most.
        draining: once set, no more is read.

    Raises:
        Unavailable: `draining` was set before the stream ended. What was read is answered.
    """
    free = asyncio.Semaphore(in_flight)
    writing = asyncio.Lock()

    async def answer(item: Item, place: ExitStack) -> None:
        try:
            if item.refusal:
                raise item.refusal
            outcome: Outcome = await pipeline.embed(item.image, item.lane, item.deadline, admitted=True)
        except ServiceError as error:
            outcome = error
        place.close()
        async with writing:
            await write(item.correlation_id, outcome)
        free.release()

    try:
        async with asyncio.TaskGroup() as tasks:
            await free.acquire()
            async for item in until(draining, items):
                try:
                    place = await pipeline.place(item.lane, len(item.image), item.deadline)
                except ServiceError as error:
                    item, place = replace(item, refusal=error), ExitStack()
                # Closed a second time, in case the task is cancelled before it begins.
                tasks.create_task(answer(item, place)).add_done_callback(partial(_close, place))
                await free.acquire()
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None  # the call has failed as a whole, by the first of them
    if draining.is_set():
        raise Unavailable("the server is stopping; send what has no answer to another one")


def _close(place: ExitStack, _: object) -> None:
    place.close()
