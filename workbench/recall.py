"""How much of the exact answer the index of a collection finds, and how long both take, through its search service."""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import grpc
import numpy as np

from lookalike import Client, Hit, LookalikeError, Query, SearchLimits, SearchOptions
from search_service.recall import Ranked, recall_at_k
from workbench.errors import CommandError

Source: TypeAlias = str | Path
"""What is searched by: the id of a stored row, or an image file."""

WORST = 0.01  # share of the queries whose mean is told apart


@dataclass(frozen=True)
class Measured:
    """What searches with one `ef` found.

    Attributes:
        ef: the breadth of the search that the service used.
        default: whether that was its own choice.
        queries: how many there are figures of: those for which there was something to be found.
        recall: their mean recall@k, 0 to 1.
        worst: that of the worst hundredth of them, one query at least.
        latency_ms: of one search in the service without embedding: percentile, as "p50", to milliseconds.
    """

    ef: int
    default: bool
    queries: int
    recall: float
    worst: float
    latency_ms: Mapping[str, float]


@dataclass(frozen=True)
class Comparison:
    """An index beside the exact answer; `exact_latency_ms` is that of one exact search by up to `batch` queries."""

    collection: str
    version: int
    k: int
    filter: str
    failed: int
    batch: int
    exact_latency_ms: Mapping[str, float]
    measured: tuple[Measured, ...]


def sample(names: Iterable[str], count: int, seed: int) -> list[str]:
    """Returns up to `count` of the names, each with the same chance, by the seed and the names alone.

    Their order does not matter, and names that are added later push few others out.
    """

    def chance(name: str) -> bytes:
        return hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8).digest()

    return heapq.nsmallest(count, names, key=chance)


def steps(sources: int, efs: Sequence[int]) -> int:
    """Returns how often `compare` calls `on_progress`, at most."""
    return sources * (2 + len(efs))


def compare(
    client: Client,
    collection: str,
    sources: Sequence[Source],
    *,
    k: int,
    efs: Sequence[int],
    filter: str,
    tenant: str = "",
    limits: SearchLimits,
    on_progress: Callable[[], None] = lambda: None,
) -> Comparison:
    """Searches by each source exactly, with the service's `ef`, and with each of `efs`, and compares the hits.

    Args:
        sources: what to search by. A stored row is left out of its own hits.
        k: hits compared.
        efs: breadths of the search to try.
        filter: which rows may be hits.
        tenant: whose rows are searched, in a collection of several tenants.
        limits: of the service; they tell how many queries share an exact search.
        on_progress: called for every search.

    Raises:
        CommandError: nothing could be compared, or another version of the collection began to serve.
        LookalikeError: a search failed.
    """
    options = SearchOptions(top_k=k, filter=filter, attributes=[])
    exactly = options | SearchOptions(exact=True)
    truths: dict[Source, Ranked] = {}
    seconds: list[float] = []
    versions: set[int] = set()
    errors: list[LookalikeError] = []
    for part in _batches(sources, limits):
        batch = client.search_batch(collection, [_query(source) for source in part], tenant=tenant, **exactly)
        versions.add(batch.served_by.version)
        seconds.append(batch.timings.get("search", math.nan))
        for source, hits in zip(part, batch.results, strict=True):
            if isinstance(hits, LookalikeError):
                errors.append(hits)
            elif hits:  # else there was nothing to be found
                truths[source] = _ranked(hits)
            on_progress()
    if not truths:
        if errors:
            raise errors[0]
        raise CommandError("no query has an exact answer: is the filter that narrow, or has the collection one row?")
    measured = []
    for ef in (None, *efs):
        breadth = options if ef is None else options | SearchOptions(ef=ef)
        measured.append(_measure(client, collection, tenant, truths, breadth, versions, on_progress))
    if len(versions) > 1:
        raise CommandError("another version of the collection began to serve meanwhile: run the command again")
    return Comparison(
        collection,
        versions.pop(),
        k,
        filter,
        len(errors),
        limits.max_batch_queries,
        _latency_ms(seconds),
        tuple(measured),
    )


def _measure(
    client: Client,
    collection: str,
    tenant: str,
    truths: Mapping[Source, Ranked],
    options: SearchOptions,
    versions: set[int],
    on_progress: Callable[[], None],
) -> Measured:
    recalls, seconds, used = [], [], 0
    for source, exact in truths.items():
        query = _query(source)
        try:
            result = client.search(collection, image=query.image, id=query.id, tenant=tenant, **options)
        except LookalikeError as error:
            if error.code is not grpc.StatusCode.NOT_FOUND:
                raise
            continue  # the row was deleted meanwhile
        finally:
            on_progress()
        versions.add(result.served_by.version)
        used = result.served_by.ef or used
        seconds.append(result.timings["search"])
        recalls.append(recall_at_k(_ranked(result.hits), exact, options["top_k"]) or 0.0)
    if not recalls:
        raise CommandError("all rows that were searched by have been deleted meanwhile: run the command again")
    worst = sorted(recalls)[: max(1, round(len(recalls) * WORST))]
    return Measured(
        used, "ef" not in options, len(recalls), float(np.mean(recalls)), float(np.mean(worst)), _latency_ms(seconds)
    )


def _batches(sources: Sequence[Source], limits: SearchLimits) -> Iterator[list[Source]]:
    """The sources, in parts that go into one call."""
    part: list[Source] = []
    size = 0
    for source in sources:
        source_bytes = source.stat().st_size if isinstance(source, Path) else 0
        if part and (len(part) == limits.max_batch_queries or size + source_bytes > limits.max_message_bytes // 2):
            yield part
            part, size = [], 0
        part.append(source)
        size += source_bytes
    if part:
        yield part


def _query(source: Source) -> Query:
    return Query(image=source.read_bytes()) if isinstance(source, Path) else Query(id=source)


def _ranked(hits: Sequence[Hit]) -> Ranked:
    return [(hit.id, hit.similarity) for hit in hits]


def _latency_ms(seconds: Sequence[float]) -> dict[str, float]:
    return {f"p{p}": round(float(np.nanpercentile(seconds, p)) * 1000, 3) for p in (50, 95)}
