"""How each kind of server is called. Requests are put together beforehand, so that a client takes little of the CPU.

No two single images are equal, or a server could spare itself the work: each ends with some bytes of its own, after the
end of the picture, where decoders do not look.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Literal

import grpc
import numpy as np
from google.rpc import code_pb2
from grpc_health.v1 import health_pb2
from numpy.typing import NDArray

from benchmarks.load import OK
from lookalike.channel import MAX_MESSAGE_BYTES
from lookalike.embedder.v1 import embedder_pb2

_SERVICE = "/lookalike.embedder.v1.EmbedderService"
_HEALTH = "/grpc.health.v1.Health/Check"

_TRAILER = 8
# Of each client process: on a single one, calls wait for each other wherever it is that it stalls.
_CONNECTIONS = 4

# Makes the call of a number within a limit in seconds, and returns the name of its status code and the reply's bytes.
Call = Callable[[int, float], Awaitable[tuple[str, bytes]]]


@dataclass(frozen=True)
class Target:
    """What to call.

    Attributes:
        addresses: HOST:PORT of each server; calls go in turn to those whose health says SERVING.
        method: Embed, EmbedBatch, the check of a gRPC server's health, or a POST of an image over HTTP.
        batch: images in an EmbedBatch.
    """

    addresses: tuple[str, ...]
    method: Literal["embed", "embed_batch", "health", "http"] = "embed"
    batch: int = 1


@asynccontextmanager
async def connect(target: Target, images: Sequence[bytes]) -> AsyncIterator[Call]:
    """Yields the function that calls a target with the image of a number, modulo how many there are."""
    if target.method == "http":
        http = _Http(target.addresses[0], images)
        try:
            yield http.call
        finally:
            http.close()
        return
    name, options = "ipv4:" + ",".join(target.addresses), _options(balance=len(target.addresses) > 1)
    async with AsyncExitStack() as stack:
        opened = [grpc.aio.insecure_channel(name, options=options) for _ in range(_CONNECTIONS)]
        yield _grpc([await stack.enter_async_context(channel) for channel in opened], target, images)


def vector(target: Target, reply: bytes) -> NDArray[np.float32]:
    """Returns the embedding in the reply to a single image, float32 [D]."""
    if target.method == "http":
        return np.frombuffer(reply, np.float32)
    return np.array(embedder_pb2.EmbedResponse.FromString(reply).embedding.values, np.float32)


def _options(*, balance: bool) -> list[tuple[str, str | int]]:
    options: list[tuple[str, str | int]] = [
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        # A call that fails is to be counted, not made again.
        ("grpc.enable_retries", 0),
        # A server that starts is to be found at once.
        ("grpc.initial_reconnect_backoff_ms", 50),
        ("grpc.min_reconnect_backoff_ms", 50),
        ("grpc.max_reconnect_backoff_ms", 200),
        # Two channels with the same options would share one connection.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if balance:
        # gRPC's own way to heed health: it watches each server. https://grpc.io/docs/guides/health-checking/
        config = {"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": ""}}
        options.append(("grpc.service_config", json.dumps(config)))
    return options


def _grpc(channels: Sequence[grpc.aio.Channel], target: Target, images: Sequence[bytes]) -> Call:
    request: Callable[[int], bytes]
    if target.method == "embed":
        path, request, outcome = f"{_SERVICE}/Embed", _Singles(images).request, _answered
    elif target.method == "embed_batch":
        batches = _batches(images, target.batch)
        path, request, outcome = f"{_SERVICE}/EmbedBatch", lambda n: batches[n % len(batches)], _outcome_of_batch
    else:
        check = health_pb2.HealthCheckRequest().SerializeToString()
        path, request, outcome = _HEALTH, lambda _: check, _outcome_of_check
    methods: list[grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]] = [channel.unary_unary(path) for channel in channels]

    async def call(number: int, limit: float) -> tuple[str, bytes]:
        try:
            reply = await methods[number % len(methods)](request(number), timeout=limit)
        except grpc.aio.AioRpcError as error:
            return error.code().name, b""
        return outcome(reply), reply

    return call


class _Trailers:
    """Bytes that no other image ends with."""

    def __init__(self) -> None:
        self._first = int.from_bytes(os.urandom(_TRAILER))

    def __call__(self, number: int) -> bytes:
        return ((self._first + number) % (1 << 8 * _TRAILER)).to_bytes(_TRAILER)


class _Singles:
    """Requests of Embed."""

    def __init__(self, images: Sequence[bytes]) -> None:
        # The image comes last in the message, and its end last in it: only that is put in later.
        messages = (embedder_pb2.EmbedRequest(image=image + bytes(_TRAILER)).SerializeToString() for image in images)
        self._heads = [message[:-_TRAILER] for message in messages]
        self._trailers = _Trailers()

    def request(self, number: int) -> bytes:
        return self._heads[number % len(self._heads)] + self._trailers(number)


def _batches(images: Sequence[bytes], size: int) -> list[bytes]:
    starts = range(0, len(images), size)
    taken = ([images[(start + index) % len(images)] for index in range(size)] for start in starts)
    return [embedder_pb2.EmbedBatchRequest(images=batch).SerializeToString() for batch in taken]


def _answered(reply: bytes) -> str:
    return OK


def _outcome_of_batch(reply: bytes) -> str:
    results = embedder_pb2.EmbedBatchResponse.FromString(reply).results
    return next((code_pb2.Code.Name(result.error.code) for result in results if result.HasField("error")), OK)


def _outcome_of_check(reply: bytes) -> str:
    status = health_pb2.HealthCheckResponse.FromString(reply).status
    return OK if status == health_pb2.HealthCheckResponse.SERVING else "NOT_SERVING"


class _Http:
    """Posts images over HTTP/1.1, on connections that are kept alive, as many as there are calls at once."""

    def __init__(self, address: str, images: Sequence[bytes]) -> None:
        self._host, _, port = address.rpartition(":")
        self._port = int(port)
        head = f"POST /predict HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/octet-stream\r\n"
        self._heads = [f"{head}Content-Length: {len(image) + _TRAILER}\r\n\r\n".encode() + image for image in images]
        self._trailers = _Trailers()
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def call(self, number: int, limit: float) -> tuple[str, bytes]:
        """See `Call`; a status other than 200 is named as it is."""
        try:
            async with asyncio.timeout(limit):
                return await self._post(self._heads[number % len(self._heads)] + self._trailers(number))
        except TimeoutError:
            return "DEADLINE_EXCEEDED", b""
        except (OSError, EOFError):
            return "UNAVAILABLE", b""

    def close(self) -> None:
        """Closes the connections."""
        for _, writer in self._idle:
            writer.close()

    async def _post(self, request: bytes) -> tuple[str, bytes]:
        reader, writer = self._idle.pop() if self._idle else await asyncio.open_connection(self._host, self._port)
        try:
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            status, *lines = head.splitlines()
            headers = dict(line.split(": ", 1) for line in lines if line)
            body = await reader.readexactly(int(headers["content-length"]))
        except BaseException:
            writer.close()
            raise
        self._idle.append((reader, writer))
        code = status.split(" ", 2)[1]
        return OK if code == "200" else f"HTTP_{code}", body
