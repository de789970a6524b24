"""`lookalike serve`: both services on this machine, until Ctrl-C."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from workbench.options import DEFAULT_TARGET, add_data_dir, add_precision, program


def register(subparsers: Any) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "serve",
        help="run both services on this machine",
        description="Runs the embedder and the search service, with Milvus Lite, until Ctrl-C or SIGTERM. Without "
        "--bundle it serves the model in the data directory; if there is none, it takes the quick start's, or builds "
        "one from demo images.",
    )
    parser.add_argument("--bundle", type=Path, metavar="DIR", help="model bundle to serve")
    for flag, default, what in (
        ("--address", DEFAULT_TARGET, "the search service"),
        ("--metrics-address", "127.0.0.1:9102", "the search service's metrics"),
        ("--embedder-address", "127.0.0.1:50051", "the embedder"),
        ("--embedder-metrics-address", "127.0.0.1:9101", "the embedder's metrics"),
    ):
        help = f"where {what} can be reached; port 0 takes any free one (default: %(default)s)"
        parser.add_argument(flag, default=default, metavar="HOST:PORT", help=help)
    add_precision(parser)
    add_data_dir(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from workbench.services import Services, running

    bundle = args.bundle or _bundle(args.data_dir)
    print("Starting the services", flush=True)
    services: Services | None = None
    try:
        with running(
            bundle,
            args.data_dir / "milvus.db",
            args.data_dir / "logs",
            precision=args.precision,
            embedder_address=args.embedder_address,
            embedder_metrics=args.embedder_metrics_address,
            search_address=args.address,
            search_metrics=args.metrics_address,
        ) as services:
            print(_welcome(services, bundle, args.data_dir), flush=True)
            services.wait()
    except KeyboardInterrupt:
        if services is None:  # interrupted before there was anything to serve
            raise
    print("\nThe services are stopped.")
    return 0


def _bundle(data_dir: Path) -> Path:
    """Returns the data directory's bundle, and makes it if there is none.

    Once there, it stays: the vectors of every collection in the database come from it.
    """
    from embedder_service.model.bundle import is_bundle
    from workbench.bundles import ensure_bundle
    from workbench.demo_images import make_demo_images
    from workbench.images import find_images

    bundle, quick = data_dir / "bundle", data_dir / "quickstart" / "bundle"
    if is_bundle(bundle):
        return bundle
    if is_bundle(quick):
        print(f"Taking the model of the quick start: copying {quick} to {bundle}")
        shutil.copytree(quick, bundle)
        return bundle
    print("There is no model yet: building one from demo images", flush=True)
    return ensure_bundle(bundle, find_images(make_demo_images(data_dir / "demo").copies)).path


def _welcome(services: Any, bundle: Path, data_dir: Path) -> str:
    search, embedder = services.search.addresses, services.embedder.addresses
    name = program()
    target = "" if search.grpc == DEFAULT_TARGET else f" --target {search.grpc}"
    return f"""Lookalike is running. Stop it with Ctrl-C.

  search service  {search.grpc}   metrics: http://{search.metrics}/metrics
  embedder        {embedder.grpc}   metrics: http://{embedder.metrics}/metrics
  model           {bundle}
  logs            {data_dir / "logs"}

In another terminal:
  {name} ingest DIR --collection photos{target}
  {name} search IMAGE --collection photos{target}

In Python:
  from lookalike import Client
  with Client("{search.grpc}") as client:
      print(client.list_collections())"""
