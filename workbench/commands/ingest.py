"""`lookalike ingest`: stores images from folders, tar files, manifests and lists."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.image_options import PATHS, add_images, ingesting, printable
from workbench.options import add_ingestion, add_target, security

if TYPE_CHECKING:
    from workbench.checkpoint import Checkpoint
    from workbench.ingest import Ingestion
    from workbench.inputs.found import Input

# Larger batches cost the service less. Three of them are what an embedder holds of bulk work by default.
_BATCH = 128
_CONCURRENCY = 3

_DESCRIPTION = f"""\
Stores the images of each PATH, which is one of

{PATHS}
Images that are stored already with the same bytes, attributes and source are left alone, so the command can be
repeated. It adapts to what the service takes, and waits up to five minutes for one that is away.
"""
_EPILOG = """\
At the end, found = stored + unchanged + failed. Exit code 0 if all of that is stored, 1 if anything failed, 130 after
Ctrl-C.
"""


def register(subparsers: Any) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "ingest",
        help="store images: of folders, tar files, manifests",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--collection", required=True, metavar="NAME", help="collection; made if it does not exist")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="note what is acknowledged in this file; where it is there already, go on and do not read that again",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="find the images, read the beginning of each, and say what would be sent; takes no service",
    )
    add_images(parser)
    add_ingestion(parser, batch=_BATCH, concurrency=_CONCURRENCY)
    add_target(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    goes_on = f"goes on from {args.checkpoint}"
    again = goes_on if args.checkpoint else "sends all again, of which what is stored is left alone"

    def work(ingestion: Ingestion, inputs: Sequence[Input]) -> None:
        if args.dry_run:
            _look(ingestion, inputs)
        else:
            _store(args, ingestion, inputs)

    return ingesting(args, work, again=again)


def _store(args: argparse.Namespace, ingestion: Ingestion, inputs: Sequence[Input]) -> None:
    """Stores the images with progress."""
    import asyncio

    from lookalike import AsyncClient
    from workbench.destinations import StoredCollection
    from workbench.ingest import CALL_SECONDS, store

    async def run() -> None:
        async with AsyncClient(args.target, timeout=CALL_SECONDS, retry=False, security=security(args)) as client:
            collection = await client.create_collection(
                args.collection, multi_tenant=bool(args.tenant), if_not_exists=True
            )
            with ExitStack() as stack:
                if args.checkpoint:
                    made = min(version.create_time for version in collection.versions)
                    ingestion.checkpoint = stack.enter_context(_checkpoint(args, inputs, made.isoformat()))
                await store(ingestion, StoredCollection(client, args.collection, args.tenant), inputs)

    asyncio.run(run())


def _checkpoint(args: argparse.Namespace, inputs: Sequence[Input], made: str) -> Checkpoint:
    from workbench.checkpoint import Checkpoint

    return Checkpoint(
        args.checkpoint,
        {
            "target": args.target,
            "collection": args.collection,
            "tenant": args.tenant,
            "inputs": [each.name for each in inputs],
            "shard": str(args.shard),
            "id_prefix": args.id_prefix,
            "collection_made": made,
        },
    )


def _look(ingestion: Ingestion, inputs: Sequence[Input]) -> None:
    """Finds the images and says what would be sent."""
    from workbench.dry_run import DryRun
    from workbench.progress import progress

    looked = DryRun()
    report = ingestion.report
    with progress("Looking", 0, "images") as bar:

        def found() -> Iterator[Any]:
            for image in ingestion.select(found for each in inputs for found in each.find()):
                yield image
                bar.set(report.found, report.failed, report.found, total_known=report.all_found)

        looked.look(found(), ingestion.fail)
        bar.set(report.found, report.failed, report.found)
    for image in looked.shown:
        print(f"  {printable(image.id)}  {json.dumps(dict(image.attributes))}  {printable(image.source)}")
    formats = ", ".join(f"{count:,} {name}" for name, count in sorted(looked.formats.items()))
    print(
        f"{report.found:,} images found = {looked.good:,} would be sent ({looked.bytes / 1e6:,.1f} MB"
        f"{'; ' if formats else ''}{formats}) + {report.failed:,} could not be"
    )
