"""`lookalike reindex`: moves a collection to another model or index while it serves."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.image_options import printable
from workbench.options import add_data_dir, add_index, add_ingestion, add_target, positive, program, security

if TYPE_CHECKING:
    from lookalike import AsyncClient, Collection, CollectionVersion, IndexSpec, VectorSpace
    from workbench.reindex import Failure, Filled, Filler

# A batch waits for those before it; an exact search of the check goes through all rows.
_CALL_SECONDS = 600.0
_SHOWN_FAILURES = 5


def register(subparsers: Any) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "reindex",
        help="move a collection to another model or index while it serves",
        description="Fills a new version of a collection from the one that serves, checks it, and lets it serve. "
        "Searches and writes go on meanwhile. For another model the search service needs the embedders of both, and "
        "each image is read again from its row's source; for another index of the same model the vectors are copied. "
        "It can be stopped at any moment: started again with the same arguments, it goes on. Exit code 0 if all of it "
        "is done.",
    )
    parser.add_argument("--collection", required=True, metavar="NAME", help="the collection")
    parser.add_argument("--bundle", type=Path, metavar="DIR", help="bundle of the new model (default: the model stays)")
    add_index(parser, "that of the serving version")
    parser.add_argument("--no-switch", action="store_true", help="fill and check the new version, and leave it at that")
    parser.add_argument(
        "--allow-missing",
        type=_count,
        default=0,
        metavar="N",
        help="rows that may be missing in the new version, because they cannot be copied (default: %(default)s)",
    )
    parser.add_argument(
        "--min-recall",
        type=_part,
        default=0.95,
        metavar="R",
        help="part of the 10 nearest rows that the new index has to find (default: %(default)s)",
    )
    parser.add_argument(
        "--sample", type=positive, default=200, metavar="N", help="rows to check that with (default: %(default)s)"
    )
    parser.add_argument(
        "--source-folder",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="read images from files in this folder alone; may be repeated (default: from any file)",
    )
    parser.add_argument(
        "--source-server",
        type=_server,
        action="append",
        default=[],
        metavar="ADDRESS",
        help="web server to read images from, as https://HOST or http://HOST:PORT; may be repeated (default: none)",
    )
    parser.add_argument(
        "--index-patience",
        type=positive,
        default=600,
        metavar="SECONDS",
        help="give up when the index of the new version gets no further for so long (default: %(default)s)",
    )
    parser.add_argument(
        "--source-timeout",
        type=positive,
        default=20,
        metavar="SECONDS",
        help="what a web server may take to give an image (default: %(default)s)",
    )
    parser.add_argument(
        "--failures",
        type=Path,
        metavar="FILE",
        help="write what failed to this file, as JSON lines (default: reindex-NAME.failures.jsonl in --data-dir)",
    )
    add_data_dir(parser)
    add_ingestion(parser)
    add_target(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    import asyncio

    return asyncio.run(_run(args))


async def _run(args: argparse.Namespace) -> int:
    from lookalike import AsyncClient, VersionState
    from workbench import retries
    from workbench.progress import progress
    from workbench.reindex import Filler
    from workbench.sources import Sources

    async with AsyncClient(args.target, timeout=_CALL_SECONDS, retry=False, security=security(args)) as client:
        described = await retries.call(lambda: client.describe_collection(args.collection))
        collection = described.collection
        version = await _version(args, client, collection)
        if version.state is VersionState.SERVING:
            print(f"version {version.version} of collection {collection.name} has this model and index, and serves")
            return 0
        filler = Filler(
            client,
            collection,
            version,
            described.limits,
            batch=args.batch,
            concurrency=args.concurrency,
            sources=Sources(tuple(args.source_folder), frozenset(args.source_server), args.source_timeout),
            show=lambda what, rows: progress(what, rows, "rows"),
        )
        return await _fill(args, client, filler, collection, version)


async def _version(args: argparse.Namespace, client: AsyncClient, collection: Collection) -> CollectionVersion:
    """Returns the version to fill, which is made if there is none; or the serving one if that is what is wanted."""
    from workbench.errors import CommandError
    from workbench.reindex import find_version

    serving = collection.serving
    if serving is None:
        raise CommandError(f"no version of collection {collection.name} serves: delete it and create it again")
    space, index = _space(args, serving), _index(args, serving)
    version = find_version(collection, space, index)
    if version is not None:
        if version is not serving:
            print(f"Going on with version {version.version} of collection {collection.name}", flush=True)
        return version
    # An image cannot be stored while a version without an embedder is being filled: better not to make one.
    made = await client.create_collection_version(
        collection.name, space=space, index=index, require_embedder=space != serving.space
    )
    print(f"Made version {made.version} of collection {collection.name}", flush=True)
    return made


def _space(args: argparse.Namespace, serving: CollectionVersion) -> VectorSpace:
    if args.bundle is None:
        return serving.space
    from embedder_service.model.bundle import load
    from lookalike import VectorSpace

    manifest = load(args.bundle).manifest
    return VectorSpace(manifest.fingerprint, manifest.dims)


def _index(args: argparse.Namespace, serving: CollectionVersion) -> IndexSpec:
    from lookalike import IndexSpec, IndexType

    kind = IndexType[args.index.upper()] if args.index else serving.index.type
    if kind is not serving.index.type:
        return IndexSpec(kind, args.m or 0, args.ef_construction or 0)
    return IndexSpec(kind, args.m or serving.index.m, args.ef_construction or serving.index.ef_construction)


async def _fill(
    args: argparse.Namespace, client: AsyncClient, filler: Filler, collection: Collection, version: CollectionVersion
) -> int:
    """Fills, checks, switches, and says what came of it."""
    from lookalike import LookalikeError
    from workbench import retries
    from workbench.errors import CommandError

    try:
        filled = await filler.fill(sample=args.sample)
    except LookalikeError as error:
        raise CommandError(
            f"stopped by {error}. What has been copied stays: start the same command again to go on"
        ) from error
    for number, done in enumerate(filled.passes, 1):
        print(f"Pass {number}: {done}")
    failures = args.failures or args.data_dir / f"reindex-{collection.name}.failures.jsonl"
    _report(filled, failures)
    number, serving = version.version, collection.serving_version
    if len(filled.failures) > args.allow_missing:
        print(
            f"Not switched: version {number} lacks {len(filled.failures):,} rows. Put them right and start the same "
            f"command again, or switch without them: --allow-missing {len(filled.failures)}"
        )
        return 1
    await filler.build_index(filled.copied + filled.already_there, patience=args.index_patience)
    recall, searched = await filler.recall(filled.sample)
    print(f"Searching version {number} by {searched:,} rows: recall@10 is {recall:.3f} of an exact search's")
    if recall < args.min_recall:
        print(
            f"Not switched: that is less than {args.min_recall}. A larger --m and --ef-construction find more; the "
            f"version is deleted by: {_command(args, 'delete', collection.name, '--version', number)}"
        )
        return 1
    if args.no_switch:
        print(f"Version {number} can serve: {_command(args, 'switch', collection.name, number)}")
        return 0
    await retries.call(lambda: client.switch_collection_version(collection.name, number))
    print(f"Version {number} serves; version {serving} is kept and gets all writes that it can")
    print(f"  the way back:           {_command(args, 'switch', collection.name, serving)}")
    print(f"  when it is not needed:  {_command(args, 'delete', collection.name, '--version', serving)}")
    return 0


def _report(filled: Filled, path: Path) -> None:
    """Writes what failed to a file, and shows some of it."""
    if filled.failures:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(_as_json(failure) for failure in filled.failures), encoding="utf-8")
        for failure in filled.failures[:_SHOWN_FAILURES]:
            print(printable(f"  failed: {failure.id} ({failure.source}): {failure.reason}"))
        print(f"  all of them: {path}")
    print(filled)


def _as_json(failure: Failure) -> str:
    from dataclasses import asdict

    return json.dumps(asdict(failure)) + "\n"


def _command(args: argparse.Namespace, action: str, *arguments: object) -> str:
    return " ".join(map(str, (program(), "collections", action, *arguments, "--target", args.target)))


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def _server(text: str) -> str:
    from workbench.sources import server

    try:
        address = server(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if text.count("/") > 2:
        raise argparse.ArgumentTypeError(f"{text!r} is more than a server: give {address}")
    return address


def _part(text: str) -> float:
    try:
        part = float(text)
    except ValueError:
        part = -1.0
    if not 0 <= part <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return part
