"""`make bench-ingest`: how much of the embedder's throughput is left when images are stored with `lookalike ingest`.

Both services run on this machine, on Milvus Lite. In each round the embedder is measured alone (EmbedBatch in a closed
loop, as in `make bench-embedder`), then a further part of the images is ingested by the command, then the embedder is
measured again. A round's ratio is the images per second of the ingest, from its first call to its last acknowledgement,
by the mean of the two; the ratio is the median of the rounds. Everything shares the cores of this machine, so the ratio
is bounded by the CPU time that the search service and the client need beside the embedder.

The report, JSON, `schema` 1:

    time, commit, hardware, versions   when and where
    images, bundle, precision          of what
    rounds                             see `Round`
    ratio                              the median of those of the rounds
    rss_bytes                          memory of the ingest command, the most
"""

from __future__ import annotations

import argparse
import csv
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import clients, inputs
from benchmarks.calls import Target
from benchmarks.clients import Clients
from benchmarks.inputs import FOLDER, say
from benchmarks.processes import ProcessTree, Sampler
from benchmarks.summary import surroundings, write_json
from workbench.demo_images import make_demo_images
from workbench.errors import CommandError
from workbench.images import find_images
from workbench.options import PRECISIONS, positive
from workbench.services import Services, running
from workbench.tables import table

SCHEMA = 1
_BATCH = 32
_CALLERS = 4
_COLLECTION = "benchmark"
_SUMMARY = re.compile(r"([\d,]+) images found = ([\d,]+) stored .* in [\d.]+ s \(([\d,.]+) images/s\)")


@dataclass(frozen=True)
class Round:
    """What was measured in one round.

    Attributes:
        embedded_per_second: images of the embedder alone, before the ingest and after it.
        images: how many were ingested.
        ingested_per_second: of those.
        ratio: of these rates.
        embedder_cpu_ms: CPU time of the embedder for each image ingested.
        service_cpu_ms: that of the search service.
        rss_bytes: memory of the ingest command, the most.
    """

    embedded_per_second: tuple[float, float]
    images: int
    ingested_per_second: float
    ratio: float
    embedder_cpu_ms: float
    service_cpu_ms: float
    rss_bytes: int


def main(argv: Sequence[str]) -> int:
    """Runs the benchmark; returns the exit code."""
    args = _parser().parse_args(argv)
    images, bundle = inputs.find_inputs(args)
    work = args.work.resolve()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    demo = Path(images.source) if Path(images.source).is_dir() else make_demo_images(FOLDER / "demo").copies
    manifest = work / "images.csv"
    with manifest.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "id", "class"))
        writer.writerows((each.path, each.id, each.label) for each in find_images(demo, exclude=["BACKGROUND_Google"]))
    with (
        running(bundle.path, work / "milvus.db", args.logs, precision=args.precision) as services,
        Clients(images.paths) as client,
    ):
        rounds = []
        for number in range(args.rounds):
            rounds.append(_round(args, services, client, manifest, f"{number}/{args.rounds}"))
            say(f"round {number + 1}: {rounds[-1].ratio:.3f}")
    ratio = statistics.median(each.ratio for each in rounds)
    rss = max(each.rss_bytes for each in rounds)
    report = {"images": images.describe(), "bundle": inputs.describe_bundle(bundle), "precision": args.precision}
    report |= {"rounds": rounds, "ratio": ratio, "rss_bytes": rss}
    write_json(args.out, {"schema": SCHEMA, **surroundings(), **report})
    header = ("embedder images/s", "ingest images/s", "ratio", "images", "embedder CPU ms", "service CPU ms", "RSS MiB")
    print(table(header, [_cells(each) for each in rounds]))
    print(f"\nratio {ratio:.3f} (median), memory of the command {rss / 2**20:.0f} MiB. Report: {args.out}")
    return 0


def _round(args: argparse.Namespace, services: Services, client: Clients, manifest: Path, shard: str) -> Round:
    target = Target((services.embedder.addresses.grpc,), "embed_batch", _BATCH)

    def embedded() -> float:
        measured = client.run(clients.closed_loop, target, _CALLERS, args.seconds, args.warm_up)
        return measured.rate() * _BATCH

    before = embedded()
    embedder, service = ProcessTree(services.embedder.pid), ProcessTree(services.search.pid)
    cpu = embedder.cpu_seconds(), service.cpu_seconds()
    command = [sys.executable, "-m", "workbench.main", "ingest", str(manifest), "--collection", _COLLECTION]
    command += ["--target", services.search.addresses.grpc, "--shard", shard]
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)  # noqa: S603
        with Sampler(process.pid) as sampler:
            code = process.wait()
        out.seek(0)
        printed = out.read()
    embedder_cpu, service_cpu = embedder.cpu_seconds() - cpu[0], service.cpu_seconds() - cpu[1]
    after = embedded()
    summary = _SUMMARY.search(printed)
    if code or not summary or summary[1] != summary[2]:
        raise CommandError(f"the ingest ended with exit code {code}, and not everything stored:\n{printed}")
    count, rate = int(summary[1].replace(",", "")), float(summary[3].replace(",", ""))
    ratio = rate / statistics.mean((before, after))
    cpus = embedder_cpu / count * 1e3, service_cpu / count * 1e3
    return Round((before, after), count, rate, ratio, *cpus, sampler.rss_max)


def _cells(each: Round) -> Sequence[str]:
    return (
        " and ".join(f"{rate:.1f}" for rate in each.embedded_per_second),
        f"{each.ingested_per_second:.1f}",
        f"{each.ratio:.3f}",
        f"{each.images:,}",
        f"{each.embedder_cpu_ms:.2f}",
        f"{each.service_cpu_ms:.2f}",
        f"{each.rss_bytes / 2**20:.0f}",
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ingest", description=__doc__.partition("\n")[0])
    inputs.add_flags(parser, "ingest.json")
    parser.add_argument("--precision", default="auto", choices=PRECISIONS, help="of the model (default: %(default)s)")
    parser.add_argument(
        "--rounds", type=positive, default=3, metavar="N", help="parts of the images (default: %(default)s)"
    )
    parser.add_argument(
        "--seconds", type=float, default=5.0, metavar="S", help="of the embedder alone (default: %(default)s)"
    )
    parser.add_argument("--warm-up", type=float, default=1.0, metavar="S", help="before that (default: %(default)s)")
    parser.add_argument(
        "--work",
        type=Path,
        default=FOLDER / "ingest",
        metavar="DIR",
        help="of the database; deleted first (default: %(default)s)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(inputs.run(main))
