"""The embedding service, as the search service sees it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import grpc
import numpy as np

from lookalike.channel import connect_aio
from lookalike.embedder.v1 import embedder_pb2, embedder_pb2_grpc
from search_service.metrics import upstream
from search_service.records import Embedding, VectorSpace
from service_kit import calls, tracing
from service_kit.errors import DeadlineExceeded, InvalidArgument, ResourceExhausted, ServiceError
from service_kit.status import from_rpc_error, from_status

_SERVICE: str = embedder_pb2.DESCRIPTOR.services_by_name["EmbedderService"].full_name
_UPSTREAM = "embedder"


class EmbedderClient:
    """Calls the embedding service. Errors of a whole call are raised as the service errors they stand for."""

    def __init__(self, target: str, max_message_bytes: int) -> None:
        self._target = target
        self._channel = connect_aio(target, max_message_bytes=max_message_bytes)
        self._stub = embedder_pb2_grpc.EmbedderServiceStub(self._channel)
        self._batch_limit: int | None = None

    async def aclose(self) -> None:
        """Closes the connection."""
        await self._channel.close()

    async def space(self, deadline: float) -> VectorSpace:
        """Returns the space of the embedder's vectors."""
        model = (await self._get_model(deadline)).model
        return VectorSpace(model.fingerprint, model.dimension)

    async def embed(
        self, images: Sequence[bytes], *, interactive: bool, patient: bool = False, deadline: float
    ) -> list[Embedding | ServiceError]:
        """Embeds encoded images before `deadline` (of time.monotonic).

        Interactive images go before others in the embedder's queue. With `patient`, a full queue is asked again when it
        says so, instead of raising ResourceExhausted.

        Returns:
            for each image, in order: its embedding, or why it has none.
        """
        if self._batch_limit is None:
            self._batch_limit = (await self._get_model(deadline)).limits.max_batch_images
        priority = embedder_pb2.PRIORITY_INTERACTIVE if interactive else embedder_pb2.PRIORITY_BULK
        outcomes: list[Embedding | ServiceError] = []
        for start in range(0, len(images), self._batch_limit):
            batch = images[start : start + self._batch_limit]
            request = embedder_pb2.EmbedBatchRequest(images=batch, priority=priority)
            reply = await self._embed_batch(request, deadline, patient=patient)
            outcomes += [_outcome(result, reply.model_fingerprint) for result in reply.results]
        return outcomes

    async def _embed_batch(
        self, request: embedder_pb2.EmbedBatchRequest, deadline: float, *, patient: bool
    ) -> embedder_pb2.EmbedBatchResponse:
        while True:
            try:
                reply: embedder_pb2.EmbedBatchResponse = await self._call(
                    "EmbedBatch", self._stub.EmbedBatch, request, deadline
                )
                return reply
            except ResourceExhausted as busy:
                if not patient or busy.retry_after is None or time.monotonic() + busy.retry_after >= deadline:
                    raise
                await asyncio.sleep(busy.retry_after)

    async def _get_model(self, deadline: float) -> embedder_pb2.GetModelResponse:
        request = embedder_pb2.GetModelRequest()
        reply: embedder_pb2.GetModelResponse = await self._call("GetModel", self._stub.GetModel, request, deadline)
        return reply

    async def _call(self, method: str, rpc: Any, request: Any, deadline: float) -> Any:
        timeout = deadline - time.monotonic()
        with upstream(_UPSTREAM, method):
            if timeout <= 0:
                raise DeadlineExceeded("the deadline passed before the embedder was called")
            try:
                with tracing.client_span(_SERVICE, method):
                    return await rpc(request, timeout=timeout, metadata=calls.outgoing_metadata())
            except grpc.RpcError as error:
                raise from_rpc_error(error, f"embedder at {self._target}") from error


def image_fault(image: bytes, max_bytes: int) -> InvalidArgument | None:
    """Returns what is wrong with an encoded image before it is worth sending, or None."""
    if len(image) <= max_bytes:
        return None
    return InvalidArgument(f"the image has {len(image)} bytes, more than {max_bytes}: send it scaled down")


def _outcome(result: embedder_pb2.EmbedResult, fingerprint: str) -> Embedding | ServiceError:
    if result.WhichOneof("outcome") == "embedding":
        return Embedding(np.array(result.embedding.values, dtype=np.float32), fingerprint)
    return from_status(result.error)
