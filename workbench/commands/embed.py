"""`lookalike embed`: images to files of rows, for `lookalike bulk-import`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from workbench.image_options import PATHS, add_images, ingesting
from workbench.options import add_ingestion, add_security, positive, security

if TYPE_CHECKING:
    from workbench.ingest import Ingestion
    from workbench.inputs.found import Input

_DESCRIPTION = f"""\
Embeds the images of each PATH and writes them to Parquet files that Milvus can import, for the first load of a
collection of millions; `lookalike bulk-import` makes the collection of them. PATH is one of

{PATHS}
The command can be stopped at any moment and started again: images that are in a whole file are not read again.
"""
_EPILOG = """\
Exit code 0 if all images are in files, 1 if any failed, 130 after Ctrl-C.
"""


def register(subparsers: Any) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "embed",
        help="embed images into files, for bulk-import",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where files go: a path, or s3://BUCKET/PREFIX")
    parser.add_argument(
        "--embedder", default="127.0.0.1:50051", metavar="HOST:PORT", help="the embedder (default: %(default)s)"
    )
    add_security(parser)
    parser.add_argument(
        "--rows-per-file",
        type=positive,
        default=50_000,
        metavar="N",
        help="rows of a file; so many at most are embedded again after a crash (default: %(default)s)",
    )
    add_images(parser)
    add_ingestion(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    import asyncio

    from lookalike import AsyncEmbedderClient
    from workbench.bulk_embed import EmbeddedRows, origin_of, written
    from workbench.ingest import CALL_SECONDS, store
    from workbench.row_files import Folder, RowWriter, Summary

    folder = Folder(args.out)

    async def embed(ingestion: Ingestion, inputs: Sequence[Input]) -> None:
        async with AsyncEmbedderClient(
            args.embedder, timeout=CALL_SECONDS, retry=False, security=security(args)
        ) as embedder:
            origin = await origin_of(embedder, args.tenant)
            ingestion.checkpoint, before, files = await asyncio.to_thread(written, folder, args.shard, origin)
            with RowWriter(folder, args.shard, origin, first=files, rows_per_file=args.rows_per_file) as writer:
                await store(ingestion, EmbeddedRows(embedder, writer, origin, args.tenant), inputs)
            report = ingestion.report
            if not report.stopped_by:
                folder.finish(args.shard, Summary(report.found, before + writer.rows, report.failed))

    return ingesting(
        args, lambda ingestion, inputs: asyncio.run(embed(ingestion, inputs)), again="goes on where this one ended"
    )
