"""`lookalike quickstart`: from nothing to search results, in one command."""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.options import add_data_dir, add_model, add_precision, positive, program

if TYPE_CHECKING:
    from collections.abc import Sequence

    from workbench.report import QueryResult

_COLLECTION = "quickstart"
_TOP_K = 10
_SHOWN = 5
_SHARE_RIGHT = 0.9


def register(subparsers: Any) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "quickstart",
        help="see it work: build a model, start the services, store images, search",
        description="Builds a model, starts both services on this machine, stores images through them, searches, and "
        "writes a page with the results. Without --images it uses edited copies of the photographs that come with "
        "scikit-image, and ends with exit code 1 unless at least 9 of 10 photographs find only their own copies.",
    )
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder with images of your own to use instead")
    parser.add_argument(
        "--queries", type=positive, default=10, metavar="N", help="images to search by (default: %(default)s)"
    )
    add_model(parser)
    add_precision(parser)
    add_data_dir(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from workbench.bundles import ensure_bundle
    from workbench.ingest import ingest_with_progress
    from workbench.quickstart import choose_images, require_stored, search_all
    from workbench.report import write_report
    from workbench.services import running

    started = time.monotonic()
    home = args.data_dir / "quickstart"

    print("1/5 Preparing images", flush=True)
    chosen = choose_images(args.images, args.data_dir, args.queries)
    print(f"  {len(chosen.files):,} images to store, {len(chosen.queries)} to search by.")

    print("2/5 Building the model, which turns an image into a vector", flush=True)
    bundle = ensure_bundle(home / "bundle", chosen.files, backbone=args.backbone, weights=args.weights, dims=args.dims)
    model = f"{bundle.manifest.backbone}, {bundle.manifest.dims} dimensions"
    print(f"  {model}, in {bundle.path}.")

    print("3/5 Starting the services: the embedder runs the model, the search service keeps the vectors", flush=True)
    database = _fresh(home / "milvus.db")
    with running(bundle.path, database, home / "logs", precision=args.precision) as services:
        target = services.search.addresses.grpc
        print(f"  The embedder listens on {services.embedder.addresses.grpc}, the search service on {target}.")

        print("4/5 Storing the images", flush=True)
        stored = ingest_with_progress(target, _COLLECTION, chosen.files)
        print(f"  {stored}.")
        for failure in stored.failures[:_SHOWN]:
            print(f"  failed: {failure.id}: {failure.reason}")
        require_stored(stored.found, [failure.reason for failure in stored.failures])

        print("5/5 Searching for the images most similar to each query", flush=True)
        failed = {failure.id for failure in stored.failures}
        queries = [query for query in chosen.queries if query.stored_id not in failed]
        results = search_all(target, _COLLECTION, queries, top_k=_TOP_K, shown=_SHOWN)

    report = home / "report.html"
    write_report(
        report,
        title="Lookalike: what was found",
        lead="Each query image with the most similar stored images, the best first. A similarity of 1, and a distance "
        "of 0, mean the same vector.",
        facts={"stored images": f"{stored.found - len(failed):,}", "model": model, "queries": str(len(results))},
        results=results,
    )
    code = 0 if args.images else _judge(results)
    print(f"  The services are stopped. Look at the pictures: {report}")
    print(f"Done in {time.monotonic() - started:.0f} s. {_next()}")
    return code


def _judge(results: Sequence[QueryResult]) -> int:
    """Says how well the copies of the demo photographs were found, and returns the exit code."""
    from workbench.quickstart import count_right

    right = count_right(results, _SHOWN)
    print(f"  For {right} of {len(results)} queries the first {_SHOWN} hits are all copies of that photograph.")
    return 0 if right >= _SHARE_RIGHT * len(results) else 1


def _fresh(database: Path) -> Path:
    """Removes what an earlier run has stored."""
    if database.is_dir():
        shutil.rmtree(database)
    else:
        database.unlink(missing_ok=True)
    return database


def _next() -> str:
    name = program()
    return f"""What to do next:
  {name} quickstart --images DIR             the same with images of your own
  {name} serve                               keep both services running
  {name} ingest DIR --collection photos      store a folder of images, in another terminal
  {name} search IMAGE --collection photos    find what looks like an image"""
