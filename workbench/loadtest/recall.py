"""Recall under load: hits that searches got, beside the exact answer, which is asked for when the load is over."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio

from lookalike.search.v1 import search_pb2
from search_service.recall import recall_at_k
from workbench.loadtest.connection import Connection
from workbench.loadtest.load import RecallSample
from workbench.loadtest.operations import Chooser, Workload, build

_MOST = 200
_AT_A_TIME = 4
_EXACTLY = search_pb2.SearchRequest(params=search_pb2.SearchParams(exact=True)).SerializeToString()


def compare(
    connection: Connection, workload: Workload, samples: Sequence[RecallSample], timeout: float
) -> dict[str, Any] | None:
    """Searches again, exactly, for up to 200 of the samples, spread over all.

    Returns:
        `compared`, how many there were something to be found of, `failed`, and their `mean` and `worst` recall, 0 to 1;
        None if nothing could be compared.
    """
    chosen = [samples[n * len(samples) // _MOST] for n in range(_MOST)] if len(samples) > _MOST else list(samples)
    return asyncio.run(_compare(connection, workload, chosen, timeout))


async def _compare(
    connection: Connection, workload: Workload, samples: Sequence[RecallSample], limit: float
) -> dict[str, Any] | None:
    choose, operations = Chooser(workload), build(workload)
    turn = asyncio.Semaphore(_AT_A_TIME)
    async with connection.open("search") as channel:

        async def recall(sample: RecallSample) -> float | None:
            choice = choose(sample.number)
            operation = operations[choice.operation]
            search: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(operation.path)
            # A message in two parts is both in one: the same search, but exact.
            request = operation.request(choice) + _EXACTLY
            async with turn:
                reply = await search(request, timeout=limit, metadata=connection.metadata() or None)
            return recall_at_k(sample.hits, operation.ranked(reply), choice.top_k)

        found = await asyncio.gather(*(recall(sample) for sample in samples), return_exceptions=True)
    for error in found:
        if isinstance(error, BaseException) and not isinstance(error, grpc.aio.AioRpcError):
            raise error
    recalls = [value for value in found if isinstance(value, float)]
    failed = sum(isinstance(value, BaseException) for value in found)
    if not recalls:
        return None
    return {"compared": len(recalls), "failed": failed, "mean": sum(recalls) / len(recalls), "worst": min(recalls)}
