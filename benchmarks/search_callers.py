"""The ways to search that are compared, each as a function from the number of a query to the ids of its hits.

What runs in the client processes of `benchmarks.clients`: these have the vectors in memory, drawn anew in each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import psutil
from pymilvus import MilvusClient

from benchmarks import threads
from benchmarks.threads import Slice
from benchmarks.vectors import BUCKETS, Data
from lookalike import Client, Embedding
from search_service.milvus_schema import METRIC
from search_service.records import IndexSpec
from workbench import peers
from workbench.peers import Index, Vectors

TOP_K = 10
COLLECTION = "benchmark"
FINGERPRINT = "benchmark"
# What a search brings of each row, here as in the service by default.
_FIELDS = ["id", "attributes", "source", "content_sha256", "model_fp", "updated_ms"]
_SECONDS = 60.0  # of one call

Find = Callable[[int], Sequence[int]]


@dataclass(frozen=True)
class Shape:
    """How many rows and queries of how many dimensions."""

    rows: int
    queries: int
    dims: int


@dataclass(frozen=True)
class Target:
    """What to search.

    Attributes:
        kind: the SDK of Lookalike; pymilvus; or an index in this process, which `build` has made.
        shape: of the data.
        address: HOST:PORT of Lookalike, or URI of Milvus.
        collection: what Milvus calls it.
        ef: breadth of the search; None leaves it to Lookalike.
        percent: of the rows that a filter keeps; 100 is without filter.
    """

    kind: Literal["lookalike", "pymilvus", "numpy", "faiss", "annoy"]
    shape: Shape
    address: str = ""
    collection: str = COLLECTION
    ef: int | None = None
    percent: int = BUCKETS


@dataclass(frozen=True)
class Answers:
    """The ids of the hits of every query, and the seconds that each took, float64 [Q], one at a time."""

    ids: list[list[int]]
    seconds: list[float]


@dataclass(frozen=True)
class Built:
    """An index in this process: seconds to build, and by how many bytes the process grew."""

    seconds: float
    rss_bytes: int


@cache
def data(shape: Shape) -> Data:
    """Returns the rows and queries of a shape."""
    return Data.draw(shape.rows, shape.queries, shape.dims)


def has(kind: str) -> bool:
    """Whether what an index in this process needs is installed."""
    return peers.installed(kind)


_local: dict[str, Find] = {}


def build(kind: Literal["numpy", "faiss", "annoy"], shape: Shape, ef: int) -> Built:
    """Builds an index in this process."""
    given = data(shape)
    process = psutil.Process()
    before, started = process.memory_info().rss, time.monotonic()
    index = _index(kind, given.rows, ef)
    queries = index.prepare(given.queries)
    _local[kind] = lambda number: index.one(queries[number], TOP_K)
    return Built(time.monotonic() - started, process.memory_info().rss - before)


def answers(target: Target) -> Answers:
    """Searches by every query, one after the other."""
    ids, seconds = [], []
    with _connect(target) as find:
        for number in range(target.shape.queries):
            started = time.monotonic()
            ids.append(list(find(number)))
            seconds.append(time.monotonic() - started)
    return Answers(ids, seconds)


def closed_loop(target: Target, callers: int, seconds: float, warm_up: float, servers: Sequence[int]) -> Slice:
    """Runs `threads.closed_loop` against a target, with all its threads on one client."""
    count = target.shape.queries
    with _connect(target) as find:
        return threads.closed_loop(lambda number: find(number % count), callers, seconds, warm_up, servers)


@contextmanager
def _connect(target: Target) -> Iterator[Find]:
    queries = data(target.shape).queries
    if target.kind == "lookalike":
        with Client(target.address, timeout=_SECONDS, retry=False) as client:
            yield _by_sdk(client, target, [Embedding(query, FINGERPRINT) for query in queries])
    elif target.kind == "pymilvus":
        with closing(MilvusClient(target.address, timeout=_SECONDS, dedicated=True)) as milvus:
            milvus.load_collection(target.collection)
            yield _by_pymilvus(milvus, target, queries)
    else:
        yield _local[target.kind]


def _by_sdk(client: Client, target: Target, queries: Sequence[Embedding]) -> Find:
    options: dict[str, Any] = {"top_k": TOP_K}
    if target.ef is not None:
        options["ef"] = target.ef
    if target.percent < BUCKETS:
        options |= {"filter": 'attributes["bucket"] < {percent}', "filter_values": {"percent": target.percent}}

    def find(number: int) -> list[int]:
        return [int(hit.id) for hit in client.search(target.collection, vector=queries[number], **options).hits]

    return find


def _by_pymilvus(client: Any, target: Target, queries: Vectors) -> Find:
    condition = f'attributes["bucket"] < {target.percent}' if target.percent < BUCKETS else ""

    def find(number: int) -> list[int]:
        [hits] = client.search(
            target.collection,
            data=[queries[number]],
            anns_field="vector",
            filter=condition,
            limit=TOP_K,
            output_fields=_FIELDS,
            search_params={"metric_type": METRIC, "params": {"ef": target.ef}},
            consistency_level="Bounded",
            timeout=_SECONDS,
        )
        # Read, because pymilvus decodes no earlier.
        read = [(hit["id"], hit["distance"], dict(hit["entity"])) for hit in hits]
        return [int(row_id) for row_id, _, _ in read]

    return find


def _index(kind: Literal["numpy", "faiss", "annoy"], rows: Vectors, ef: int) -> Index:
    match kind:
        case "numpy":
            return peers.BruteForce(rows)
        case "annoy":
            return peers.Annoy(rows)
        case "faiss":
            spec = IndexSpec()
            return peers.FaissHnsw(rows, spec.m, spec.ef_construction, ef)
