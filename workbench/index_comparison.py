"""Compares ways to find the nearest vectors, all in one run on the same vectors: exact ones, indexes, and the service.

Queries are rows themselves, as in the lesson, and so find themselves first. The latency of one query is the median,
seen by the caller, on one thread: for an index in this process that of the library's call; for the service that of a
gRPC call, with the sending of the vector, the search of Milvus, and the reading of ids, attributes and sources.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from embedder_service.model.accuracy import K
from lookalike import Client, Embedding, IndexSpec, IndexType, Item, LookalikeError, Query, VectorSpace
from lookalike.security import PLAINTEXT
from search_service.recall import TIE
from workbench.errors import CommandError
from workbench.peers import PEERS, BruteForce, Ids, Index, Vectors, best, installed
from workbench.services import ANY_PORT, ServerProcess

TOP_K = 10
_COLLECTION = "comparison"
_FINGERPRINT = "comparison"
_ROWS_OF_A_CALL = 500
_SECONDS_OF_A_CALL = 120.0
# Medians differ with what else the machine does: the least of several is that of the search.
_ROUNDS = 5


@dataclass(frozen=True)
class Effort:
    """How thoroughly to measure.

    Attributes:
        queries: rows to search by, at most.
        seconds: that the latencies of one way may take, about, at each number of neighbours; the batch as long.
    """

    queries: int = 1000
    seconds: float = 2.0


@dataclass(frozen=True)
class Measured:
    """One way to search. What was not measured is None.

    Attributes:
        name: the library, or the service.
        settings: of the index, or what to do to have it measured.
        dims: of the vectors.
        lesson_us: one query for `accuracy.K` neighbours, as the lesson timed it, microseconds, median.
        query_us: one query for 10 neighbours, likewise.
        batch_per_second: queries answered when many are asked at once, for 10 neighbours.
        batch_threads: threads that this took in the process with the index.
        recall: share of the exact 10 nearest rows among those found, 0 to 1; a row as near as the 10th counts.
        build_seconds: to make the index, or to store all rows.
        bytes: of the index when it is stored; of the service an estimate of its memory.
    """

    name: str
    settings: str
    dims: int
    lesson_us: float | None = None
    query_us: float | None = None
    batch_per_second: float | None = None
    batch_threads: int | None = None
    recall: float | None = None
    build_seconds: float | None = None
    bytes: int | None = None


@dataclass
class Comparison:
    """Measures one way after the other.

    Args:
        features: float32 [N, F], of length 1, before the PCA.
        vectors: float32 [N, D], of length 1, after it.
        logs: directory for the database and the log of the service.
        effort: how thoroughly.
        seed: of the choice of queries.
    """

    features: Vectors
    vectors: Vectors
    logs: Path
    effort: Effort
    seed: int
    ways: Sequence[Callable[[], Measured]] = field(init=False)

    def __post_init__(self) -> None:
        count = len(self.vectors)
        chosen = np.random.default_rng(self.seed).permutation(count)[: self.effort.queries]
        self._queries = np.ascontiguousarray(self.vectors[chosen])
        self._features = np.ascontiguousarray(self.features[chosen])
        self._k = min(TOP_K, count)
        self.ways = [self._full_size, *(self._peer(name) for name in PEERS), self._service]

    def _full_size(self) -> Measured:
        return self._in_process("numpy", BruteForce, self.features, self._features)

    def _peer(self, name: str) -> Callable[[], Measured]:
        module, package, build = PEERS[name]

        def measure() -> Measured:
            if not installed(module):
                return Measured(name, f"not installed: pip install {package}", self.vectors.shape[1])
            return self._in_process(name, build, self.vectors, self._queries)

        return measure

    def _in_process(self, name: str, build: Callable[[Vectors], Index], rows: Vectors, queries: Vectors) -> Measured:
        started = time.perf_counter()
        index = build(rows)
        build_seconds = time.perf_counter() - started
        prepared = index.prepare(queries)
        with _one_thread():
            lesson_us = self._latency(lambda number: index.one(prepared[number], min(K, len(rows))))
            query_us = self._latency(lambda number: index.one(prepared[number], self._k))
        found: list[Ids] = []
        rate = self._rate(lambda: found.append(index.many(queries, self._k)))
        return Measured(
            name,
            index.settings,
            rows.shape[1],
            lesson_us,
            query_us,
            rate,
            (os.cpu_count() or 1) if index.parallel else 1,
            _recall(found[0], queries, rows, self._k),
            build_seconds,
            index.size(),
        )

    def _service(self) -> Measured:
        """HNSW of Milvus, on Milvus Lite, through the search service."""
        rows, dims = self.vectors, self.vectors.shape[1]
        ours = [Embedding(query, _FINGERPRINT) for query in self._queries]
        with _database(self.logs) as database:
            with _search_service(database, self.logs) as client:
                started = time.perf_counter()
                _store(client, rows)
                build_seconds = time.perf_counter() - started
            # Opened again, so that no row waits to be flushed: those are searched without the index.
            with _search_service(database, self.logs) as client:
                described = client.describe_collection(_COLLECTION)
                serving = described.collection.serving
                most = described.limits.max_batch_queries

                def search(number: int, k: int) -> list[int]:
                    hits = client.search(_COLLECTION, vector=ours[number], top_k=k).hits
                    return [int(hit.id) for hit in hits]

                lesson_us = self._latency(lambda number: search(number, min(K, len(rows))))
                query_us = self._latency(lambda number: search(number, self._k))
                found: list[Ids] = []
                rate = self._rate(lambda: found.append(_search_all(client, ours, most, self._k)))
        spec = serving.index if serving else IndexSpec()
        return Measured(
            "Lookalike, Milvus Lite",
            f"HNSW, M {spec.m}, efConstruction {spec.ef_construction}; through gRPC",
            dims,
            lesson_us,
            query_us,
            rate,
            os.cpu_count() or 1,
            _recall(found[0], self._queries, rows, self._k),
            build_seconds,
            serving.memory_bytes if serving else None,
        )

    def _latency(self, call: Callable[[int], object]) -> float:
        """Microseconds of a call, the least of the medians of some rounds."""
        medians = []
        call(0)
        for _ in range(_ROUNDS):
            taken = []
            end = time.perf_counter() + self.effort.seconds / _ROUNDS
            for number in range(len(self._queries)):
                begun = time.perf_counter_ns()
                call(number)
                taken.append(time.perf_counter_ns() - begun)
                if time.perf_counter() > end:
                    break
            medians.append(float(np.median(taken)))
        return min(medians) / 1000

    def _rate(self, search_all: Callable[[], object]) -> float:
        """Queries by the second, the best of a few times, where there is time for them."""
        least, end = float("inf"), time.perf_counter() + self.effort.seconds
        for _ in range(_ROUNDS):
            begun = time.perf_counter()
            search_all()
            least = min(least, time.perf_counter() - begun)
            if time.perf_counter() > end:
                break
        return len(self._queries) / least


@contextmanager
def _one_thread() -> Iterator[None]:
    from threadpoolctl import threadpool_limits

    if installed("faiss"):
        import faiss  # loaded first, so that its threads are among those that are limited
    with threadpool_limits(1):
        if installed("faiss"):
            before = faiss.omp_get_max_threads()
            faiss.omp_set_num_threads(1)
        try:
            yield
        finally:
            if installed("faiss"):
                faiss.omp_set_num_threads(before)


@contextmanager
def _database(folder: Path) -> Iterator[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="comparison-", dir=folder) as temporary:
        yield Path(temporary) / "milvus.db"


@contextmanager
def _search_service(database: Path, logs: Path) -> Iterator[Client]:
    flags = ["--milvus-uri", str(database), "--address", ANY_PORT, "--metrics-address", ANY_PORT]
    flags += ["--canary-interval", "0"]  # its exact searches would come into some measurements and not into others
    with (
        ServerProcess("search-service-comparison", "search_service.main", flags, logs) as service,
        Client(service.addresses.grpc, timeout=_SECONDS_OF_A_CALL, security=PLAINTEXT) as client,
    ):
        yield client


def _store(client: Client, rows: Vectors) -> None:
    # Milvus Lite would be searched exactly without an index asked for.
    client.create_collection(
        _COLLECTION, space=VectorSpace(_FINGERPRINT, rows.shape[1]), index=IndexSpec(IndexType.HNSW)
    )
    for start in range(0, len(rows), _ROWS_OF_A_CALL):
        numbers = range(start, min(start + _ROWS_OF_A_CALL, len(rows)))
        items = [Item(str(number), vector=Embedding(rows[number], _FINGERPRINT)) for number in numbers]
        for result in client.upsert(_COLLECTION, items):
            if result.error is not None:
                raise CommandError(f"row {result.id} was not stored: {result.error}")


def _search_all(client: Client, vectors: Sequence[Any], most: int, k: int) -> Ids:
    found = np.full((len(vectors), k), -1, np.int64)
    for start in range(0, len(vectors), most):
        queries = [Query(vector=vector) for vector in vectors[start : start + most]]
        for number, answer in enumerate(client.search_batch(_COLLECTION, queries, top_k=k).results, start):
            if isinstance(answer, LookalikeError):
                raise answer
            found[number, : len(answer)] = [int(hit.id) for hit in answer]
    return found


def _recall(found: Ids, queries: Vectors, rows: Vectors, k: int) -> float:
    """Mean recall@k as `search_service.recall` defines it, by the rows' own similarities."""
    shares = []
    for query, ids in zip(queries, found[:, :k], strict=True):
        similarities = rows @ query
        last = similarities[best(similarities[None], k)[0, -1]]
        hits = similarities[ids[ids >= 0]] >= last - TIE
        shares.append(min(int(hits.sum()), k) / k)
    return float(np.mean(shares))
