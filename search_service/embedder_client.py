"""An embedding service, as the search service sees it: one or several replicas of one model behind one gRPC name.

Calls go to the replicas in turn. Embedding changes nothing, so a call that did not reach one is made again, on another
if there is one; the channel itself does not retry, which would multiply the attempts.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import grpc
import numpy as np

from lookalike.embedder.v1 import embedder_pb2
from lookalike.security import PLAINTEXT, Security
from search_service.circuit import SUSPICIOUS_SECONDS, Circuit
from search_service.embedder_connection import EmbedderConnection
from search_service.metrics import upstream
from search_service.records import Embedding, VectorSpace
from search_service.retries import Failed, Failure, Retries
from service_kit import calls, sharing, tracing
from service_kit.errors import DeadlineExceeded, InvalidArgument, ServiceError, Unavailable
from service_kit.status import from_rpc_error, from_status

_SERVICE: str = embedder_pb2.DESCRIPTOR.services_by_name["EmbedderService"].full_name
_UPSTREAM = "embedder"
_PROBE_SECONDS = 2.0
_AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)  # the latter from a server that is stopped
_UNANSWERED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


class EmbedderClient:
    """Calls the embedding service. Errors of a whole call are raised as the service errors they stand for."""

    def __init__(self, target: str, max_message_bytes: int, security: Security = PLAINTEXT) -> None:
        self._target = target
        self._connection = EmbedderConnection(target, max_message_bytes, security)
        self._retries = Retries(_UPSTREAM)
        self._circuit = Circuit(_UPSTREAM, target, self._probe, probe_seconds=_PROBE_SECONDS)
        self._batch_limit: int | None = None

    async def aclose(self) -> None:
        """Closes the connection."""
        await self._circuit.aclose()
        await self._connection.aclose()

    async def space(self, deadline: float) -> VectorSpace:
        """Returns the space of the embedder's vectors."""
        model = (await self._get_model(deadline)).model
        return VectorSpace(model.fingerprint, model.dimension)

    async def embed(
        self, images: Sequence[bytes], *, interactive: bool, patient: bool = False, deadline: float
    ) -> list[Embedding | ServiceError]:
        """Embeds encoded images before `deadline` (of time.monotonic).

        Interactive images go before others in the embedder's queue. With `patient`, an embedder whose queue is full or
        that is away is asked again, instead of raising ResourceExhausted or Unavailable.

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
            reply = await self._call("EmbedBatch", request, deadline, patient=patient)
            outcomes += [_outcome(result, reply.model_fingerprint) for result in reply.results]
        return outcomes

    async def _get_model(self, deadline: float) -> embedder_pb2.GetModelResponse:
        request = embedder_pb2.GetModelRequest()
        reply: embedder_pb2.GetModelResponse = await self._call("GetModel", request, deadline)
        return reply

    async def _call(self, method: str, request: Any, deadline: float, *, patient: bool = False) -> Any:
        with upstream(_UPSTREAM, method):
            return await self._retries.call(
                method, lambda: self._attempt(method, request, deadline), deadline, patient=patient
            )

    async def _attempt(self, method: str, request: Any, deadline: float) -> Any:
        timeout = deadline - time.monotonic()
        if timeout <= 0:
            raise DeadlineExceeded("the deadline passed before the embedder was called")
        try:
            self._circuit.check()
        except Unavailable as error:
            raise Failed(Failure(error, retriable=False)) from None
        slow = asyncio.get_running_loop().call_later(SUSPICIOUS_SECONDS, self._circuit.suspect)
        try:
            with tracing.client_span(_SERVICE, method):
                rpc = getattr(self._connection.stub, method)
                metadata = (*calls.outgoing_metadata(), *sharing.outgoing_metadata(), *self._connection.metadata())
                reply = await rpc(request, timeout=timeout, metadata=metadata)
        except grpc.RpcError as error:
            failure = Failure(
                from_rpc_error(error, f"embedder at {self._target}"),
                retriable=error.code() in _AWAY,
                unanswered=error.code() in _UNANSWERED,
            )
            if failure.unanswered:
                self._circuit.suspect()
            else:
                self._circuit.answered()
            raise Failed(failure) from error
        finally:
            slow.cancel()
        self._circuit.answered()
        return reply

    async def _probe(self) -> None:
        """Finds out whether the embedder answers; raises where it does not."""
        try:
            await self._connection.stub.GetModel(
                embedder_pb2.GetModelRequest(), timeout=_PROBE_SECONDS, metadata=self._connection.metadata()
            )
        except grpc.RpcError as error:
            if error.code() in _UNANSWERED:
                raise


def image_fault(image: bytes, max_bytes: int) -> InvalidArgument | None:
    """Returns what is wrong with an encoded image before it is worth sending, or None."""
    if len(image) <= max_bytes:
        return None
    return InvalidArgument(f"the image has {len(image)} bytes, more than {max_bytes}: send it scaled down")


def _outcome(result: embedder_pb2.EmbedResult, fingerprint: str) -> Embedding | ServiceError:
    if result.WhichOneof("outcome") == "embedding":
        return Embedding(np.array(result.embedding.values, dtype=np.float32), fingerprint)
    return from_status(result.error)
