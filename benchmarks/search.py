"""`make bench-search`: how fast the search is, beside pymilvus on the same Milvus and beside indexes in the process.

Everything is measured in one run with the same vectors (see `benchmarks.vectors`), in turn: each round measures each of
the searches for a part of its time. A ratio is the median of those of the rounds. Servers and callers share the
machine, as is stated by the CPU time of each. pymilvus searches the very collection that the service has filled, with
the same `ef`, consistency and output fields, from as many threads on one client as the SDK. By then Milvus has indexed
every row.

On Milvus Lite the service, which joins searches that come together, is beside itself with joining switched off, and
beside pymilvus, which makes one call for each query, too: on copies of one database, which the service has open in its
process, and pymilvus in that of its callers.

The report, JSON, `schema` 1:

    time, commit, hardware, versions   when and where
    milvus                             version of the server; null where none was measured
    rows, lite_rows, queries, dims     of the vectors
    top_k, ef                          of all searches without a filter
    seconds, warm_up_seconds, rounds   seconds of each row, divided among the rounds; warm-up before each part
    skipped                            what was not measured, and why
    searches                           see `Row`
    filtered                           see `Filtered`
    objectives                         see `Objective`; null where it was not measured
"""

from __future__ import annotations

import argparse
import math
import shutil
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pymilvus import MilvusClient

from benchmarks import milvus_server, search_callers
from benchmarks.clients import Clients
from benchmarks.inputs import FOLDER, run, say
from benchmarks.load import OK, Calls
from benchmarks.milvus_server import MilvusServer
from benchmarks.processes import Sampler
from benchmarks.search_callers import COLLECTION, FINGERPRINT, TOP_K, Shape, Target
from benchmarks.summary import Latency, latency, ratio, surroundings, write_json
from benchmarks.threads import Slice, merged_rate
from benchmarks.vectors import BUCKETS, Data, recall
from lookalike import Client, Embedding, Item, VectorSpace
from search_service.store import effective_ef
from workbench.errors import CommandError
from workbench.options import positive
from workbench.services import ANY_PORT, ServerProcess
from workbench.tables import table

SCHEMA = 1
_BATCH_ROWS = 500
_INDEX_SECONDS = 600.0
_PERCENTS = (BUCKETS, 50, 10, 1)
_OBJECTIVES = {
    "queries/s of Lookalike by those of pymilvus": (">=", 0.8),
    "p50 of Lookalike by that of pymilvus": ("<=", 1.3),
    "queries/s on Milvus Lite, joined, by those of one call each": (">=", 5.0),
    "recall without a filter": (">=", 0.99),
    "recall under a filter that keeps 10 %, server": (">=", 0.97),
    "recall under a filter that keeps 10 %, Lite": (">=", 0.97),
}


@dataclass(frozen=True)
class Row:
    """One way to search under one load.

    Attributes:
        backend: "server", "lite", or "none" of an index in the process of its callers.
        search: what was called.
        callers: threads that each have one call in flight.
        queries_per_second: answered well.
        rounds: the same of each round.
        latency_ms: of those calls.
        recall: share of the exact nearest rows among the hits.
        build_seconds: to write all rows and index them, or to build the index.
        client_cpu_ms: CPU time of the callers' process for each query; it holds indexes in the process.
        service_cpu_ms: that of the search service.
        milvus_cpu_ms: that of the Milvus server.
        rss_bytes: memory of the search service; growth of the process by an index in it.
        milvus_rss_bytes: memory of the Milvus server, the most.
        errors: calls that failed, by error.
    """

    backend: str
    search: str
    callers: int
    queries_per_second: float
    rounds: list[float]
    latency_ms: Latency
    recall: float
    build_seconds: float
    client_cpu_ms: float
    service_cpu_ms: float
    milvus_cpu_ms: float
    rss_bytes: float
    milvus_rss_bytes: float
    errors: dict[str, int]


@dataclass(frozen=True)
class Filtered:
    """Searches under a filter, one at a time, with the service's default `ef`.

    Attributes:
        backend: "server" or "lite".
        percent: of the rows that the filter keeps; 100 is without filter.
        recall: share of the exact nearest rows, of those kept, among the hits.
        latency_ms: of the calls.
    """

    backend: str
    percent: int
    recall: float
    latency_ms: Latency


@dataclass(frozen=True)
class Objective:
    """What is to hold, and whether it does: `kept` is null where it was not measured."""

    name: str
    bound: str
    value: float
    kept: bool | None


@dataclass
class _Way:
    """A way to search, and what has been measured of it."""

    search: str
    target: Target
    process: int
    service: int | None = None
    milvus: int | None = None
    build_seconds: float = math.nan
    rss_bytes: float = math.nan
    recall: float = math.nan
    slices: dict[int, list[Slice]] = field(default_factory=dict)
    held: dict[int, float] = field(default_factory=dict)

    @property
    def servers(self) -> list[int]:
        return [pid for pid in (self.service, self.milvus) if pid is not None]


class Benchmark:
    """Measures all that the flags ask for, and keeps the rows."""

    def __init__(self, args: argparse.Namespace, clients: Clients) -> None:
        self.rows: list[Row] = []
        self.filtered: list[Filtered] = []
        self.skipped: list[str] = []
        self.milvus: str | None = None
        self._args = args
        self._clients = clients
        self._ef = effective_ef(None, TOP_K, filtered=False)

    def run(self) -> None:
        """Measures on the server, then on Milvus Lite."""
        with ExitStack() as stack:
            if self._args.rows == 0:
                self._skip("the server, as --rows 0 asks")
            elif self._args.milvus_uri:
                self._on_server(self._args.milvus_uri, None)
            elif reason := milvus_server.why_not():
                self._skip(f"the server: {reason}")
            else:
                say("starting a Milvus server")
                folder = _emptied(self._args.work / "milvus")
                server = MilvusServer(folder)
                stack.callback(server.kill)
                self._on_server(server.uri, server.pid)
        if self._args.lite_rows:
            self._on_lite()

    def objectives(self) -> list[Objective]:
        """Returns what is to hold."""
        most = max(self._args.concurrency)
        of = {(row.backend, row.search, row.callers): row for row in self.rows}
        ours, peer = of.get(("server", "lookalike", most)), of.get(("server", "pymilvus", most))
        joined, single = (
            of.get(("lite", name, self._args.lite_callers)) for name in ("lookalike", "lookalike, not joined")
        )
        kept = {(found.backend, found.percent): found.recall for found in self.filtered}
        values = (
            _ratio_of_rounds(ours, peer),
            ratio(ours.latency_ms.p50, peer.latency_ms.p50) if ours and peer else math.nan,
            _ratio_of_rounds(joined, single),
            kept.get(("server", BUCKETS), math.nan),
            kept.get(("server", 10), math.nan),
            kept.get(("lite", 10), math.nan),
        )
        return [
            Objective(name, f"{sign} {bound}", value, _holds(sign, value, bound))
            for (name, (sign, bound)), value in zip(_OBJECTIVES.items(), values, strict=True)
        ]

    def _on_server(self, uri: str, milvus: int | None) -> None:
        args = self._args
        shape = Shape(args.rows, args.queries, args.dims)
        given = search_callers.data(shape)
        with self._service(uri, "search-service") as service:
            say(f"writing {shape.rows} rows through the service")
            address = service.addresses.grpc
            with Client(address, timeout=args.call_seconds) as client:
                if args.milvus_uri and any(each.name == COLLECTION for each in client.list_collections()):
                    raise CommandError(f"{uri} has a collection {COLLECTION!r}: delete it, or give another server")
                started = time.monotonic()
                physical = _fill(client, given)
                self.milvus = _index(uri, physical, len(given.rows))
                seconds = time.monotonic() - started
                ways = [
                    _Way("lookalike", Target("lookalike", shape, address), 0, service.pid, milvus, seconds),
                    _Way("pymilvus", Target("pymilvus", shape, uri, physical, self._ef), 0, None, milvus),
                    *self._in_process(shape),
                ]
                try:
                    self._measure("server", ways, given, args.concurrency)
                    self._filters("server", ways[0], given)
                finally:
                    if args.milvus_uri:
                        client.delete_collection(COLLECTION)

    def _in_process(self, shape: Shape) -> Iterator[_Way]:
        for kind in ("numpy", "faiss", "annoy"):
            if not search_callers.has(kind):
                self._skip(f"{kind}: not installed")
                continue
            say(f"building {kind} in the process")
            built = self._clients.submit(1, search_callers.build, kind, shape, self._ef).result()
            target = Target(kind, shape)
            yield _Way(kind, target, 1, build_seconds=built.seconds, rss_bytes=float(built.rss_bytes))

    def _on_lite(self) -> None:
        args = self._args
        shape = Shape(args.lite_rows, args.queries, args.dims)
        given = search_callers.data(shape)
        database = _emptied(args.work / "lite") / "milvus.db"
        say(f"writing {shape.rows} rows through the service on Milvus Lite")
        with (
            self._service(str(database), "search-service-lite-write") as service,
            Client(service.addresses.grpc, timeout=args.call_seconds) as client,
        ):
            started = time.monotonic()
            physical = _fill(client, given)
        seconds = time.monotonic() - started
        copy = database.with_name("copy.db")
        shutil.copytree(database, copy, ignore=shutil.ignore_patterns("LOCK"))
        other = database.with_name("other.db")
        shutil.copytree(copy, other)
        with (
            self._service(str(database), "search-service-lite") as service,
            self._service(str(other), "search-service-lite-alone", "--max-joined-queries", "1") as alone,
        ):
            ours = _Way("lookalike", Target("lookalike", shape, service.addresses.grpc), 0, service.pid, None, seconds)
            single = _Way("lookalike, not joined", Target("lookalike", shape, alone.addresses.grpc), 0, alone.pid)
            direct = _Way("pymilvus", Target("pymilvus", shape, str(copy), physical, self._ef), 1)
            self._measure("lite", [ours, single, direct], given, [args.lite_callers])
            self._filters("lite", ours, given)

    def _measure(self, backend: str, ways: Sequence[_Way], given: Data, concurrency: Sequence[int]) -> None:
        nearest = given.nearest(TOP_K)
        for way in ways:
            say(f"{backend}: every query by {way.search}")
            way.recall = recall(
                self._clients.submit(way.process, search_callers.answers, way.target).result().ids, nearest
            )
        args = self._args
        for callers in concurrency:
            for number in range(args.rounds):
                say(f"{backend}: {callers} callers, round {number + 1} of {args.rounds}")
                for way in ways:
                    self._slice(way, callers, args.seconds / args.rounds)
            self.rows += [_row(backend, way, callers) for way in ways]

    def _slice(self, way: _Way, callers: int, seconds: float) -> None:
        with ExitStack() as stack:
            samplers = [stack.enter_context(Sampler(pid)) for pid in way.servers]
            warm_up = self._args.warm_up
            loop = self._clients.submit(
                way.process, search_callers.closed_loop, way.target, callers, seconds, warm_up, way.servers
            )
            way.slices.setdefault(callers, []).append(loop.result())
        for pid, sampler in zip(way.servers, samplers, strict=True):
            way.held[pid] = max(sampler.rss_max, way.held.get(pid, 0.0))

    def _filters(self, backend: str, way: _Way, given: Data) -> None:
        for percent in _PERCENTS:
            say(f"{backend}: every query of {percent} % of the rows")
            target = Target("lookalike", way.target.shape, way.target.address, percent=percent)
            found = self._clients.submit(way.process, search_callers.answers, target).result()
            share = recall(found.ids, given.nearest(TOP_K, percent))
            self.filtered.append(Filtered(backend, percent, share, latency(np.array(found.seconds))))

    @contextmanager
    def _service(self, milvus: str, name: str, *flags: str) -> Iterator[ServerProcess]:
        given = ["--milvus-uri", milvus, "--address", ANY_PORT, "--metrics-address", ANY_PORT, *flags]
        given += ["--canary-interval", "0"]  # its exact searches would come into some rounds and not into others
        with ServerProcess(name, "search_service.main", given, self._args.logs.resolve()) as service:
            yield service

    def _skip(self, what: str) -> None:
        self.skipped.append(what)
        say(f"skipped {what}")


def _fill(client: Client, given: Data) -> str:
    """Writes all rows and returns what Milvus calls the collection."""
    created = client.create_collection(COLLECTION, space=VectorSpace(FINGERPRINT, given.rows.shape[1]))
    for start in range(0, len(given.rows), _BATCH_ROWS):
        items = [
            Item(
                str(number),
                vector=Embedding(given.rows[number], FINGERPRINT),
                attributes={"bucket": int(given.buckets[number])},
                source=f"pictures/{number}.jpg",
            )
            for number in range(start, min(start + _BATCH_ROWS, len(given.rows)))
        ]
        for result in client.upsert(COLLECTION, items):
            if result.error is not None:
                raise CommandError(f"row {result.id} was not stored: {result.error}")
    return created.versions[0].physical_name


def _index(uri: str, collection: str, rows: int) -> str:
    """Waits until a server has indexed all rows, and returns its version."""
    with closing(MilvusClient(uri, dedicated=True)) as client:
        client.flush(collection, timeout=_INDEX_SECONDS)
        end = time.monotonic() + _INDEX_SECONDS
        while int(client.describe_index(collection, "vector")["indexed_rows"]) < rows:
            if time.monotonic() > end:
                raise CommandError(f"Milvus did not index {rows} rows within {_INDEX_SECONDS:.0f} s")
            time.sleep(0.2)
        client.refresh_load(collection, timeout=_INDEX_SECONDS)
        return str(client.get_server_version())


def _row(backend: str, way: _Way, callers: int) -> Row:
    slices = way.slices[callers]
    calls = Calls.merge([part.measured.calls for part in slices])
    queries = sum(part.measured.rate() * part.measured.seconds for part in slices)
    taken = dict(zip(way.servers, zip(*(part.servers for part in slices), strict=True), strict=False))

    def server_ms(pid: int | None) -> float:
        return math.nan if pid is None else ratio(sum(taken[pid]) * 1e3, queries)

    return Row(
        backend=backend if way.target.kind in ("lookalike", "pymilvus") else "none",
        search=way.search,
        callers=callers,
        queries_per_second=merged_rate(slices),
        rounds=[part.measured.rate() for part in slices],
        latency_ms=latency(calls.having(OK).latencies()),
        recall=way.recall,
        build_seconds=way.build_seconds,
        client_cpu_ms=ratio(sum(part.measured.cpu.client for part in slices) * 1e3, queries),
        service_cpu_ms=server_ms(way.service),
        milvus_cpu_ms=server_ms(way.milvus),
        rss_bytes=way.rss_bytes if way.service is None else way.held[way.service],
        milvus_rss_bytes=math.nan if way.milvus is None else way.held[way.milvus],
        errors=calls.errors(),
    )


def _ratio_of_rounds(ours: Row | None, peer: Row | None) -> float:
    if ours is None or peer is None:
        return math.nan
    return statistics.median(map(ratio, ours.rounds, peer.rounds))


def _holds(sign: str, value: float, bound: float) -> bool | None:
    if math.isnan(value):
        return None
    return value >= bound if sign == ">=" else value <= bound


def _emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder.resolve()


_HEADER = (
    *("search", "backend", "callers", "queries/s", "p50 ms", "p95 ms", "p99 ms", "recall@10", "build s"),
    *("client CPU ms", "service CPU ms", "Milvus CPU ms", "RSS MiB", "Milvus RSS MiB", "errors"),
)


def _cells(row: Row) -> tuple[str, ...]:
    times = row.latency_ms
    return (
        *(row.search, row.backend, str(row.callers), f"{row.queries_per_second:.1f}"),
        *(f"{value:.2f}" for value in (times.p50, times.p95, times.p99)),
        *(f"{row.recall:.4f}", _shown(row.build_seconds, 1)),
        *(_shown(value, 2) for value in (row.client_cpu_ms, row.service_cpu_ms, row.milvus_cpu_ms)),
        *(_shown(value / (1 << 20), 0) for value in (row.rss_bytes, row.milvus_rss_bytes)),
        str(sum(row.errors.values())),
    )


def _shown(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def main(argv: Sequence[str]) -> int:
    """Runs the benchmark; returns the exit code: 1 if a search failed."""
    args = _parser().parse_args(argv)
    with Clients([], 2) as clients:  # one for what calls servers, one for what has its index in the process
        benchmark = Benchmark(args, clients)
        benchmark.run()
    objectives = benchmark.objectives()
    report: dict[str, Any] = {
        "schema": SCHEMA,
        **surroundings(),
        "milvus": benchmark.milvus,
        **{name: getattr(args, name) for name in ("rows", "lite_rows", "queries", "dims", "seconds", "rounds")},
        "top_k": TOP_K,
        "ef": effective_ef(None, TOP_K, filtered=False),
        "warm_up_seconds": args.warm_up,
        "skipped": benchmark.skipped,
        "searches": benchmark.rows,
        "filtered": benchmark.filtered,
        "objectives": objectives,
    }
    write_json(args.out, report)
    print()
    print(table(_HEADER, [_cells(row) for row in benchmark.rows]))
    print()
    filtered = [
        (found.backend, str(found.percent), f"{found.recall:.4f}", f"{found.latency_ms.p50:.2f}")
        for found in benchmark.filtered
    ]
    print(table(("filtered", "% kept", "recall@10", "p50 ms"), filtered))
    print()
    words: dict[bool | None, Literal["kept", "NOT KEPT", "not measured"]]
    words = {True: "kept", False: "NOT KEPT", None: "not measured"}
    told = [(each.name, each.bound, _shown(each.value, 3), words[each.kept]) for each in objectives]
    print(table(("objective", "bound", "measured", ""), told))
    print(f"\nCPU times are for one query. Report: {args.out}")
    return 1 if any(row.errors for row in benchmark.rows) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--rows", type=_count, default=100_000, metavar="N", help="on the server (default: %(default)s)"
    )
    parser.add_argument("--lite-rows", type=_count, default=10_000, metavar="N", help="on Lite (default: %(default)s)")
    parser.add_argument("--queries", type=positive, default=400, metavar="N", help="default: %(default)s")
    parser.add_argument("--dims", type=positive, default=150, metavar="D", help="default: %(default)s")
    parser.add_argument("--concurrency", nargs="+", type=positive, default=(1, 8), metavar="N", help="default: 1 8")
    parser.add_argument("--lite-callers", type=positive, default=16, metavar="N", help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=12.0, metavar="S", help="of each row (default: %(default)s)")
    parser.add_argument("--rounds", type=positive, default=4, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--warm-up", type=float, default=0.5, metavar="S", help="before each part (default: %(default)s)"
    )
    parser.add_argument(
        "--call-seconds", type=float, default=120.0, metavar="S", help="of a write (default: %(default)s)"
    )
    parser.add_argument(
        "--milvus-uri", default="", metavar="URI", help="a Milvus to measure on (default: start that of `make milvus`)"
    )
    parser.add_argument(
        "--work", type=Path, default=FOLDER / "search", metavar="DIR", help="databases (default: %(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, default=FOLDER / "search.json", metavar="FILE", help="report (default: %(default)s)"
    )
    parser.add_argument(
        "--logs", type=Path, default=FOLDER / "logs", metavar="DIR", help="of the servers (default: %(default)s)"
    )
    return parser


def _count(text: str) -> int:
    return 0 if text == "0" else positive(text)


if __name__ == "__main__":
    sys.exit(run(main))
