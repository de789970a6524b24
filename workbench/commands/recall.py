"""`lookalike recall`: compares the index of a collection with the exact answer."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.options import add_target, positive, security

if TYPE_CHECKING:
    from lookalike import Client, CollectionVersion
    from workbench.recall import Comparison, Source

_EFS = [32, 64, 128, 256]
_CALL_SECONDS = 600.0  # an exact search reads all vectors


def register(subparsers: Any) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "recall",
        help="measure how much of the exact answer the index finds",
        description="Searches by a sample of the stored rows, or by images, once exactly and once with each ef, and "
        "says which share of the most similar rows the index finds (recall@k), and how long both take. Nothing should "
        "be written to the collection meanwhile.",
    )
    parser.add_argument("--collection", required=True, metavar="NAME", help="collection to look at")
    parser.add_argument(
        "--queries", type=positive, default=200, metavar="N", help="searches to compare (default: %(default)s)"
    )
    parser.add_argument("--top-k", type=positive, default=10, metavar="K", help="hits compared (default: %(default)s)")
    parser.add_argument(
        "--ef",
        type=_breadths,
        metavar="N,N,...",
        help="values to try beside the service's own (default: 32,64,128,256)",
    )
    parser.add_argument("--filter", default="", metavar="EXPR", help="which rows may be hits, as with search")
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="search by images of this folder, not by stored rows"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another one is another sample (default: 0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file")
    parser.add_argument(
        "--min-recall",
        type=_share,
        metavar="X",
        help="end with exit code 1 if the mean recall@k with the service's own ef, or with one that --ef names, is "
        "below X, 0 to 1",
    )
    add_target(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from lookalike import Client, IndexType
    from workbench.errors import CommandError
    from workbench.progress import progress
    from workbench.recall import compare, steps

    with Client(args.target, timeout=_CALL_SECONDS, security=security(args)) as client:
        description = client.describe_collection(args.collection)
        serving = description.collection.serving
        if serving is None:
            raise CommandError(f"no version of collection {args.collection!r} serves: switch to one first")
        if serving.index.type is IndexType.FLAT:
            print(f"The index of {args.collection} is FLAT: it compares with every row, and its answers are exact.")
            _write(args, {"collection": args.collection, "version": serving.version, "exact": True})
            return 0
        efs = args.ef or _EFS
        sources = _sources(args, client, serving)
        if not sources:
            raise CommandError(f"collection {args.collection!r} has no rows to search by: store some first")
        with progress("Searching", steps(len(sources), efs), "searches") as bar:
            comparison = compare(
                client,
                args.collection,
                sources,
                k=args.top_k,
                efs=efs,
                filter=args.filter,
                limits=description.limits,
                on_progress=bar.advance,
            )
    _print(comparison)
    _write(args, {"exact": False, **dataclasses.asdict(comparison)})
    recall = min(each.recall for each in comparison.measured if each.default or args.ef)
    if args.min_recall is not None and recall < args.min_recall:
        print(f"The recall of {recall:.4f} is below {args.min_recall:g}: use a larger ef, or build the index anew.")
        return 1
    return 0


def _sources(args: argparse.Namespace, client: Client, serving: CollectionVersion) -> list[Source]:
    from workbench.images import find_images
    from workbench.progress import progress
    from workbench.recall import sample

    if args.images:
        files = {file.id: file.path for file in find_images(args.images)}
        return [files[name] for name in sample(files, args.queries, args.seed)]

    with progress("Choosing queries", serving.row_count, "rows") as bar:
        ids = []
        for record in client.scan(args.collection, attributes=[]):
            ids.append(record.id)
            bar.advance()
    return [*sample(ids, args.queries, args.seed)]


def _print(comparison: Comparison) -> None:
    from workbench.tables import table

    rows = [
        (
            f"{each.ef} (default)" if each.default else str(each.ef),
            f"{each.recall:.4f}",
            f"{each.worst:.4f}",
            *(f"{milliseconds:.1f}" for milliseconds in each.latency_ms.values()),
        )
        for each in comparison.measured
    ]
    rows.append(("exact", "1", "1", *(f"{ms:.1f}" for ms in comparison.exact_latency_ms.values())))
    print(table(("ef", f"recall@{comparison.k}", "worst 1 %", "p50 ms", "p95 ms"), rows))
    queries = comparison.measured[0].queries
    print(f"{queries:,} queries; an exact search is by up to {comparison.batch} of them at once.")
    if comparison.failed:
        print(f"{comparison.failed:,} more could not be searched by.")


def _write(args: argparse.Namespace, figures: dict[str, Any]) -> None:
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def _breadths(text: str) -> list[int]:
    return [positive(part.strip()) for part in text.split(",")]


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return share
