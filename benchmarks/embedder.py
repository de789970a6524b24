"""`make bench-embedder`: how fast the embedder is, beside its bare model and the usual ways to serve the same one.

Everything is measured in one run with the same images, the same weights and the same closed-loop client, one server at
a time. Client and server share the machine, as is stated by the CPU time of each.

The report, JSON, `schema` 1:

    time, commit, hardware, versions   when and where
    bundle                             fingerprint, backbone, weights_source, dims, precisions
    images                             source, count, mean_bytes
    seconds, warm_up_seconds           of each row
    skipped                            what was not measured, and why
    rows                               see `Row`; null where there is no such figure
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks import bare, clients
from benchmarks.calls import Target
from benchmarks.clients import Clients
from benchmarks.inputs import PRECISIONS, Images, add_flags, describe_bundle, find_inputs, run, say
from benchmarks.load import OK, Measured
from benchmarks.processes import Embedder, Sampler, Server
from benchmarks.summary import Latency, latency, ratio, surroundings, write_json
from embedder_service.model.bundle import Bundle
from service_kit.errors import FailedPrecondition
from workbench.options import positive
from workbench.tables import table

SCHEMA = 1
_BARE, _LOOKALIKE = "bare runtime", "lookalike"
_TF_FUNCTION, _LITSERVE = "tf_function", "litserve"
# The module of each peer, and how it is called.
_PEERS: dict[str, tuple[str, Literal["embed", "http"]]] = {
    "predict": ("benchmarks.peers.predict", "embed"),
    _TF_FUNCTION: ("benchmarks.peers.tf_function", "embed"),
    _LITSERVE: ("benchmarks.peers.lit_serve", "http"),
}
_BATCH, _BATCH_CALLERS = 32, 4
# Embeddings of each server that are compared with those of the bare runtime.
_COMPARED = 16


@dataclass(frozen=True)
class Row:
    """One server under one load.

    Attributes:
        server: "bare runtime", "lookalike" or the name of a peer; with `--decode-isolation` "decoding, process",
            "lookalike, process" and so on.
        call: what was called.
        precision: arithmetic of the model.
        concurrency: calls in flight; threads of the bare runtime.
        batch: images in a call.
        seconds: length of the measurement.
        images: answered well in that time; see `load.Measured.rate`.
        images_per_second: that, by the second.
        latency_ms: of the calls answered well.
        server_cpu_ms: CPU time of the server's processes for each of those images.
        client_cpu_ms: CPU time of the client for each.
        other_cores: cores that were busy with neither: how quiet the machine was.
        rss_max_bytes: most memory of the server's processes together, while warming up and measuring.
        startup_seconds: from the start of its process to its first good answer, with nothing compiled before; of the
            bare runtime, to load the model.
        errors: calls that ended otherwise, by status code.
        cosine: mean cosine of its embeddings to those of the first bare runtime measured.
        to_bare: images/s by those of the bare runtime in the same precision, with one thread for a concurrency of 1
            and with all above.
        to_tf_function: images/s by those of the peer tf_function at the same concurrency.
        to_litserve: images/s by those of the peer litserve at the same concurrency.
    """

    server: str
    call: str
    precision: str
    concurrency: int
    batch: int
    seconds: float
    images: int
    images_per_second: float
    latency_ms: Latency
    server_cpu_ms: float
    client_cpu_ms: float
    other_cores: float
    rss_max_bytes: int
    startup_seconds: float
    errors: dict[str, int]
    cosine: float
    to_bare: float = math.nan
    to_tf_function: float = math.nan
    to_litserve: float = math.nan


class Benchmark:
    """Measures one server after the other, and keeps the rows."""

    def __init__(self, args: argparse.Namespace, images: Images, bundle: Bundle, client: Clients) -> None:
        self.rows: list[Row] = []
        self.skipped: list[str] = []
        self._args = args
        self._images = images
        self._bundle = bundle
        self._client = client
        self._reference: NDArray[np.float32] | None = None

    def run(self) -> None:
        """Measures all that the flags ask for."""
        for isolation in self._args.decode_isolation:
            self._decoding(isolation)
        for precision in self._args.precisions:
            try:
                self._bare(precision)
            except FailedPrecondition as error:
                self._skip(f"{precision}: {error.message}")
            else:
                for isolation in self._args.decode_isolation or (None,):
                    self._lookalike(precision, isolation)
        for peer in self._args.peers:
            self._peer(peer)
        self.rows = list(_compared(self.rows))

    def _bare(self, precision: str) -> None:
        say(f"{_BARE}, {precision}")
        args = self._args
        found = bare.measure(
            self._bundle.path, precision, self._images.paths, args.seconds, args.warm_up, self._vectors
        )
        cosine = self._cosine(found.vectors)
        for threads, measured in {1: found.alone, found.slots: found.full}.items():
            row = _row(_BARE, "run", precision, threads, 1, measured, found.rss_max, found.load_seconds, cosine)
            # Server and client are one here.
            self._add(dataclasses.replace(row, server_cpu_ms=row.client_cpu_ms, client_cpu_ms=0.0))

    def _decoding(self, isolation: str) -> None:
        name = f"decoding, {isolation}"
        say(name)
        args = self._args
        found = bare.decoding(self._bundle.path, isolation, self._images.paths, args.seconds, args.warm_up)
        for threads, measured in {1: found.alone, found.threads: found.full}.items():
            row = _row(name, "decode", "", threads, 1, measured, found.rss_max, found.start_seconds, math.nan)
            # Server and client are one here, and counted as the server.
            self._add(dataclasses.replace(row, client_cpu_ms=0.0))

    def _lookalike(self, precision: str, isolation: str | None) -> None:
        name = f"{_LOOKALIKE}, {isolation}" if isolation else _LOOKALIKE
        with (
            tempfile.TemporaryDirectory() as cache,  # empty: a model that was compiled before would start sooner
            Embedder(
                *(self._bundle.path, precision, self._args.logs),
                ["--cache-dir", cache, *(["--decode-isolation", isolation] if isolation else [])],
            ) as server,
        ):
            self._measure(name, precision, server, "embed")
            batches = Target((server.address,), "embed_batch", _BATCH)
            self._load(name, precision, server, batches, _BATCH_CALLERS)

    def _peer(self, name: str) -> None:
        module, method = _PEERS[name]
        with Server(name, module, ["--bundle", str(self._bundle.path)], self._args.logs) as server:
            self._measure(name, "f32", server, method)

    def _measure(self, name: str, precision: str, server: Server, method: Literal["embed", "http"]) -> None:
        say(f"{name}, {precision}")
        target = Target((server.address,), method)
        self._startup = self._client.run(clients.first_answer, target, server.pid) - server.started
        self._agreement = self._cosine(self._client.run(clients.vectors, target, self._vectors))
        for callers in self._args.concurrency:
            self._load(name, precision, server, target, callers)

    def _load(self, name: str, precision: str, server: Server, target: Target, callers: int) -> None:
        with Sampler(server.pid) as sampler:
            measured = self._client.run(
                clients.closed_loop, target, callers, self._args.seconds, self._args.warm_up, server.pid
            )
        call = {"embed": "Embed", "embed_batch": f"EmbedBatch {target.batch}", "http": "POST"}[target.method]
        self._add(
            _row(
                *(name, call, precision, callers, target.batch, measured),
                *(sampler.rss_max, self._startup, self._agreement),
            )
        )

    @property
    def _vectors(self) -> int:
        return min(_COMPARED, len(self._images.paths))

    def _cosine(self, vectors: NDArray[np.float32]) -> float:
        if self._reference is None:
            self._reference = vectors
        return float((vectors * self._reference).sum(axis=1).mean())

    def _add(self, row: Row) -> None:
        self.rows.append(row)
        failed = f", ERRORS {row.errors}" if row.errors else ""
        say(
            f"  {row.call}, {row.concurrency} at a time: {row.images_per_second:.1f} images/s, "
            f"p50 {row.latency_ms.p50:.1f} ms, p99 {row.latency_ms.p99:.1f} ms{failed}"
        )

    def _skip(self, what: str) -> None:
        self.skipped.append(what)
        say(f"skipped {what}")


def _row(
    server: str,
    call: str,
    precision: str,
    concurrency: int,
    batch: int,
    measured: Measured,
    rss_max: int,
    startup: float,
    cosine: float,
) -> Row:
    rate = measured.rate() * batch
    images = rate * measured.seconds
    return Row(
        server=server,
        call=call,
        precision=precision,
        concurrency=concurrency,
        batch=batch,
        seconds=measured.seconds,
        images=round(images),
        images_per_second=rate,
        latency_ms=latency(measured.calls.having(OK).latencies()),
        server_cpu_ms=ratio(measured.cpu.server * 1e3, images),
        client_cpu_ms=ratio(measured.cpu.client * 1e3, images),
        other_cores=measured.cpu.others / measured.seconds,
        rss_max_bytes=rss_max,
        startup_seconds=startup,
        errors=measured.calls.errors(),
        cosine=cosine,
    )


def _compared(rows: Sequence[Row]) -> Iterator[Row]:
    """Yields the rows with their ratios."""
    bares = {(row.precision, row.concurrency > 1): row.images_per_second for row in rows if row.server == _BARE}
    peers = {(row.server, row.concurrency): row.images_per_second for row in rows if row.server in _PEERS}
    for row in rows:
        # The bare runtime of one slot has one row for both.
        base = bares.get((row.precision, row.concurrency > 1)) or bares.get((row.precision, False))
        of_peer = {
            name: math.nan
            if row.server == _BARE or row.batch > 1
            else ratio(row.images_per_second, peers.get((name, row.concurrency)))
            for name in (_TF_FUNCTION, _LITSERVE)
        }
        yield dataclasses.replace(
            row,
            to_bare=ratio(row.images_per_second, base),
            to_tf_function=of_peer[_TF_FUNCTION],
            to_litserve=of_peer[_LITSERVE],
        )


_HEADER = (
    *("server", "call", "precision", "callers", "images/s", "p50 ms", "p95 ms", "p99 ms"),
    *("server CPU ms", "client CPU ms", "RSS MiB", "start s", "errors", "x bare", "x tf_function", "x LitServe"),
)


def _cells(row: Row) -> tuple[str, ...]:
    times = row.latency_ms
    return (
        *(row.server, row.call, row.precision, str(row.concurrency), f"{row.images_per_second:.1f}"),
        *(f"{value:.1f}" for value in (times.p50, times.p95, times.p99, row.server_cpu_ms, row.client_cpu_ms)),
        *(f"{row.rss_max_bytes / (1 << 20):.0f}", f"{row.startup_seconds:.1f}", str(sum(row.errors.values()))),
        *("-" if math.isnan(value) else f"{value:.2f}" for value in (row.to_bare, row.to_tf_function, row.to_litserve)),
    )


def main(argv: Sequence[str]) -> int:
    """Runs the benchmark; returns the exit code: 1 if a server answered anything with an error."""
    args = _parser().parse_args(argv)
    images, bundle = find_inputs(args)
    with Clients(images.paths) as client:
        benchmark = Benchmark(args, images, bundle, client)
        benchmark.run()
    report = {
        "schema": SCHEMA,
        **surroundings(),
        "bundle": describe_bundle(bundle),
        "images": images.describe(),
        "seconds": args.seconds,
        "warm_up_seconds": args.warm_up,
        "skipped": benchmark.skipped,
        "rows": benchmark.rows,
    }
    write_json(args.out, report)
    print()
    print(table(_HEADER, [_cells(row) for row in benchmark.rows]))
    busiest = max((row.other_cores for row in benchmark.rows), default=0.0)
    print(f"\nBusy with other things: at most {busiest:.2f} cores. CPU times are for one image. Report: {args.out}")
    return 1 if any(row.errors for row in benchmark.rows) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.embedder", description=__doc__.partition("\n")[0])
    add_flags(parser, "embedder.json")
    parser.add_argument(
        "--precisions", nargs="+", default=PRECISIONS, choices=PRECISIONS, help="default: all that the bundle has"
    )
    parser.add_argument(
        "--peers", nargs="*", default=tuple(_PEERS), choices=tuple(_PEERS), help="default: all; none if left empty"
    )
    parser.add_argument(
        "--decode-isolation",
        nargs="+",
        default=(),
        choices=("process", "thread"),
        help="measure the embedder with each of these, and decoding alone (default: the embedder as it is by default)",
    )
    parser.add_argument(
        "--concurrency", nargs="+", type=positive, default=(1, 4, 16, 64), metavar="N", help="default: 1 4 16 64"
    )
    parser.add_argument("--seconds", type=float, default=8.0, metavar="S", help="of each row (default: %(default)s)")
    parser.add_argument("--warm-up", type=float, default=2.0, metavar="S", help="before each (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(run(main))
