"""`make bench-steadiness`: whether the embedder keeps its promises under load. Each scenario ends with PASS or FAIL.

    capacity  what the others are measured by: images/s at 16 callers, and the latency of an image on the bare runtime
    half      at half of the capacity the slowest images take at most twice as long as on the bare runtime, to which as
              many come at the same times
    overload  at three times the capacity the server still does its best work, refuses the rest at once, keeps its
              memory and its health, and is back to normal soon after
    storm     calls whose deadlines pass while they wait cost the calls of others nothing, and the model nothing
    drain     a server that is told to stop under load loses no call of a client that heeds health

Calls come at random times (Poisson, the same every time), and their latency counts from the time they were due.

The report, JSON, `schema` 1:

    time, commit, hardware, versions   when and where
    bundle                             fingerprint, backbone, weights_source, dims, precisions
    images                             source, count, mean_bytes
    precision, queue_seconds,
    server_flags                       how the server was run
    scenarios                          see `Scenario`; null where there is no such figure
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks import bare, clients
from benchmarks.calls import Target
from benchmarks.clients import Clients
from benchmarks.inputs import PRECISIONS, Images, add_flags, describe_bundle, find_inputs, run, say
from benchmarks.load import OK, Calls, Measured, poisson
from benchmarks.processes import Embedder, Metrics, Sampler
from benchmarks.summary import latency, ratio, surroundings, write_json
from embedder_service.model.bundle import Bundle
from embedder_service.settings import EmbedderSettings
from workbench.errors import CommandError

SCHEMA = 1
_REFUSED = ("RESOURCE_EXHAUSTED", "CANCELLED")  # by the server, and by gRPC before it
_EXPIRED = "DEADLINE_EXCEEDED"
_CAPACITY_CALLERS = 16
# One Python process sends about 2,000 calls a second when it has a core to itself; here it has not.
_CALLS_PER_CLIENT = 500
_MOST_CLIENTS = 6
# Time for every client to take up its job before the first call is due.
_HEAD_START = 0.5
_HEALTH_RATE = 10.0
_LONG_DEADLINE = 30.0
_SOME_CALLS = 20
_BETWEEN_LOOKS = 0.1


@dataclass(frozen=True)
class Check:
    """A figure and its bound: `value` is to be at most, or at least, `bound`. NaN passes no check."""

    what: str
    value: float
    relation: Literal["<=", ">="]
    bound: float
    unit: str

    @property
    def passed(self) -> bool:
        """Whether the figure is within its bound."""
        return self.value <= self.bound if self.relation == "<=" else self.value >= self.bound

    def __str__(self) -> str:
        verdict = "PASS" if self.passed else "FAIL"
        return f"{verdict}  {self.what}: {self.value:.4g} {self.relation} {self.bound:.4g} {self.unit}".rstrip()


@dataclass
class Scenario:
    """What a scenario found.

    Attributes:
        name: which it is.
        checks: figures with bounds.
        figures: figures without.
    """

    name: str
    checks: list[Check] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def at_most(self, what: str, value: float, bound: float, unit: str = "") -> None:
        """Adds a figure that is to be at most so much."""
        self.checks.append(Check(what, value, "<=", bound, unit))

    def at_least(self, what: str, value: float, bound: float, unit: str = "") -> None:
        """Adds a figure that is to be at least so much."""
        self.checks.append(Check(what, value, ">=", bound, unit))

    @property
    def passed(self) -> bool:
        """Whether all figures are within their bounds."""
        return all(check.passed for check in self.checks)

    def report(self) -> dict[str, Any]:
        """Returns what the report says of it."""
        checks = [{**vars(check), "passed": check.passed} for check in self.checks]
        return {"name": self.name, "passed": self.passed, "checks": checks, "figures": self.figures}


class Steadiness:
    """Runs the scenarios, each against a fresh server."""

    def __init__(self, args: argparse.Namespace, images: Images, bundle: Bundle) -> None:
        self.scenarios: list[Scenario] = []
        self._args = args
        self._images = images
        self._bundle = bundle

    def run(self) -> None:
        """Runs capacity and the scenarios that the flags ask for."""
        self._finish(self._capacity())
        for name in self._args.scenarios:
            self._finish(_SCENARIOS[name](self))

    def _finish(self, scenario: Scenario) -> None:
        self.scenarios.append(scenario)
        for check in scenario.checks:
            print(f"    {check}")
        for name, figure in scenario.figures.items():
            print(f"          {name}: {_shown(figure)}", flush=True)

    def _capacity(self) -> Scenario:
        say("capacity")
        args, scenario = self._args, Scenario("capacity")
        alone = bare.measure(self._bundle.path, args.precision, self._images.paths, args.seconds, 1.0, 1).alone
        self._bare_seconds = float(np.median(alone.calls.latencies()))
        with self._embedder() as server, Clients(self._images.paths) as client:
            target = _ready(client, server)
            found = client.run(clients.closed_loop, target, _CAPACITY_CALLERS, args.seconds, 2.0, server.pid)
        self._rate = found.rate()
        scenario.at_most("calls that failed", sum(found.calls.errors().values()), 0)
        scenario.figures |= {"images/s": self._rate, "bare latency, ms": self._bare_seconds * 1e3}
        if not self._rate:
            raise CommandError(f"the embedder answered no call: {found.calls.counts()}")
        return scenario

    def half(self) -> Scenario:
        """At half of the capacity."""
        say("half of the capacity")
        scenario = Scenario("half")
        with self._embedder() as server, self._clients(self._rate / 2) as client:
            target = _ready(client, server)
            begin = time.monotonic() + _HEAD_START
            calls = _gather(self._offer(client, target, self._rate / 2, self._args.seconds, begin))
        due = np.sort(np.concatenate(self._schedules(self._rate / 2, self._args.seconds)))
        queued = bare.open_loop(self._bundle.path, self._args.precision, self._images.paths, due)
        spent, at_best = latency(calls.having(OK).latencies()), latency(queued.latencies())
        scenario.at_most("calls that failed", sum(calls.errors().values()), 0)
        scenario.at_most("p99 by that of the bare runtime", spent.p99 / at_best.p99, 2.0)
        scenario.figures |= {
            "p99 by the bare latency": spent.p99 / 1e3 / self._bare_seconds,
            "latency, ms": vars(spent),
            "latency of the bare runtime, ms": vars(at_best),
            **_honesty(calls),
        }
        return scenario

    def overload(self) -> Scenario:
        """At three times the capacity, and right after it."""
        args, scenario = self._args, Scenario("overload")
        say(f"overload, {args.overload_seconds:.0f} s")
        rate, seconds, light, after = 3 * self._rate, args.overload_seconds, self._rate / 5, 6.0
        with self._embedder() as server, self._clients(rate, more=2) as client:
            target = _ready(client, server)
            begin = time.monotonic() + _HEAD_START
            end = begin + seconds
            prober, user = len(client) - 2, len(client) - 1
            health = Target(target.addresses, "health")
            probes = begin + np.arange(0.0, seconds, 1 / _HEALTH_RATE)
            with Sampler(server.pid) as sampler:
                offered = self._offer(client, target, rate, seconds, begin)
                probing = client.submit(prober, clients.open_loop, health, probes, _LONG_DEADLINE)
                due = end + poisson(light, after, seed=1)
                using = client.submit(user, clients.open_loop, target, due, _LONG_DEADLINE)
                calls, checks, later = _gather(offered), probing.result(), using.result()
            served = server.metrics()
        accepted, refused = calls.having(OK), calls.select(np.isin(calls.codes, _REFUSED))
        unexpected = len(calls.due) - len(accepted.due) - len(refused.due)
        goodput = len(accepted.ended_within(begin, end).due) / seconds
        rss = np.array([sample.rss_bytes for sample in sampler.samples if begin <= sample.time < end])
        halves = [float(np.median(half)) for half in np.array_split(rss, 2)]
        normal = later.select(later.due >= end + 2.0)
        runs = 5 * self._bare_seconds
        scenario.at_least("goodput by the capacity", goodput / self._rate, 0.9)
        scenario.at_most("p99 of accepted", latency(accepted.latencies()).p99, 1e3 * (args.queue_seconds + runs), "ms")
        scenario.at_most("p95 of refusals", latency(refused.latencies()).p95, 20.0, "ms")
        scenario.at_most("neither accepted nor refused", unexpected, 0, "calls")
        scenario.at_most("not sent in time by the client", calls.unsent / calls.planned, 0.01)
        scenario.at_most("memory of the second half by the first", halves[1] / halves[0], 1.05)
        scenario.at_most("health checks that failed", sum(checks.errors().values()), 0)
        scenario.at_most("p99 of health checks", latency(checks.latencies()).p99, 1e3, "ms")
        scenario.at_most(
            "p99 by the bare latency, from 2 s after", latency(normal.latencies()).p99 / 1e3 / self._bare_seconds, 3.0
        )
        scenario.at_most("calls that failed from 2 s after", sum(normal.errors().values()), 0)
        scenario.figures |= {
            "offered, calls/s": calls.planned / seconds,
            "goodput, images/s": goodput,
            "accepted, ms": vars(latency(accepted.latencies())),
            "refused, ms": vars(latency(refused.latencies())),
            "health, ms": vars(latency(checks.latencies())),
            # Far less than at the client, it is the transport that waits.
            "mean of all calls at the client, ms": 1e3 * float(Calls.merge([calls, later]).latencies().mean()),
            "mean of all calls in the server, ms": 1e3
            * ratio(
                served.value("grpc_server_handling_seconds_sum", grpc_method="Embed"),
                served.value("grpc_server_handling_seconds_count", grpc_method="Embed"),
            ),
            "memory, MiB": [value / (1 << 20) for value in halves],
            "light load right after, ms": vars(latency(later.latencies())),
            **_honesty(calls),
        }
        return scenario

    def storm(self) -> Scenario:
        """A load that the server can bear, alone and beside as many calls with deadlines that cannot be kept."""
        say("storm of deadlines")
        args, scenario = self._args, Scenario("storm")
        rate, seconds = 0.7 * self._rate, args.seconds
        short = 3 * self._bare_seconds  # enough on an idle server, and not in a queue
        with self._embedder() as server, self._clients(rate, more=self._processes(rate)) as client:
            target = _ready(client, server)
            begin = time.monotonic() + _HEAD_START
            quiet = _gather(self._offer(client, target, rate, seconds, begin))
            before = server.metrics()
            begin = time.monotonic() + _HEAD_START
            live = self._offer(client, target, rate, seconds, begin)
            doomed = self._offer(client, target, rate, seconds, begin, limit=short, first=len(live), seed=1000)
            loud, lost = _gather(live), _gather(doomed)
            after = self._settled(server)
        goodput = [len(calls.having(OK).due) / seconds for calls in (quiet, loud)]
        scenario.at_least("goodput of the others by that without a storm", ratio(goodput[1], goodput[0]), 0.9)
        scenario.at_most("images that the model ran though they had expired", _in_vain(before, after), 0)
        dropped = 1 - len(lost.having(OK).due) / lost.planned
        scenario.at_least("calls of the storm that came to nothing, else it was none", dropped, 0.1)
        expected = (OK, _EXPIRED, *_REFUSED)
        scenario.at_most("other outcomes", sum(code not in expected for code in (*loud.codes, *lost.codes)), 0, "calls")
        scenario.figures |= {
            "short deadline, ms": short * 1e3,
            "others, images/s": goodput,
            "others, ms": vars(latency(loud.having(OK).latencies())),
            "others, outcomes": loud.counts(),
            "storm, outcomes": lost.counts(),
            **_honesty(Calls.merge([loud, lost])),
        }
        return scenario

    def drain(self) -> Scenario:
        """Two servers behind one client; one of them is told to stop."""
        say("drain")
        args, scenario = self._args, Scenario("drain")
        flags = ["--drain-delay", "2"]
        with (
            self._embedder(flags, "drained") as drained,
            self._embedder(flags, "staying") as staying,
            Clients(self._images.paths) as client,
        ):
            for server in (drained, staying):
                _ready(client, server)
            both = Target((drained.address, staying.address))
            load = client.submit(0, clients.closed_loop, both, 8, args.seconds + 10.0, 0.0)
            answered = self._answered_by_both((drained, staying), load)
            drained.terminate()
            told = time.monotonic()
            code = drained.wait()
            ended, in_time = time.monotonic(), not load.done()
            calls = load.result().calls
        scenario.at_most("calls that failed", sum(calls.errors().values()), 0)
        scenario.at_most("exit code", code, 0)
        scenario.at_least("calls answered after it had ended", len(calls.select(calls.sent > ended).having(OK).due), 1)
        scenario.figures |= {
            "calls": len(calls.due),
            "answered by each before": answered,
            "seconds to drain": ended - told,
            "ended under load": in_time,
        }
        return scenario

    def _embedder(self, flags: Sequence[str] = (), name: str = "") -> Embedder:
        # The last of two values of a flag counts.
        flags = ["--queue-seconds", str(self._args.queue_seconds), *self._args.server_flags, *flags]
        return Embedder(self._bundle.path, self._args.precision, self._args.logs, flags, name)

    def _clients(self, rate: float, more: int = 0) -> Clients:
        return Clients(self._images.paths, self._processes(rate) + more)

    def _processes(self, rate: float) -> int:
        return min(_MOST_CLIENTS, math.ceil(rate / _CALLS_PER_CLIENT))

    def _offer(
        self,
        client: Clients,
        target: Target,
        rate: float,
        seconds: float,
        begin: float,
        *,
        limit: float = _LONG_DEADLINE,
        first: int = 0,
        seed: int = 0,
    ) -> list[Future[Calls]]:
        """Begins an open loop in as many processes as it takes, from the number `first` on."""
        return [
            client.submit(first + index, clients.open_loop, target, begin + due, limit)
            for index, due in enumerate(self._schedules(rate, seconds, seed))
        ]

    def _schedules(self, rate: float, seconds: float, seed: int = 0) -> list[NDArray[np.float64]]:
        """Returns when the calls of each process are due, in seconds from the begin."""
        processes = self._processes(rate)
        return [poisson(rate / processes, seconds, seed + index) for index in range(processes)]

    def _settled(self, server: Embedder) -> Metrics:
        """Returns the metrics of a server that has nothing left to do."""
        deadline = time.monotonic() + _LONG_DEADLINE
        while (page := server.metrics()).value("embedder_queue_depth") or page.value("embedder_inflight_images"):
            if time.monotonic() > deadline:
                raise CommandError(f"the embedder still has work {_LONG_DEADLINE:.0f} s after the last call")
        return page

    def _answered_by_both(self, servers: Sequence[Embedder], load: Future[Measured]) -> list[int]:
        """Waits until each of the servers has answered some calls, and returns how many."""
        while True:
            answered = [int(server.metrics().value("embedder_images_total", outcome="ok")) for server in servers]
            if min(answered) >= _SOME_CALLS:
                return answered
            if wait([load], _BETWEEN_LOOKS).done:
                raise CommandError(f"of {len(servers)} servers some got no calls: they answered {answered}")


def _shown(figure: Any) -> str:
    """Returns a figure in few digits."""
    if isinstance(figure, dict):
        return ", ".join(f"{name} {_shown(value)}" for name, value in figure.items())
    if isinstance(figure, list):
        return " and ".join(map(_shown, figure))
    return f"{figure:.4g}" if isinstance(figure, float) else str(figure)


def _ready(client: Clients, server: Embedder) -> Target:
    target = Target((server.address,))
    client.run(clients.first_answer, target, server.pid)
    return target


def _gather(parts: Sequence[Future[Calls]]) -> Calls:
    return Calls.merge([part.result() for part in parts])


def _honesty(calls: Calls) -> dict[str, Any]:
    """Returns whether the client kept to its plan."""
    return {"planned": calls.planned, "sent": calls.counts(), "unsent": calls.unsent, "sent > 20 ms late": calls.late()}


def _in_vain(before: Metrics, after: Metrics) -> float:
    """Returns how many images the model ran of which nobody could want the result any more when they began.

    What was run and not answered had a caller when it began, and lost it meanwhile, or should not have been run.
    """

    def more(name: str, **labels: str) -> float:
        return after.value(name, **labels) - before.value(name, **labels)

    answered = more("embedder_images_total", outcome="ok")
    return more("embedder_batch_images_sum") - answered - more("embedder_expired_images_total", stage="run")


_SCENARIOS: dict[str, Callable[[Steadiness], Scenario]] = {
    "half": Steadiness.half,
    "overload": Steadiness.overload,
    "storm": Steadiness.storm,
    "drain": Steadiness.drain,
}


def main(argv: Sequence[str]) -> int:
    """Runs the scenarios; returns the exit code: 1 if one of them failed."""
    args = _parser().parse_args(argv)
    images, bundle = find_inputs(args)
    steadiness = Steadiness(args, images, bundle)
    steadiness.run()
    report = {
        "schema": SCHEMA,
        **surroundings(),
        "bundle": describe_bundle(bundle),
        "images": images.describe(),
        "precision": args.precision,
        "queue_seconds": args.queue_seconds,
        "server_flags": args.server_flags,
        "scenarios": [scenario.report() for scenario in steadiness.scenarios],
    }
    write_json(args.out, report)
    print()
    for scenario in steadiness.scenarios:
        print(f"{'PASS' if scenario.passed else 'FAIL'}  {scenario.name}")
    print(f"Report: {args.out}")
    return 0 if all(scenario.passed for scenario in steadiness.scenarios) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.steadiness", description=__doc__.partition("\n")[0])
    add_flags(parser, "steadiness.json")
    parser.add_argument("--precision", default="f32", choices=PRECISIONS, help="default: %(default)s")
    parser.add_argument(
        "--scenarios", nargs="+", default=tuple(_SCENARIOS), choices=tuple(_SCENARIOS), help="default: all"
    )
    parser.add_argument("--seconds", type=float, default=20.0, metavar="S", help="of each load (default: %(default)s)")
    parser.add_argument(
        "--overload-seconds", type=float, default=60.0, metavar="S", help="of the overload (default: %(default)s)"
    )
    parser.add_argument(
        "--queue-seconds",
        type=float,
        default=EmbedderSettings.queue_seconds,
        metavar="S",
        help="the embedder's setting of that name, which bounds how long an accepted image waits (default: its own)",
    )
    parser.add_argument(
        "--server-flag",
        dest="server_flags",
        action="append",
        default=[],
        metavar="--FLAG=VALUE",
        help="one more flag of the embedder; may be repeated",
    )
    return parser


if __name__ == "__main__":
    sys.exit(run(main))
