"""`lookalike embed`: images to files of rows, for `lookalike bulk-import`."""

from __future__ import annotations

import argparse
from typing import Any

from workbench.image_options import PATHS, SHOWN_FAILURES, add_images, failure_file, open_images, print_failures
from workbench.options import add_ingestion, positive

_INTERRUPTED = 130

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
    from workbench.ingest import CALL_SECONDS, Ingestion, store
    from workbench.row_files import Folder, RowWriter, Summary

    inputs = open_images(args)
    folder = Folder(args.out)

    async def run(ingestion: Ingestion) -> None:
        async with AsyncEmbedderClient(args.embedder, timeout=CALL_SECONDS) as embedder:
            origin = await origin_of(embedder, args.tenant)
            ingestion.checkpoint, before, files = await asyncio.to_thread(written, folder, args.shard, origin)
            with RowWriter(folder, args.shard, origin, first=files, rows_per_file=args.rows_per_file) as writer:
                await store(ingestion, EmbeddedRows(embedder, writer, origin, args.tenant), inputs)
            report = ingestion.report
            if not report.stopped_by:
                folder.finish(args.shard, Summary(report.found, before + writer.rows, report.failed))

    with failure_file(args.failures) as on_failure:
        ingestion = Ingestion(
            batch=args.batch,
            concurrency=args.concurrency,
            shard=args.shard,
            distinct=len(inputs) == 1 and inputs[0].distinct,
            on_failure=on_failure,
            kept_failures=SHOWN_FAILURES,
        )
        report = ingestion.report
        code = _INTERRUPTED
        try:
            asyncio.run(run(ingestion))
            code = 1 if report.failed or report.stopped_by else 0
        except KeyboardInterrupt:
            print()
        finally:
            print_failures(report, args.failures)
            if report.seconds:
                print(report)
    if code == _INTERRUPTED or report.stopped_by:
        print("That is not all: the same command goes on where this one ended.")
    return code
