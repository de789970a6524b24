"""`lookalike loadtest`: how much the services bear, how long they take, and where the time goes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.options import DEFAULT_TARGET, add_security, positive, security

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from workbench.loadtest.connection import Connection
    from workbench.loadtest.load import Load
    from workbench.loadtest.operations import Workload
    from workbench.loadtest.payloads import Images
    from workbench.loadtest.preflight import Targets
    from workbench.loadtest.settings import FindMax, Settings

_OPERATIONS = ("embed", "embed-batch", "search-image", "search-vector", "upsert-image", "upsert-vector")
_VECTORS = 4096


def register(subparsers: Any) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "loadtest",
        help="measure throughput and latency under load",
        description="Sends calls to running services, at set rates (open loop) or from a number of callers (closed "
        "loop), and tells how many were answered, how long they took from when they were due, and where the time went.",
        epilog="Exit codes: 0; 1 the test could not be run or the target died; 2 wrong arguments; 3 a condition of "
        "--fail-if is met, or --compare found it worse; 130 interrupted. docs/load-testing.md explains the numbers.",
    )
    parser.add_argument(
        "operations",
        nargs="+",
        metavar="OPERATION[=WEIGHT]",
        help=f"what to call: {', '.join(_OPERATIONS)}; several are mixed at random, by their weights",
    )
    _add_load(parser)
    _add_content(parser)
    _add_connection(parser)
    _add_output(parser)
    parser.set_defaults(run=run, parser=parser)


def _add_load(parser: argparse.ArgumentParser) -> None:
    load = parser.add_argument_group("load")
    kind = load.add_mutually_exclusive_group(required=True)
    kind.add_argument(
        "--rate", metavar="LEVELS", help="open loop: calls a second; 50,100,200 or 50:500:50 or 10:640:x2"
    )
    kind.add_argument(
        "--profile", metavar="P", help="open loop: 100@30s,100..500@1m: steps, and ramps from a rate to another"
    )
    kind.add_argument(
        "--trace", type=Path, metavar="FILE", help="open loop: recorded times of calls in seconds, one a line"
    )
    kind.add_argument("--concurrency", metavar="LEVELS", help="closed loop: callers; 1,8,32 or 1:64:x2")
    kind.add_argument("--find-max", action="store_true", help="search for the highest rate that keeps --slo")
    load.add_argument("--slo", metavar="BOUNDS", help="with --find-max: such as p99=100ms,errors=0.1%%")
    load.add_argument("--start-rate", metavar="R", help="with --find-max: the rate to begin with (default: found)")
    load.add_argument("--max-rate", default="100000", metavar="R", help="with --find-max: the highest rate to try")
    load.add_argument(
        "--window", default="5s", metavar="T", help="with --find-max: three of these must hold (default: 5s)"
    )
    load.add_argument(
        "--precision", default="2%", metavar="SHARE", help="with --find-max: how exactly to know (default: 2%%)"
    )
    load.add_argument("--arrivals", default="poisson", choices=("poisson", "constant"), help="default: %(default)s")
    load.add_argument("--duration", default="30s", metavar="T", help="of each level (default: %(default)s)")
    load.add_argument(
        "--warm-up", default="5s", metavar="T", help="before each level, not measured (default: %(default)s)"
    )
    load.add_argument("--timeout", default="10s", metavar="T", help="deadline of a call (default: %(default)s)")
    load.add_argument(
        "--max-in-flight",
        type=positive,
        default=4096,
        metavar="N",
        help="calls beyond are unsent (default: %(default)s)",
    )
    load.add_argument(
        "--processes", type=positive, default=1, metavar="N", help="that send calls (default: %(default)s)"
    )
    load.add_argument(
        "--give-up", default="15s", metavar="T", help="end after so long without a good reply (default: 15s)"
    )
    load.add_argument(
        "--seed", type=int, default=1, metavar="N", help="of times, payloads and choices (default: %(default)s)"
    )


def _add_content(parser: argparse.ArgumentParser) -> None:
    content = parser.add_argument_group("what is sent")
    content.add_argument("--images", type=Path, metavar="DIR", help="a folder of images, such as Caltech-101")
    content.add_argument(
        "--synthetic",
        default="320x240=60,640x480=30,1280x960=10",
        metavar="MIX",
        help="without --images: sizes in pixels and their weights (default: %(default)s)",
    )
    content.add_argument("--max-images", type=positive, default=1024, metavar="N", help="of the folder (default: 1024)")
    content.add_argument(
        "--vectors",
        default="random",
        metavar="WHICH",
        help="random, stored (of the collection), or a .npy file (default: random)",
    )
    content.add_argument(
        "--batch", type=positive, default=8, metavar="N", help="images or rows of one call (default: 8)"
    )
    content.add_argument("--collection", action="append", default=[], metavar="NAME", help="may be repeated")
    content.add_argument("--tenant", action="append", default=[], metavar="NAME", help="may be repeated")
    content.add_argument("--filter", action="append", default=[], metavar="EXPR", help="of searches; may be repeated")
    content.add_argument("--top-k", default="10", metavar="K[,K...]", help="hits wanted (default: 10)")
    content.add_argument(
        "--ef", type=positive, metavar="N", help="breadth of searches on HNSW (default: the service's)"
    )
    content.add_argument(
        "--rows", type=positive, default=10_000, metavar="N", help="ids that upserts go through (default: 10000)"
    )
    content.add_argument("--id-prefix", default="loadtest-", metavar="TEXT", help="of those ids (default: loadtest-)")
    content.add_argument(
        "--stages", default="10%", metavar="SHARE", help="of calls that ask where time went (default: 10%%)"
    )
    content.add_argument("--recall", default="0", metavar="SHARE", help="of searches to compare with the exact answer")


def _add_connection(parser: argparse.ArgumentParser) -> None:
    connection = parser.add_argument_group("connection")
    connection.add_argument(
        "--target", default=DEFAULT_TARGET, metavar="NAME", help="search service (default: %(default)s)"
    )
    connection.add_argument("--embedder", default="127.0.0.1:50051", metavar="NAME", help="default: %(default)s")
    connection.add_argument("--channels", type=positive, default=2, metavar="N", help="of each process (default: 2)")
    connection.add_argument(
        "--load-balancing", default="round_robin", choices=("round_robin", "pick_first"), help="default: round_robin"
    )
    connection.add_argument(
        "--compression", default="none", choices=("none", "gzip", "deflate"), help="of requests (default: none)"
    )
    connection.add_argument("--max-message-mib", type=positive, default=64, metavar="N", help="default: %(default)s")
    add_security(parser)


def _add_output(parser: argparse.ArgumentParser) -> None:
    output = parser.add_argument_group("results")
    output.add_argument("--json", type=Path, metavar="FILE", help="write the result, with all histograms")
    output.add_argument("--html", type=Path, metavar="FILE", help="write a report with charts")
    output.add_argument("--hdr", type=Path, metavar="FILE", help="write an HdrHistogram log")
    output.add_argument(
        "--prometheus",
        action="append",
        default=[],
        metavar="URL",
        help="a server's /metrics page, or a Prometheus; may be repeated",
    )
    output.add_argument(
        "--fail-if",
        action="append",
        default=[],
        metavar="COND",
        help="such as 'p99>150ms' or 'errors>0.1%%'; may be repeated",
    )
    output.add_argument(
        "--compare", type=Path, metavar="OLD.json", help="an earlier result: better, worse, the same or unclear"
    )
    output.add_argument("--tolerance", default="5%", metavar="SHARE", help="differences below are none (default: 5%%)")


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from workbench.errors import CommandError

    try:
        import hdrh.histogram  # noqa: F401
        import prometheus_client  # noqa: F401

        if args.html:
            import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise CommandError(f"the package {error.name} is not installed: pip install 'lookalike[loadtest]'") from error
    from workbench.loadtest import compare, preflight, summary
    from workbench.loadtest.operations import OPERATIONS
    from workbench.loadtest.run import LoadTest

    try:
        operations = _operations(args.operations)
        settings, connection = _settings(args), _connection(args)
    except argparse.ArgumentTypeError as error:
        args.parser.error(str(error))
    services = {OPERATIONS[name].service for name, _ in operations}
    if "search" in services and not args.collection:
        args.parser.error("searches and upserts need --collection NAME")
    targets = preflight.look(connection, services, tuple(args.collection))
    workload = _workload(args, operations, connection, targets)
    result, code = LoadTest(settings, workload, connection, targets).run()
    print(summary.render(result))
    if "comparison" in result:
        print(compare.render(result["comparison"]))
    for path in filter(None, (args.json, args.html, args.hdr)):
        print(f"written   {path}")
    return code


def _operations(texts: list[str]) -> tuple[tuple[str, float], ...]:
    from workbench.loadtest.quantities import positive_number

    found: dict[str, float] = {}
    for text in texts:
        name, _, weight = text.partition("=")
        if name not in _OPERATIONS or name in found:
            raise argparse.ArgumentTypeError(
                f"{text!r} is no operation, or stands twice; there are {', '.join(_OPERATIONS)}"
            )
        found[name] = positive_number(weight or "1")
    return tuple(found.items())


def _settings(args: argparse.Namespace) -> Settings:
    from workbench.loadtest import gates, quantities, result
    from workbench.loadtest.settings import Settings

    warm_up = quantities.duration_or_none(args.warm_up)
    find_max = _find_max(args)
    if args.compare is not None:
        result.read(args.compare)  # before the test, not after it
    return Settings(
        levels=() if find_max else _levels(args, warm_up),
        find_max=find_max,
        warm_up=warm_up,
        timeout=quantities.duration(args.timeout),
        most_in_flight=args.max_in_flight,
        processes=args.processes,
        give_up=quantities.duration(args.give_up),
        seed=args.seed,
        prometheus=tuple(args.prometheus),
        fail_if=tuple(gates.parse_gate(text) for text in args.fail_if),
        compare=args.compare,
        tolerance=quantities.share(args.tolerance),
        json=args.json,
        html=args.html,
        hdr=args.hdr,
    )


def _find_max(args: argparse.Namespace) -> FindMax | None:
    from workbench.loadtest import gates, quantities
    from workbench.loadtest.settings import FindMax

    if not args.find_max:
        if args.slo:
            raise argparse.ArgumentTypeError("--slo belongs to --find-max; a condition to fail at is --fail-if")
        return None
    if not args.slo:
        raise argparse.ArgumentTypeError("--find-max needs --slo, such as --slo p99=100ms,errors=0.1%")
    return FindMax(
        objective=gates.parse_objective(args.slo),
        start=quantities.positive_number(args.start_rate) if args.start_rate else None,
        most=quantities.positive_number(args.max_rate),
        window=quantities.duration(args.window),
        most_windows=10,
        precision=max(0.001, quantities.share(args.precision)),
        arrivals=args.arrivals,
    )


def _levels(args: argparse.Namespace, warm_up: float) -> tuple[Load, ...]:
    from workbench.loadtest import quantities, schedule
    from workbench.loadtest.load import ClosedLoop, OpenLoop

    seconds = quantities.duration(args.duration)
    if args.concurrency:
        return tuple(ClosedLoop(callers, seconds, warm_up) for callers in quantities.whole_levels(args.concurrency))

    def warming(rate: float) -> schedule.Schedule | None:
        return schedule.steady(rate, warm_up, args.arrivals, args.seed + 1) if warm_up and rate else None

    if args.rate:
        rates = quantities.levels(args.rate)
        return tuple(
            OpenLoop(schedule.steady(rate, seconds, args.arrivals, args.seed), warming(rate)) for rate in rates
        )
    if args.profile:
        segments = schedule.parse_profile(args.profile)
        return (OpenLoop(schedule.Schedule(segments, args.arrivals, args.seed), warming(segments[0].first)),)
    recorded = schedule.Schedule(trace=schedule.read_trace(args.trace))
    return (OpenLoop(recorded, warming(recorded.rate)),)


def _connection(args: argparse.Namespace) -> Connection:
    from workbench.loadtest.connection import Connection

    return Connection(
        embedder=args.embedder,
        search=args.target,
        channels=args.channels,
        load_balancing=args.load_balancing,
        security=security(args),
        compression=args.compression,
        max_message_bytes=args.max_message_mib << 20,
    )


def _workload(
    args: argparse.Namespace, operations: tuple[tuple[str, float], ...], connection: Connection, targets: Targets
) -> Workload:
    from workbench.loadtest.operations import ON_IMAGES, SEARCHES, Workload
    from workbench.loadtest.quantities import share, whole_levels

    names = {name for name, _ in operations}
    return Workload(
        operations=operations,
        images=_images(args) if names & ON_IMAGES else None,
        vectors=_vectors(args, connection, targets) if names - ON_IMAGES else None,
        fingerprint=targets.fingerprint,
        collections=tuple(args.collection),
        tenants=tuple(args.tenant) or ("",),
        filters=tuple(args.filter) or ("",),
        top_k=tuple(whole_levels(args.top_k)),
        ef=args.ef,
        batch=args.batch,
        rows=args.rows,
        id_prefix=args.id_prefix,
        seed=args.seed,
        stage_share=share(args.stages),
        recall_share=share(args.recall) if names & SEARCHES else 0.0,
    )


def _images(args: argparse.Namespace) -> Images:
    from workbench.loadtest import payloads

    if args.images:
        return payloads.from_folder(args.images, args.max_images, args.seed)
    return payloads.synthetic(payloads.parse_sizes(args.synthetic), args.seed)


def _vectors(args: argparse.Namespace, connection: Connection, targets: Targets) -> NDArray[np.float32]:
    from workbench.loadtest import payloads, preflight

    if args.vectors == "random":
        return payloads.random_vectors(_VECTORS, targets.dimension, args.seed)
    if args.vectors == "stored":
        return preflight.stored_vectors(connection, args.collection[0], args.tenant[0] if args.tenant else "", _VECTORS)
    return payloads.read_vectors(Path(args.vectors), _VECTORS, targets.dimension)
