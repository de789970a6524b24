"""`make soak`: minutes of mixed load on the embedder, in which it must not grow.

Good, bad and big images, batches, streams, cancelled calls and short deadlines come at random. Memory, threads and open
files of the server are sampled; after a third of the time, a line is fitted through each. The soak fails if one of them
grows, or if a call ends as its kind must not.

The report, JSON, `schema` 1:

    time, commit, hardware, versions   when and where
    bundle                             fingerprint, backbone, weights_source, dims, precisions
    images                             source, count, mean_bytes
    precision, minutes, callers        how it was run
    answers                            for each kind of call how often it ended with each status code
    unexpected                         how many of those must not have been
    growth                             for each resource, see `Growth`
    samples                            time, rss_bytes, threads, files; time in seconds from the start
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from concurrent.futures import wait
from dataclasses import dataclass

import numpy as np

from benchmarks import clients
from benchmarks.calls import Target
from benchmarks.clients import Clients
from benchmarks.inputs import PRECISIONS, add_flags, describe_bundle, find_inputs, run, say
from benchmarks.processes import Embedder, Sampler, Usage
from benchmarks.summary import growth, surroundings, write_json
from workbench.options import positive
from workbench.tables import table

SCHEMA = 1
_SAMPLE_SECONDS = 1.0
_SAY_SECONDS = 15.0
# By how much each may grow on the fitted line: a share of its mean, and so many at least.
_LIMITS = {"rss_bytes": (0.05, 0.0), "threads": (0.0, 1.0), "files": (0.05, 1.0)}


@dataclass(frozen=True)
class Growth:
    """What became of a resource after the first third of the time.

    Attributes:
        mean: how much was held on average.
        growth: by how much that grew until the end, on the line that fits the samples best.
        bound: by how much it may.
    """

    mean: float
    growth: float
    bound: float

    @property
    def passed(self) -> bool:
        """Whether it is within its bound."""
        return self.growth <= self.bound


def grown(samples: Sequence[Usage]) -> dict[str, Growth]:
    """Returns the growth of each resource over the last two thirds of the samples' time."""
    begin = samples[0].time + (samples[-1].time - samples[0].time) / 3
    kept = [sample for sample in samples if sample.time >= begin]
    times = np.array([sample.time for sample in kept])
    found = {}
    for name, (share, least) in _LIMITS.items():
        values = np.array([getattr(sample, name) for sample in kept], np.float64)
        mean = float(values.mean())
        found[name] = Growth(mean, growth(times, values), max(least, share * mean))
    return found


def main(argv: Sequence[str]) -> int:
    """Runs the soak; returns the exit code: 1 if it failed."""
    args = _parser().parse_args(argv)
    images, bundle = find_inputs(args)
    with Embedder(bundle.path, args.precision, args.logs) as server, Clients(images.paths) as client:
        client.run(clients.first_answer, Target((server.address,)), server.pid)
        begin = time.monotonic()
        until = begin + 60.0 * args.minutes
        say(f"{args.minutes:g} minutes of {args.callers} callers")
        with Sampler(server.pid, _SAMPLE_SECONDS) as sampler:
            load = client.submit(0, clients.mixed_load, server.address, args.callers, until)
            while not wait([load], _SAY_SECONDS).done:
                now = sampler.samples[-1]
                rss, minutes = now.rss_bytes / (1 << 20), (now.time - begin) / 60
                say(f"  {minutes:.1f} min: {rss:.0f} MiB, {now.threads} threads, {now.files} files")
            answers, unexpected = load.result()
    found = grown(sampler.samples)
    report = {
        "schema": SCHEMA,
        **surroundings(),
        "bundle": describe_bundle(bundle),
        "images": images.describe(),
        "precision": args.precision,
        "minutes": args.minutes,
        "callers": args.callers,
        "answers": answers,
        "unexpected": unexpected,
        "growth": found,
        "samples": [{**vars(sample), "time": sample.time - begin} for sample in sampler.samples],
    }
    write_json(args.out, report)
    print()
    rows = [(kind, code, f"{count:,}") for kind, codes in answers.items() for code, count in codes.items()]
    print(table(("call", "answer", "times"), rows))
    print()
    for name, figure in found.items():
        verdict = "PASS" if figure.passed else "FAIL"
        print(f"{verdict}  growth of {name}: {figure.growth:,.1f} <= {figure.bound:,.1f}, mean {figure.mean:,.0f}")
    print(f"{'FAIL' if unexpected else 'PASS'}  answers that must not be: {unexpected}")
    print(f"Report: {args.out}")
    return 1 if unexpected or not all(figure.passed for figure in found.values()) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__.partition("\n")[0])
    add_flags(parser, "soak.json")
    parser.add_argument("--precision", default="f32", choices=PRECISIONS, help="default: %(default)s")
    parser.add_argument("--minutes", type=float, default=10.0, metavar="M", help="default: %(default)s")
    parser.add_argument("--callers", type=positive, default=8, metavar="N", help="at once (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(run(main))
