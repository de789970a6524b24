"""The accuracy of a collection, as `embedder_service.model.accuracy` defines it, through its search service."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from embedder_service.model.accuracy import K, accuracy
from lookalike import AsyncClient


@dataclass(frozen=True)
class ServiceAccuracy:
    """A measurement of a collection. Latencies are those of single `Search` calls, seen by the caller.

    Attributes:
        accuracy: share of neighbours with the right class, 0 to 1.
        images: number of images searched by.
        neighbours: number of neighbours looked at, over all images.
        seconds: how long all searches took together, at `concurrency` at a time.
        latency_ms: percentile, as "p50", to milliseconds.
    """

    collection: str
    k: int
    accuracy: float
    images: int
    neighbours: int
    seconds: float
    concurrency: int
    latency_ms: Mapping[str, float]


async def measure(
    client: AsyncClient,
    collection: str,
    labels: Mapping[str, str],
    *,
    k: int = K,
    concurrency: int = 4,
    exact: bool = False,
    on_progress: Callable[[], None] = lambda: None,
) -> ServiceAccuracy:
    """Searches by every stored row and looks at the classes of its neighbours.

    Args:
        labels: the class of every row, by id.
        k: neighbours of an image, itself included.
        concurrency: searches at the same time.
        exact: compares with every row instead of using the index.
        on_progress: called after every search.

    Raises:
        LookalikeError: a search failed.
    """
    latencies: list[float] = []
    right = total = 0
    ids = iter(labels)

    async def worker() -> None:
        nonlocal right, total
        for id in ids:  # shared by all workers
            begun = time.perf_counter()
            result = await client.search(collection, id=id, top_k=k - 1, exact=exact, attributes=[])
            latencies.append(time.perf_counter() - begun)
            right += sum(labels.get(hit.id) == labels[id] for hit in result.hits)
            total += len(result.hits)
            on_progress()

    started = time.perf_counter()
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(worker())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    seconds = time.perf_counter() - started
    percentiles = {f"p{p:g}": round(float(np.percentile(latencies, p)) * 1000, 3) for p in (50, 90, 95, 99)}
    return ServiceAccuracy(
        collection, k, accuracy(right, len(labels), k), len(labels), total, seconds, concurrency, percentiles
    )
