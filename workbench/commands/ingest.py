"""`lookalike ingest`: stores a folder of images."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.options import add_ingestion, add_target

if TYPE_CHECKING:
    from workbench.ingest import Failure

_SHOWN_FAILURES = 5


def register(subparsers: Any) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "ingest",
        help="store a folder of images",
        description="Stores all images of a folder. Ids are paths relative to the folder, so that running it again "
        "changes only what has changed; the attribute `class` is the name of the folder an image lies in. "
        "Exit code 1 if any image failed.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder with images, at any depth")
    parser.add_argument("--collection", required=True, metavar="NAME", help="collection; made if it does not exist")
    parser.add_argument("--failures", type=Path, metavar="FILE", help="write what failed to this file, as JSON lines")
    add_ingestion(parser)
    add_target(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from workbench.images import find_images
    from workbench.ingest import ingest_with_progress

    files = find_images(args.folder)
    report = ingest_with_progress(args.target, args.collection, files, batch=args.batch, concurrency=args.concurrency)
    if args.failures:
        args.failures.write_text("".join(_as_json(failure) for failure in report.failures), encoding="utf-8")
    for failure in report.failures[:_SHOWN_FAILURES]:
        print(f"  failed: {failure.id}: {failure.reason}")
    if len(report.failures) > _SHOWN_FAILURES:
        print(f"  and {len(report.failures) - _SHOWN_FAILURES} more; --failures FILE writes all of them to a file")
    print(report)
    return 1 if report.failures else 0


def _as_json(failure: Failure) -> str:
    return json.dumps({"id": failure.id, "reason": failure.reason}) + "\n"
