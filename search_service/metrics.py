"""The search service's own metrics."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from prometheus_client import Counter, Gauge, Histogram

from search_service.milvus_schema import METRIC
from search_service.records import CollectionState
from service_kit.errors import ServiceError
from service_kit.status import code_name, code_of

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

_REQUESTS = Counter(
    "search_upstream_requests_total", "Calls to a service behind this one.", ["upstream", "method", "code"]
)
_DURATION = Histogram(
    "search_upstream_duration_seconds",
    "Time of a call to a service behind this one.",
    ["upstream", "method"],
    buckets=_SECONDS,
)
RETRIES = Counter("search_upstream_retries_total", "Calls to a service behind this one tried again.", ["upstream"])
RETRIES_REFUSED = Counter(
    "search_upstream_retries_refused_total", "Calls not tried again because too many had been.", ["upstream"]
)
CIRCUIT_OPEN = Gauge(
    "search_circuit_open",
    "1 while a service behind this one gives no answer, and calls to it fail at once.",
    ["upstream", "target"],
)
MILVUS_THREADS = Gauge("search_milvus_threads", "Threads for calls of Milvus.")
MILVUS_THREADS_BUSY = Gauge(
    "search_milvus_threads_busy", "Such threads in a call, those included whose caller has given up."
)
MILVUS_CALLS_WAITING = Gauge("search_milvus_calls_waiting", "Calls of Milvus waiting for a thread.")
WRITES_WAITING = Gauge("search_writes_waiting", "Writes waiting for their turn in a collection.")
SCANS = Gauge("search_scans", "Scans in progress.")
STREAMS = Gauge("search_upsert_streams", "UpsertStream calls in progress.")
STAGE = Histogram(
    "search_stage_duration_seconds",
    "Time of a stage: embed, get and search of a search; upsert_read, upsert_embed and upsert_write; delete.",
    ["stage"],
    buckets=_SECONDS,
)
RESULTS = Histogram(
    "search_results_returned", "Hits returned by a search.", buckets=(0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
)
_INDEX_INFO = Gauge(
    "search_index_info",
    "The index that serves a collection; always 1.",
    ["collection", "fingerprint", "index_type", "metric_type", "m", "ef_construction"],
)
_ENTITIES = Gauge("search_collection_entities", "Rows of the serving version of a collection.", ["collection"])
_INDEXED = Gauge("search_collection_indexed_entities", "Those of them that its index covers.", ["collection"])
_MEMORY = Gauge("search_collection_memory_bytes", "Memory of its vectors and index, estimated.", ["collection"])
_CANARY_RECALL = Gauge(
    "search_canary_recall_ratio",
    "Recall@k of the index of a collection's serving version, mean of the last queries that were compared.",
    ["collection"],
)
_CANARY_SUCCESS = Gauge(
    "search_canary_last_success_timestamp_seconds",
    "When the index of a collection was last compared with the exact answer.",
    ["collection"],
)
_CANARY_QUERIES = Counter("search_canary_queries_total", "Queries that the canary took, by outcome.", ["outcome"])


@contextmanager
def upstream(name: str, method: str) -> Iterator[None]:
    """Counts and times one call to the service `name`, by the code that its ServiceError stands for."""
    started, code = time.monotonic(), "Unknown"
    try:
        yield
        code = "OK"
    except ServiceError as error:
        code = code_name(code_of(error))
        raise
    finally:
        _REQUESTS.labels(name, method, code).inc()
        _DURATION.labels(name, method).observe(time.monotonic() - started)


def show_collections(states: Iterable[CollectionState]) -> None:
    """Brings the gauges of the collections up to date; those of deleted ones disappear."""
    _INDEX_INFO.clear()
    for gauge in (_ENTITIES, _INDEXED, _MEMORY):
        gauge.clear()
    for state in states:
        if state.serving is None:
            continue
        version = state.serving.version
        index = version.index
        m, ef_construction = (index.m, index.ef_construction) if index.is_graph else ("", "")
        labels = (state.name, version.space.fingerprint, index.type, METRIC, m, ef_construction)
        _INDEX_INFO.labels(*labels).set(1)
        _ENTITIES.labels(state.name).set(state.serving.rows)
        _INDEXED.labels(state.name).set(state.serving.indexed_rows)
        _MEMORY.labels(state.name).set(state.serving.memory_bytes)


def count_canary(outcomes: Mapping[str, int]) -> None:
    """Counts queries that the canary took, by outcome: compared, empty, stale, too_large or failed."""
    for outcome, queries in outcomes.items():
        _CANARY_QUERIES.labels(outcome).inc(queries)


def show_canary(collection: str, recall: float) -> None:
    """Shows the recall of a collection's index, as of now."""
    _CANARY_RECALL.labels(collection).set(recall)
    _CANARY_SUCCESS.labels(collection).set_to_current_time()


def forget_canary(collection: str) -> None:
    """Makes the canary's gauges of a collection disappear."""
    _CANARY_RECALL.remove(collection)
    _CANARY_SUCCESS.remove(collection)
