"""A mix of all that callers do to the embedder, the careless ones too, and which answers each may get."""

from __future__ import annotations

import asyncio
import io
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc
import numpy as np
from google.rpc import code_pb2
from PIL import Image

from benchmarks.load import OK
from lookalike.channel import connect_aio
from lookalike.embedder.v1 import embedder_pb2 as pb
from lookalike.embedder.v1.embedder_pb2_grpc import EmbedderServiceStub

if TYPE_CHECKING:  # known to the type stubs alone
    from lookalike.embedder.v1.embedder_pb2_grpc import EmbedderServiceAsyncStub

_CALL_SECONDS = 60.0
_BATCH = 8
_BIG = (4000, 3000)

# Answers by kind of call, with how often each was given.
Answers = dict[str, dict[str, int]]


@dataclass(frozen=True)
class Kind:
    """One kind of call: how often it is chosen, what it does, and the status codes it may end with."""

    weight: int
    call: Callable[[], Awaitable[Sequence[str]]]
    allowed: frozenset[str]


async def run(address: str, images: Sequence[bytes], callers: int, until: float, seed: int = 0) -> tuple[Answers, int]:
    """Keeps a number of calls of random kinds in flight until a time of the monotonic clock.

    Returns:
        for each kind of call how often it got each status code (one per image where an image has one of its own), and
        how many of those codes it should not have got.
    """
    async with connect_aio(address) as channel:
        stub = EmbedderServiceStub(channel)
        chance = random.Random(seed)  # noqa: S311
        kinds = _Calls(stub, images, chance).kinds()
        answers: dict[str, Counter[str]] = {name: Counter() for name in kinds}
        weights = [kind.weight for kind in kinds.values()]

        async def call_again_and_again() -> None:
            while time.monotonic() < until:
                (name,) = chance.choices(list(kinds), weights)
                answers[name].update(await _codes(kinds[name]))

        async with asyncio.TaskGroup() as group:
            for _ in range(callers):
                group.create_task(call_again_and_again())
    wrong = sum(
        count for name, codes in answers.items() for code, count in codes.items() if code not in kinds[name].allowed
    )
    return {name: dict(sorted(codes.items())) for name, codes in answers.items()}, wrong


async def _codes(kind: Kind) -> Sequence[str]:
    try:
        return await kind.call()
    except grpc.aio.AioRpcError as error:
        return [error.code().name]
    except asyncio.CancelledError:
        # gRPC raises this for a call that was cancelled; a task of ours that is, is told by its own count.
        if (task := asyncio.current_task()) and task.cancelling():
            raise
        return [grpc.StatusCode.CANCELLED.name]


class _Calls:
    """The kinds of calls."""

    def __init__(self, stub: EmbedderServiceAsyncStub, images: Sequence[bytes], chance: random.Random) -> None:
        self._stub = stub
        self._images = images
        self._chance = chance
        self._big = _big_image()

    def kinds(self) -> dict[str, Kind]:
        """Returns all kinds."""
        # It passes, or is refused at once where the queue would take longer.
        expired = frozenset((OK, "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"))
        return {
            "embed": Kind(40, self._embed, frozenset((OK,))),
            "embed_batch": Kind(10, self._batch, frozenset((OK,))),
            "bad image": Kind(10, self._bad, frozenset(("INVALID_ARGUMENT",))),
            "batch with a bad image": Kind(5, self._batch_with_bad, frozenset((OK, "BAD_ONE_REFUSED"))),
            "big image": Kind(2, self._huge, frozenset((OK,))),
            "another model": Kind(2, self._other_model, frozenset(("FAILED_PRECONDITION",))),
            "short deadline": Kind(10, self._hurried, expired),
            "cancelled": Kind(10, self._cancelled, frozenset((OK, "CANCELLED"))),
            "embed_stream": Kind(10, self._stream, frozenset((OK,))),
        }

    async def _embed(self) -> Sequence[str]:
        await self._stub.Embed(pb.EmbedRequest(image=self._image()), timeout=_CALL_SECONDS)
        return [OK]

    async def _batch(self) -> Sequence[str]:
        request = pb.EmbedBatchRequest(images=[self._image() for _ in range(_BATCH)])
        return [_code(result) for result in (await self._stub.EmbedBatch(request, timeout=_CALL_SECONDS)).results]

    async def _bad(self) -> Sequence[str]:
        await self._stub.Embed(pb.EmbedRequest(image=self._damaged()), timeout=_CALL_SECONDS)
        return [OK]

    async def _batch_with_bad(self) -> Sequence[str]:
        request = pb.EmbedBatchRequest(images=[self._image(), self._damaged(), self._image()])
        first, bad, last = (await self._stub.EmbedBatch(request, timeout=_CALL_SECONDS)).results
        refused = "BAD_ONE_REFUSED" if _code(bad) == "INVALID_ARGUMENT" else f"BAD_ONE_{_code(bad)}"
        return [_code(first), refused, _code(last)]

    async def _huge(self) -> Sequence[str]:
        await self._stub.Embed(pb.EmbedRequest(image=self._big), timeout=_CALL_SECONDS)
        return [OK]

    async def _other_model(self) -> Sequence[str]:
        request = pb.EmbedRequest(image=self._image(), expected_fingerprint="another")
        await self._stub.Embed(request, timeout=_CALL_SECONDS)
        return [OK]

    async def _hurried(self) -> Sequence[str]:
        await self._stub.Embed(pb.EmbedRequest(image=self._image()), timeout=self._chance.uniform(0.001, 0.1))
        return [OK]

    async def _cancelled(self) -> Sequence[str]:
        call = self._stub.Embed(pb.EmbedRequest(image=self._image()), timeout=_CALL_SECONDS)
        # Somewhere on its way: a call that is answered earlier can no longer be cancelled.
        asyncio.get_running_loop().call_later(self._chance.uniform(0.0, 0.1), call.cancel)
        await call
        return [OK]

    async def _stream(self) -> Sequence[str]:
        waiting = {str(number): self._image() for number in range(2 * _BATCH)}

        async def requests() -> AsyncIterator[pb.EmbedStreamRequest]:
            for name, image in list(waiting.items()):
                yield pb.EmbedStreamRequest(correlation_id=name, image=image)

        codes = []
        async for response in self._stub.EmbedStream(requests(), timeout=_CALL_SECONDS):
            known = waiting.pop(response.correlation_id, None) is not None
            codes.append(_code(response.result) if known else "UNKNOWN_CORRELATION_ID")
        return codes + ["NO_ANSWER"] * len(waiting)

    def _image(self) -> bytes:
        return self._chance.choice(self._images)

    def _damaged(self) -> bytes:
        image = self._image()
        return self._chance.choice((b"", b"not an image", image[: len(image) // 2]))


def _code(result: pb.EmbedResult) -> str:
    return code_pb2.Code.Name(result.error.code) if result.HasField("error") else OK


def _big_image() -> bytes:
    """A photograph's size, with content that does not compress to nothing."""
    noise = np.random.default_rng(0).integers(0, 256, (_BIG[1] // 8, _BIG[0] // 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize(_BIG).save(file, "JPEG")
    return file.getvalue()
