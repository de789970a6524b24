"""`lookalike bulk-import`: makes a collection of files of rows, by Milvus' bulk import."""

from __future__ import annotations

import argparse
from typing import Any

from workbench.options import add_index, positive

_DESCRIPTION = """\
Makes a collection of the files that `lookalike embed` wrote: Milvus reads them itself, and when all rows are stored and
indexed, the collection is there. Until then nobody sees it, and a run that is stopped has changed nothing.

The files must lie in the storage of Milvus: the bucket that it keeps its data in, or the disk of one that runs with
local storage. FOLDER names them for this command, --files-at for Milvus. Milvus is reached directly, with the settings
of the search service: --milvus-uri, or LOOKALIKE_SEARCH_MILVUS_URI, _TOKEN_FILE, _CA and the others.
"""


def register(subparsers: Any) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "bulk-import",
        help="make a collection of embedded images at once, for millions",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", metavar="FOLDER", help="folder of row files: a path, or s3://BUCKET/PREFIX")
    parser.add_argument("--collection", required=True, metavar="NAME", help="collection to make; it must not exist yet")
    parser.add_argument("--milvus-uri", metavar="URI", help="the http(s)://HOST:PORT of the Milvus server")
    parser.add_argument(
        "--files-at",
        metavar="PATH",
        help="what Milvus calls the folder (default: the path in the bucket, or the absolute path)",
    )
    parser.add_argument(
        "--patience",
        type=positive,
        default=600,
        metavar="SECONDS",
        help="give up when Milvus gets no further for so long (default: %(default)s)",
    )
    add_index(parser, "hnsw")
    parser.set_defaults(run=run, index="hnsw")


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    import asyncio
    import time

    from search_service.main import store_of
    from search_service.records import IndexSpec, IndexType
    from search_service.settings import PREFIX, SearchSettings
    from service_kit import settings
    from workbench import bulk_import
    from workbench.progress import stages
    from workbench.row_files import Folder

    flags = ["--milvus-uri", args.milvus_uri] if args.milvus_uri else []
    store = store_of(settings.load(SearchSettings, prefix=PREFIX, argv=flags))
    folder = Folder(args.folder)
    load = bulk_import.check(folder)
    types: dict[str, IndexType] = {"flat": "FLAT", "hnsw": "HNSW", "hnsw_sq8": "HNSW_SQ8"}
    given = {"m": args.m, "ef_construction": args.ef_construction}
    index = IndexSpec(types[args.index], **{name: value for name, value in given.items() if value})
    started = time.monotonic()

    async def run() -> None:
        async with store:
            with stages() as show:
                await bulk_import.load(
                    store,
                    load,
                    args.collection,
                    index,
                    files_at=args.files_at or folder.in_storage,
                    patience=args.patience,
                    show=show,
                )

    asyncio.run(run())
    seconds = time.monotonic() - started
    print(
        f"{load.rows:,} rows in collection {args.collection!r}, in {seconds:.1f} s ({load.rows / seconds:,.0f} rows/s)"
    )
    return 0
