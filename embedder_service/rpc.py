"""The gRPC face of the pipeline: messages and deadlines in, messages and statuses out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from embedder_service.jobs import Outcome, Vector
from embedder_service.lanes import Lane
from embedder_service.pipeline import Pipeline, Stages
from embedder_service.stream import Item, embed_stream
from lookalike.embedder.v1 import embedder_pb2, embedder_pb2_grpc
from service_kit import calls, status
from service_kit.access import Needs
from service_kit.errors import FailedPrecondition, InvalidArgument, ServiceError
from service_kit.identity import Role

SERVICE: str = embedder_pb2.DESCRIPTOR.services_by_name["EmbedderService"].full_name

# The embedder keeps nothing, so nothing here belongs to a tenant.
_READ = Needs(Role.READ, shared=True)
ACCESS = {SERVICE: {"GetModel": _READ, "Embed": _READ, "EmbedBatch": _READ, "EmbedStream": _READ}}

_LANES = {embedder_pb2.PRIORITY_INTERACTIVE: Lane.INTERACTIVE, embedder_pb2.PRIORITY_BULK: Lane.BULK}
_WANTS_TIMINGS = ("lookalike-timings", "1")

_Context = grpc.aio.ServicerContext[Any, Any]


class EmbedderServicer(embedder_pb2_grpc.EmbedderServiceServicer):
    """Serves lookalike.embedder.v1.EmbedderService, whose .proto documents the calls."""

    def __init__(
        self,
        pipeline: Pipeline,
        model: embedder_pb2.Model,
        limits: embedder_pb2.Limits,
        draining: asyncio.Event,
    ) -> None:
        self._pipeline = pipeline
        self._model = model
        self._limits = limits
        self._draining = draining

    async def GetModel(self, request: embedder_pb2.GetModelRequest, context: _Context) -> embedder_pb2.GetModelResponse:
        return embedder_pb2.GetModelResponse(model=self._model, limits=self._limits)

    async def Embed(self, request: embedder_pb2.EmbedRequest, context: _Context) -> embedder_pb2.EmbedResponse:
        self._require_model(request.expected_fingerprint)
        lane = _LANES.get(request.priority, Lane.INTERACTIVE)
        with _timed(context) as stages:
            vector = await self._pipeline.embed(request.image, lane, _deadline(context), stages=stages)
        return embedder_pb2.EmbedResponse(embedding=_embedding(vector), model_fingerprint=self._model.fingerprint)

    async def EmbedBatch(
        self, request: embedder_pb2.EmbedBatchRequest, context: _Context
    ) -> embedder_pb2.EmbedBatchResponse:
        self._require_model(request.expected_fingerprint)
        count, limit = len(request.images), self._limits.max_batch_images
        if not 1 <= count <= limit:
            raise InvalidArgument(f"the batch has {count} images; send at least 1 and at most {limit}")
        lane = _LANES.get(request.priority, Lane.BULK)
        with _timed(context) as stages:
            outcomes = await self._pipeline.embed_many(request.images, lane, _deadline(context), stages=stages)
        return embedder_pb2.EmbedBatchResponse(
            results=map(_result, outcomes), model_fingerprint=self._model.fingerprint
        )

    async def EmbedStream(  # type: ignore[override]  # gRPC takes either form
        self, request_iterator: AsyncIterator[embedder_pb2.EmbedStreamRequest], context: _Context
    ) -> None:
        # A coroutine that writes, instead of a generator: it ends when the call ends, wherever it waits.
        async def write(correlation_id: str, outcome: Outcome) -> None:
            await context.write(
                embedder_pb2.EmbedStreamResponse(
                    correlation_id=correlation_id,
                    result=_result(outcome),
                    model_fingerprint=self._model.fingerprint,
                )
            )

        last = _deadline(context)
        await embed_stream(
            self._pipeline,
            (self._item(request, last) async for request in request_iterator),
            write,
            in_flight=self._limits.max_stream_in_flight,
            draining=self._draining,
        )

    def _item(self, request: embedder_pb2.EmbedStreamRequest, last: float | None) -> Item:
        deadline = last
        if request.HasField("timeout"):
            own = time.monotonic() + request.timeout.ToNanoseconds() / 1e9
            deadline = own if last is None else min(own, last)
        refusal = None
        try:
            self._require_model(request.expected_fingerprint)
        except FailedPrecondition as error:
            refusal = error
        return Item(request.correlation_id, request.image, _LANES.get(request.priority, Lane.BULK), deadline, refusal)

    def _require_model(self, expected: str) -> None:
        if expected and expected != self._model.fingerprint:
            raise FailedPrecondition(
                f"the caller expects the model with fingerprint {expected}, but this server serves "
                f"{self._model.fingerprint}; vectors of the two cannot be compared"
            )


def _deadline(context: _Context) -> float | None:
    """Returns the call's deadline as a time of time.monotonic()."""
    remaining = context.time_remaining()
    return None if remaining is None else time.monotonic() + remaining


@contextmanager
def _timed(context: _Context) -> Iterator[Stages | None]:
    """Yields what to note the time of each stage in, if the caller wants to know, and sends it with the call's end."""
    if _WANTS_TIMINGS not in (context.invocation_metadata() or ()):
        yield None
        return
    stages: Stages = {}
    try:
        yield stages
    finally:
        pairs = [(f"lookalike-timing-{stage}", f"{seconds:.6f}") for stage, seconds in stages.items()]
        calls.add_trailing_metadata(context, *pairs)


def _embedding(vector: Vector) -> embedder_pb2.Embedding:
    return embedder_pb2.Embedding(values=vector.tolist())


def _result(outcome: Outcome) -> embedder_pb2.EmbedResult:
    if isinstance(outcome, ServiceError):
        return embedder_pb2.EmbedResult(error=status.to_status(outcome))
    return embedder_pb2.EmbedResult(embedding=_embedding(outcome))
