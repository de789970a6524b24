"""What there is at the other end, asked before any load: a target that is not there is said at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
import grpc.aio
import numpy as np
from numpy.typing import NDArray

from lookalike.embedder.v1 import embedder_pb2
from lookalike.embedder.v1.embedder_pb2_grpc import EmbedderServiceStub
from lookalike.search.v1 import search_pb2
from lookalike.search.v1.search_pb2_grpc import SearchServiceStub
from workbench.errors import CommandError
from workbench.loadtest.connection import Connection, Service

T = TypeVar("T")

_SECONDS = 1.2
_SCAN_SECONDS = 60.0


@dataclass(frozen=True)
class Targets:
    """What is called.

    Attributes:
        described: what each service says of itself, for the report.
        fingerprint: the model of the collections' vectors; empty without collections.
        dimension: components of such a vector; 0 without collections.
    """

    described: dict[str, dict[str, Any]]
    fingerprint: str = ""
    dimension: int = 0


def look(connection: Connection, services: set[Service], collections: tuple[str, ...]) -> Targets:
    """Asks the services that are to be called what they are.

    Raises:
        CommandError: one cannot be reached, a collection is missing, or collections are of different models.
    """
    return asyncio.run(_look(connection, services, collections))


async def _look(connection: Connection, services: set[Service], collections: tuple[str, ...]) -> Targets:
    described: dict[str, dict[str, Any]] = {}
    spaces: dict[str, tuple[str, int]] = {}
    if "embedder" in services:
        described["embedder"] = {"address": connection.embedder} | await _ask(
            connection, "embedder", _describe_embedder
        )
    if "search" in services:
        found = {}
        for name in collections:
            found[name] = await _ask(connection, "search", _collection(name))
            spaces[name] = (found[name]["fingerprint"], found[name]["dimension"])
        described["search"] = {"address": connection.search, "collections": found}
    if len(set(spaces.values())) > 1:
        raise CommandError(f"the collections {', '.join(spaces)} are of different models: test them one by one")
    fingerprint, dimension = next(iter(spaces.values()), ("", 0))
    return Targets(described, fingerprint, dimension)


async def _ask(
    connection: Connection, service: Service, question: Callable[[grpc.aio.Channel, Any], Awaitable[T]]
) -> T:
    address = connection.address(service)
    name = "embedder" if service == "embedder" else "search service"
    async with connection.open(service) as channel:
        try:
            return await question(channel, connection.metadata() or None)
        except grpc.aio.AioRpcError as error:
            details = error.details() or "no reason given"
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                details = f"no answer within {_SECONDS} s"
            raise CommandError(f"the {name} at {address} cannot be tested: {error.code().name}: {details}") from error


async def _describe_embedder(channel: grpc.aio.Channel, metadata: Any) -> dict[str, Any]:
    stub: Any = EmbedderServiceStub(channel)
    try:
        reply = await stub.GetModel(embedder_pb2.GetModelRequest(), timeout=_SECONDS, metadata=metadata)
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:  # a stand-in that only embeds
            return {}
        raise
    model = reply.model
    return {
        "fingerprint": model.fingerprint,
        "backbone": model.backbone,
        "dimension": model.dimension,
        "runtime": model.runtime,
        "device": model.device,
        "precision": embedder_pb2.Precision.Name(model.precision).removeprefix("PRECISION_").lower(),
    }


def _collection(name: str) -> Callable[[grpc.aio.Channel, Any], Awaitable[dict[str, Any]]]:
    async def describe(channel: grpc.aio.Channel, metadata: Any) -> dict[str, Any]:
        stub: Any = SearchServiceStub(channel)
        request = search_pb2.DescribeCollectionRequest(name=name)
        reply = await stub.DescribeCollection(request, timeout=_SECONDS, metadata=metadata)
        serving = next(v for v in reply.collection.versions if v.version == reply.collection.serving_version)
        return {
            "backend": reply.backend,
            "fingerprint": serving.space.model_fingerprint,
            "dimension": serving.space.dimension,
            "rows": serving.row_count,
            "index": search_pb2.IndexType.Name(serving.index.type).removeprefix("INDEX_TYPE_").lower(),
        }

    return describe


def stored_vectors(connection: Connection, collection: str, tenant: str, count: int) -> NDArray[np.float32]:
    """Returns vectors of the first rows of a collection, float32 [up to count, D].

    Raises:
        CommandError: it has no rows.
    """

    async def scan(channel: grpc.aio.Channel, metadata: Any) -> list[list[float]]:
        stub: Any = SearchServiceStub(channel)
        output = search_pb2.OutputFields(omit_attributes=True, include_vector=True)
        request = search_pb2.ScanRequest(collection=collection, tenant=tenant, output=output)
        found: list[list[float]] = []
        call = stub.Scan(request, timeout=_SCAN_SECONDS, metadata=metadata)
        async for page in call:
            found += [list(record.vector.values) for record in page.records]
            if len(found) >= count:
                call.cancel()
                break
        return found[:count]

    rows = asyncio.run(_ask(connection, "search", scan))
    if not rows:
        raise CommandError(f"collection {collection!r} has no rows whose vectors could be sent: use --vectors random")
    return np.array(rows, np.float32)
