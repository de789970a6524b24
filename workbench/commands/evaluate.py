"""`lookalike evaluate`: how often the nearest neighbours of an image are of its class."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.options import add_data_dir, add_ingestion, add_model, add_precision, positive

if TYPE_CHECKING:
    from workbench.evaluate import Evaluation
    from workbench.images import ImageFile

_DEFAULT_COLLECTION = "evaluation"


def register(subparsers: Any) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "evaluate",
        help="measure the accuracy of searches",
        description="Searches by every image of a folder and counts how many of its nearest neighbours lie in the same "
        "folder as it does. With --target the images must be stored already. Without it, the command runs the services "
        "itself, with --bundle or a model built from these very images, and stores the images first.",
    )
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder with a folder per class")
    parser.add_argument(
        "--exclude", action="append", default=[], metavar="NAME", help="folder in DIR to leave out; may be repeated"
    )
    parser.add_argument("--collection", default=_DEFAULT_COLLECTION, metavar="NAME", help="default: %(default)s")
    parser.add_argument("--target", metavar="HOST:PORT", help="a search service that runs already")
    parser.add_argument("--bundle", type=Path, metavar="DIR", help="model to run without --target")
    parser.add_argument(
        "--k", type=_neighbours, default=5, metavar="K", help="neighbours, the image itself included (default: 5)"
    )
    parser.add_argument("--exact", action="store_true", help="compare with every row instead of using the index")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file")
    add_ingestion(parser)
    add_model(parser)
    add_precision(parser)
    add_data_dir(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from workbench.images import find_images

    files = find_images(args.images, exclude=args.exclude)
    evaluation = _evaluate(args, args.target, files) if args.target else _evaluate_alone(args, files)
    latencies = ", ".join(f"{name} {value:.1f} ms" for name, value in evaluation.latency_ms.items())
    print(f"accuracy  {evaluation.accuracy:.2%}: neighbours of an image's own class, {args.k - 1} for each image")
    print(f"images    {evaluation.images:,} in {len({file.label for file in files})} classes")
    print(f"time      {evaluation.seconds:.1f} s, {evaluation.images / evaluation.seconds:,.0f} searches/s")
    print(f"latency   {latencies}, with {evaluation.concurrency} searches at the same time")
    if args.json:
        args.json.write_text(json.dumps(dataclasses.asdict(evaluation), indent=2) + "\n", encoding="utf-8")
    return 0


def _evaluate_alone(args: argparse.Namespace, files: Sequence[ImageFile]) -> Evaluation:
    """Runs the services for as long as it takes."""
    from embedder_service.model.bundle import load
    from workbench.bundles import ensure_bundle
    from workbench.ingest import ingest_with_progress
    from workbench.services import running

    home = args.data_dir / "evaluate"
    if args.bundle:
        bundle = load(args.bundle)
    else:
        print("Building the model", flush=True)
        bundle = ensure_bundle(home / "bundle", files, backbone=args.backbone, weights=args.weights, dims=args.dims)
    print("Starting the services", flush=True)
    # One database for each vector space and precision: what is stored in it is taken as it is the next time.
    database = home / f"{bundle.manifest.fingerprint[:12]}-{args.precision}.db"
    with running(bundle.path, database, home / "logs", precision=args.precision) as services:
        target = services.search.addresses.grpc
        report = ingest_with_progress(target, args.collection, files, batch=args.batch, concurrency=args.concurrency)
        print(report)
        failed = {failure.id for failure in report.failures}
        for failure in report.failures:
            print(f"  left out: {failure.id}: {failure.reason}")
        return _evaluate(args, target, [file for file in files if file.id not in failed])


def _evaluate(args: argparse.Namespace, target: str, files: Sequence[ImageFile]) -> Evaluation:
    """Searches with progress."""
    import asyncio

    from lookalike import AsyncClient
    from workbench.evaluate import evaluate
    from workbench.progress import progress

    async def search() -> Evaluation:
        async with AsyncClient(target) as client:
            with progress("Searching", len(files), "searches") as bar:
                return await evaluate(
                    client,
                    args.collection,
                    {file.id: file.label for file in files},
                    k=args.k,
                    concurrency=args.concurrency,
                    exact=args.exact,
                    on_progress=bar.advance,
                )

    return asyncio.run(search())


def _neighbours(text: str) -> int:
    number = positive(text)
    if number < 2:
        raise argparse.ArgumentTypeError("the image itself is one of the neighbours: 2 is the least")
    return number
