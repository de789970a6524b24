"""`lookalike evaluate`: how good the nearest neighbours of images are, and the ways to find them."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.options import add_data_dir, add_ingestion, add_model, add_precision, positive

if TYPE_CHECKING:
    from embedder_service.model.bundle import Bundle
    from workbench.evaluation import Evaluation
    from workbench.images import ImageFile
    from workbench.service_accuracy import ServiceAccuracy

_DEFAULT_COLLECTION = "evaluation"
_SEED = 101
# What the report is made with; the other ways to search that it compares may be missing.
_NEEDED = ("matplotlib", "sklearn", "openvino", "milvus_lite")
_IDS_OF_A_CALL = 500


def register(subparsers: Any) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "evaluate",
        help="measure the accuracy of searches, and write a report",
        description="Searches by every image of a folder and counts how many of its nearest neighbours lie in the same "
        "folder as it does. With --target that is all, and the images must be stored already. Without it, the command "
        "runs the services itself, with --bundle or a model built from these very images, stores the images first, and "
        "writes a report: accuracy at many sizes, retrieval measures, other ways to search, maps and pictures.",
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
    parser.add_argument(
        "--report", type=Path, metavar="FILE", help="the report, HTML (default: evaluate/report.html in --data-dir)"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="the figures, JSON (default: beside the report; none with --target)"
    )
    parser.add_argument(
        "--seed", type=int, default=_SEED, metavar="N", help="of what is chosen at random (default: %(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="lay out fewer images, and search by fewer for the times")
    add_ingestion(parser)
    add_model(parser)
    add_precision(parser)
    add_data_dir(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from workbench.images import find_images

    files = find_images(args.images, exclude=args.exclude)
    if args.target:
        measured = _search(args, args.target, files)
        _print(args, measured, files)
        if args.json:
            _write_json(args.json, dataclasses.asdict(measured))
    else:
        _report(args, files)
    return 0


def _print(args: argparse.Namespace, measured: ServiceAccuracy, files: Sequence[ImageFile]) -> None:
    latencies = ", ".join(f"{name} {value:.1f} ms" for name, value in measured.latency_ms.items())
    print(f"accuracy  {measured.accuracy:.2%}: neighbours of an image's own class, {args.k - 1} for each image")
    print(f"images    {measured.images:,} in {len({file.label for file in files})} classes")
    print(f"time      {measured.seconds:.1f} s, {measured.images / measured.seconds:,.0f} searches/s")
    print(f"latency   {latencies}, with {measured.concurrency} searches at the same time")


def _report(args: argparse.Namespace, files: Sequence[ImageFile]) -> None:
    """Measures all there is to measure, runs the services for as long as it takes, and writes it down."""
    _require_packages()
    import os
    import platform
    import time

    from embedder_service.model.backbones import BACKBONES
    from embedder_service.model.bundle import load
    from workbench.bundles import ensure_bundle
    from workbench.evaluation import Thoroughness, embed, evaluate
    from workbench.evaluation_page import render
    from workbench.progress import progress

    home = args.data_dir / "evaluate"
    if args.bundle:
        bundle = load(args.bundle)
    else:
        print("Building the model", flush=True)
        bundle = ensure_bundle(home / "bundle", files, backbone=args.backbone, weights=args.weights, dims=args.dims)
    print("Measuring the vectors", flush=True)
    embedded = embed(bundle, files)
    for skipped in embedded.skipped:
        print(f"  left out: {skipped.path}: {skipped.reason}")
    thoroughness = Thoroughness.quick() if args.quick else Thoroughness()
    done = evaluate(embedded, home / "logs", k=args.k, seed=args.seed, thoroughness=thoroughness)
    started = time.perf_counter()
    measured = _through_services(args, bundle, embedded.files)
    done.seconds["services"] = time.perf_counter() - started

    manifest = bundle.manifest
    known = BACKBONES.get(manifest.backbone)
    with progress("Drawing", len(done.layout.images), "images") as bar:
        page = render(
            done,
            service=measured,
            precision=args.precision,
            model=f"{known.title if known else manifest.backbone}, {manifest.dims} dimensions",
            seed=args.seed,
            machine=f"{os.cpu_count()} cores, {platform.machine()}",
            on_progress=bar.advance,
        )
    report = args.report or home / "report.html"
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(page, encoding="utf-8")
    figures = args.json or report.with_suffix(".json")
    _write_json(figures, _figures(args, done, measured, bundle))
    _print(args, measured, files)
    print(f"figures   {figures}")
    print(f"Look at the report: {report}")


def _require_packages() -> None:
    from importlib.util import find_spec

    from workbench.errors import CommandError

    # Now, and not when all has been measured.
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise CommandError(f"the package {missing[0]} is not installed: pip install 'lookalike[evaluate]'")


def _through_services(args: argparse.Namespace, bundle: Bundle, files: Sequence[ImageFile]) -> ServiceAccuracy:
    from workbench.ingest import ingest_with_progress
    from workbench.services import running

    home = args.data_dir / "evaluate"
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
        stored = [file for file in files if file.id not in failed]
        _delete_others(target, args.collection, {file.id for file in stored})
        return _search(args, target, stored)


def _delete_others(target: str, collection: str, ids: set[str]) -> None:
    """Deletes the rows of images that are not there any more: they would be neighbours of those that are."""
    from lookalike import Client
    from lookalike.security import PLAINTEXT

    with Client(target, security=PLAINTEXT) as client:
        others = [record.id for record in client.scan(collection, attributes=[]) if record.id not in ids]
        for start in range(0, len(others), _IDS_OF_A_CALL):
            client.delete(collection, ids=others[start : start + _IDS_OF_A_CALL])


def _search(args: argparse.Namespace, target: str, files: Sequence[ImageFile]) -> ServiceAccuracy:
    """Searches with progress."""
    import asyncio

    from lookalike import AsyncClient
    from lookalike.security import PLAINTEXT
    from workbench.progress import progress
    from workbench.service_accuracy import measure

    async def search() -> ServiceAccuracy:
        async with AsyncClient(target, security=PLAINTEXT) as client:
            with progress("Searching", len(files), "searches") as bar:
                return await measure(
                    client,
                    args.collection,
                    {file.id: file.label for file in files},
                    k=args.k,
                    concurrency=args.concurrency,
                    exact=args.exact,
                    on_progress=bar.advance,
                )

    return asyncio.run(search())


def _figures(args: argparse.Namespace, done: Evaluation, measured: ServiceAccuracy, bundle: Bundle) -> dict[str, Any]:
    """All figures of the report, as JSON; those of the services as they are with --target, beside the others."""
    import numpy as np

    from workbench import lesson

    embedded, names = done.embedded, done.embedded.names
    distances = done.neighbours.distances[:, : args.k - 1]
    return {
        **dataclasses.asdict(measured),
        "precision": args.precision,
        "seed": args.seed,
        "model": {
            "backbone": bundle.manifest.backbone,
            "fingerprint": bundle.manifest.fingerprint,
            "features": bundle.manifest.features,
            "dims": bundle.manifest.dims,
        },
        "classes": len(names),
        "unreadable": [{"path": str(image.path), "reason": image.reason} for image in embedded.skipped],
        "pca": [dataclasses.asdict(size) for size in done.pca],
        "pca_left_out": done.pca_left_out,
        "retrieval": [dataclasses.asdict(each) for each in done.retrieval],
        "indexes": [dataclasses.asdict(each) for each in done.indexes],
        "distance": {"median": float(np.median(distances)), "max": float(distances.max())},
        "class_accuracy": done.class_accuracy,
        "confusions": [
            {
                "class": names[each.of],
                "found": names[each.found],
                "share": each.share,
                "image": embedded.files[each.image].id,
                "neighbour": embedded.files[each.neighbour].id,
            }
            for each in done.confusions
        ],
        "near_duplicates": {
            "least_similarity": done.least_similarity,
            "count": done.duplicates.count,
            "pairs": [
                {"images": [embedded.files[first].id, embedded.files[second].id], "similarity": similarity}
                for first, second, similarity in done.duplicates.pairs
            ],
        },
        "stage_seconds": done.seconds,
        "lesson": {
            "model": lesson.MODEL,
            "accuracy_percent": lesson.ACCURACY_PERCENT,
            "full_size_percent": lesson.FULL_SIZE_PERCENT,
            "brute_force_full_us": lesson.BRUTE_FORCE_FULL_US,
            "brute_force_pca_us": lesson.BRUTE_FORCE_PCA_US,
            "annoy_us": lesson.ANNOY_US,
            "annoy_build_seconds": lesson.ANNOY_BUILD_SECONDS,
        },
    }


def _write_json(path: Path, figures: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def _neighbours(text: str) -> int:
    number = positive(text)
    if number < 2:
        raise argparse.ArgumentTypeError("the image itself is one of the neighbours: 2 is the least")
    return number
