"""The gRPC face of the pipeline: messages and deadlines in, messages and statuses out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from embedder_service.pipeline import Pipeline, Vector
from lookalike.embedder.v1 import embedder_pb2, embedder_pb2_grpc
from service_kit import status
from service_kit.errors import FailedPrecondition, InvalidArgument, ServiceError, Unimplemented

SERVICE: str = embedder_pb2.DESCRIPTOR.services_by_name["EmbedderService"].full_name

_Context = grpc.aio.ServicerContext[Any, Any]


class EmbedderServicer(embedder_pb2_grpc.EmbedderServiceServicer):
    """Serves lookalike.embedder.v1.EmbedderService, whose .proto documents the calls."""

    def __init__(self, pipeline: Pipeline, model: embedder_pb2.Model, limits: embedder_pb2.Limits) -> None:
        self._pipeline = pipeline
        self._model = model
        self._limits = limits

    async def GetModel(self, request: embedder_pb2.GetModelRequest, context: _Context) -> embedder_pb2.GetModelResponse:
        return embedder_pb2.GetModelResponse(model=self._model, limits=self._limits)

    async def Embed(self, request: embedder_pb2.EmbedRequest, context: _Context) -> embedder_pb2.EmbedResponse:
        self._require_model(request.expected_fingerprint)
        vector = await self._pipeline.embed(request.image, _deadline(context))
        return embedder_pb2.EmbedResponse(embedding=_embedding(vector), model_fingerprint=self._model.fingerprint)

    async def EmbedBatch(
        self, request: embedder_pb2.EmbedBatchRequest, context: _Context
    ) -> embedder_pb2.EmbedBatchResponse:
        self._require_model(request.expected_fingerprint)
        count, limit = len(request.images), self._limits.max_batch_images
        if not 1 <= count <= limit:
            raise InvalidArgument(f"the batch has {count} images; send at least 1 and at most {limit}")
        outcomes = await self._pipeline.embed_many(request.images, _deadline(context))
        return embedder_pb2.EmbedBatchResponse(
            results=map(_result, outcomes), model_fingerprint=self._model.fingerprint
        )

    def EmbedStream(
        self, request_iterator: object, context: _Context
    ) -> AsyncIterator[embedder_pb2.EmbedStreamResponse]:
        raise Unimplemented("this server does not serve EmbedStream; use EmbedBatch")

    def _require_model(self, expected: str) -> None:
        if expected and expected != self._model.fingerprint:
            raise FailedPrecondition(
                f"the caller expects the model with fingerprint {expected}, but this server serves "
                f"{self._model.fingerprint}; vectors of the two cannot be compared"
            )


def _deadline(context: _Context) -> float | None:
    """Returns the call's deadline as a time of the event loop."""
    remaining = context.time_remaining()
    return None if remaining is None else asyncio.get_running_loop().time() + remaining


def _embedding(vector: Vector) -> embedder_pb2.Embedding:
    return embedder_pb2.Embedding(values=vector.tolist())


def _result(outcome: Vector | ServiceError) -> embedder_pb2.EmbedResult:
    if isinstance(outcome, ServiceError):
        return embedder_pb2.EmbedResult(error=status.to_status(outcome))
    return embedder_pb2.EmbedResult(embedding=_embedding(outcome))
