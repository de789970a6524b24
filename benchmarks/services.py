"""`make bench-services`: both services under every kind of load, by `lookalike loadtest`, in one run.

The embedder, the search service and a Milvus server (Milvus Lite where none is installed) run on this machine, the
client beside them. The images are ingested first. Rates of the open loops are shares of what the closed loops found.
Each scenario is a run of the command, whose report and JSON are kept: docs/load-testing.md tells how to read them.

The report, JSON, `schema` 1:

    time, commit, hardware, versions   when and where
    images, bundle, precision          of what
    milvus                             "server" or "lite"
    rows                               stored before the load
    scenarios                          `name`, `arguments`, and the `result` of the command
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from shutil import rmtree
from typing import Any

from benchmarks import inputs, milvus_server
from benchmarks.inputs import FOLDER, say
from benchmarks.milvus_server import MilvusServer
from benchmarks.summary import surroundings, write_json
from lookalike import Client
from workbench.errors import CommandError
from workbench.loadtest import summary
from workbench.options import PRECISIONS
from workbench.services import Services, running
from workbench.tables import table

SCHEMA = 1
_COLLECTION = "benchmark"
_ROOM = 0.5  # the share of capacity that open loops of several operations take


class Scenarios:
    """The scenarios of one run, and their results in order."""

    def __init__(self, args: argparse.Namespace, services: Services, images: Path) -> None:
        self.done: list[dict[str, Any]] = []
        self._work: Path = args.work
        self._common = ["--target", services.search.addresses.grpc, "--embedder", services.embedder.addresses.grpc]
        self._common += ["--images", str(images), "--collection", _COLLECTION, "--stages", "10%"]
        for server in (services.embedder, services.search):
            self._common += ["--prometheus", f"http://{server.addresses.metrics}/metrics"]
        self._seconds = ["--duration", f"{args.seconds}s", "--warm-up", f"{args.seconds / 5}s"]
        self._objective = args.objective

    def run(self) -> None:
        """Runs all of them, one after the other."""
        images = self._best("embed", "embed", "--concurrency", "1,4,16,64")
        rates = ",".join(f"{images * share:.1f}" for share in (0.25, 0.5, 0.75, 0.9))
        self._run("embed at shares of its capacity", "embed", "--rate", rates)
        self._run("embed in batches of 32", "embed-batch", "--batch", "32", "--concurrency", "4")
        self._run("embed: the limit", "embed", "--find-max", "--slo", self._objective, "--window", "3s")
        searches = self._best("search by vector", "search-vector", "--concurrency", "1,8,32", "--recall", "5%")
        self._run("search by image", "search-image", "--rate", f"{images * _ROOM:.1f}", "--recall", "10%")
        upserts = self._best(
            "upsert vectors in batches of 100", "upsert-vector", "--batch", "100", "--concurrency", "1,4"
        )
        # Of ten calls of the mix three carry an image, nine search, and one upserts a row, which is not much cheaper
        # than a hundred.
        mix = _ROOM * 10 / (3 / images + 9 / searches + 1 / upserts)
        calls = ("search-image=2", "search-vector=7", "upsert-image=1", "--batch", "1")
        self._run("a mix: 2 of 10 searches by image, 7 by vector, 1 upsert", *calls, "--rate", f"{mix:.1f}")
        self._run("embed: three times the limit", "embed", "--rate", f"{3 * images:.1f}", "--timeout", "1s")
        self._run("search: twice the limit", "search-vector", "--rate", f"{2 * searches:.1f}", "--timeout", "1s")

    def _best(self, name: str, *arguments: str) -> float:
        levels = self._run(name, *arguments)["levels"]
        return float(max(level["rates"]["goodput"] for level in levels))

    def _run(self, name: str, *arguments: str) -> dict[str, Any]:
        say(name)
        file = self._work / f"{len(self.done) + 1}.json"
        command = [sys.executable, "-m", "workbench.main", "loadtest", *arguments, *self._common]
        if "--find-max" not in arguments:
            command += self._seconds
        command += ["--json", str(file), "--html", str(file.with_suffix(".html"))]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)  # noqa: S603
        if done.returncode:
            raise CommandError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        result: dict[str, Any] = json.loads(file.read_text())
        self.done.append({"name": name, "arguments": arguments, "result": result})
        return result


def rows(scenarios: Sequence[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    """Yields a row of the table for each level and operation; of a search for the limit, for what it found."""
    for scenario in scenarios:
        result = scenario["result"]
        for level in result["levels"]:
            if result["limit"] and not summary.at_limit(result, level):
                continue
            kind = "service_ms" if level["load"]["kind"] == "closed" else "response_ms"
            for operation, timed in level["operations"].items():
                yield (
                    *(operation, summary.title(level), f"{timed['goodput']:,.1f}"),
                    *(summary.ms(timed[kind][name]) for name in ("p50", "p95", "p99", "p99.9")),
                    f"{level['counts']['error_share'] or 0:.2%}",
                    _stages(timed["stages_ms"]),
                    f"{sum(level['client']['cpu']):.2f}" + ("!" if level["client"]["limit"] else ""),
                )


def _stages(stages: dict[str, Any]) -> str:
    """The stages in which a tenth of the time and more went, with their mean in milliseconds."""
    total = stages.get("total", {}).get("mean") or 0
    long = [(name, each["mean"]) for name, each in stages.items() if name != "total" and each["mean"] > total / 10]
    return ", ".join(f"{name} {summary.ms(mean)}" for name, mean in long)


def main(argv: Sequence[str]) -> int:
    """Runs the benchmark; returns the exit code."""
    args = _parser().parse_args(argv)
    images, bundle = inputs.find_inputs(args)
    args.work = args.work.resolve()
    rmtree(args.work, ignore_errors=True)
    folder = args.work / "images"
    folder.mkdir(parents=True)
    for number, path in enumerate(images.paths):
        (folder / f"{number}{path.suffix}").symlink_to(path.resolve())
    with ExitStack() as stack:
        reason = milvus_server.why_not()
        milvus: Path | str = args.work / "milvus.db"
        if reason:
            say(f"on Milvus Lite: {reason}")
        else:
            server = MilvusServer(args.work)
            stack.callback(server.kill)
            milvus = server.uri
        services = stack.enter_context(running(bundle.path, milvus, args.logs, precision=args.precision))
        with Client(services.search.addresses.grpc) as client:
            client.create_collection(_COLLECTION)
        say(f"ingesting {len(images.paths)} images")
        ingest = [sys.executable, "-m", "workbench.main", "ingest", str(folder), "--collection", _COLLECTION]
        ingest += ["--target", services.search.addresses.grpc]
        subprocess.run(ingest, stdin=subprocess.DEVNULL, capture_output=True, check=True)  # noqa: S603
        scenarios = Scenarios(args, services, folder)
        scenarios.run()
    report = {"images": images.describe(), "bundle": inputs.describe_bundle(bundle), "precision": args.precision}
    report |= {"milvus": "lite" if reason else "server", "rows": len(images.paths), "scenarios": scenarios.done}
    write_json(args.out, {"schema": SCHEMA, **surroundings(), **report})
    header = ("operation", "load", "good/s", "p50 ms", "p95 ms", "p99 ms", "p99.9 ms", "errors", "where, ms", "client")
    print(table(header, list(rows(scenarios.done))))
    print("\nMilliseconds from when a call was due, in closed loops from when it was sent; client: cores that it took.")
    print(f"Look at the reports: {args.work}/*.html. Figures: {args.out}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.services", description=__doc__.partition("\n")[0])
    inputs.add_flags(parser, "services.json")
    parser.add_argument("--precision", default="auto", choices=PRECISIONS, help="of the model (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, metavar="S", help="of each level (default: %(default)s)")
    parser.add_argument(
        "--objective", default="p99=200ms,errors=0.1%", metavar="BOUNDS", help="of the limit (default: %(default)s)"
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=FOLDER / "services",
        metavar="DIR",
        help="of databases and reports; deleted first (default: %(default)s)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(inputs.run(main))
