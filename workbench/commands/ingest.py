"""`lookalike ingest`: stores images from folders, tar files, manifests and lists."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import CommandError
from workbench.options import add_ingestion, add_target

if TYPE_CHECKING:
    from workbench.checkpoint import Checkpoint
    from workbench.ingest import Failure, Ingestion, IngestReport
    from workbench.inputs.found import Input
    from workbench.shards import Shard

_SHOWN_FAILURES = 5
_INTERRUPTED = 130
# Larger batches cost the service less. Three of them are what an embedder holds of bulk work by default.
_BATCH = 128
_CONCURRENCY = 3

_DESCRIPTION = """\
Stores the images of each PATH, which is one of

  a folder                 all images in it, at any depth; ids are paths relative to it
  a tar file               .tar, .tar.gz, .tgz, .tar.bz2, .tar.xz; read as a stream; ids are the names in it
  a manifest               .csv, .jsonl or .parquet with a column `path`, relative to the manifest, or `image` (bytes;
                           base64 in JSON lines); a column `id` if it is not to be the path; all other columns, and an
                           object `attributes`, become attributes
  an image file            its id is its name
  -                        paths on standard input, one in a line; ids are the paths as they are written

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
    parser.add_argument("paths", nargs="+", metavar="PATH", help="where the images are")
    parser.add_argument("--collection", required=True, metavar="NAME", help="collection; made if it does not exist")
    parser.add_argument("--tenant", default="", metavar="NAME", help="whose images they become, of several tenants")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="note what is acknowledged in this file; where it is there already, go on and do not read that again",
    )
    parser.add_argument(
        "--failures",
        type=Path,
        metavar="FILE",
        help="write what failed, and why, to this file as it happens, as JSON lines; it is overwritten",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="find the images, read the beginning of each, and say what would be sent; takes no service",
    )
    parser.add_argument(
        "--shard",
        type=_shard,
        default="0/1",
        metavar="I/N",
        help="store the I-th of N parts alone, counted from 0; auto/N takes I from JOB_COMPLETION_INDEX, which "
        "Kubernetes sets in Indexed Jobs",
    )
    parser.add_argument(
        "--attribute",
        action="append",
        type=_attribute,
        default=[],
        metavar="KEY=VALUE",
        help="attribute of all images, the value as JSON or else text; may be repeated",
    )
    parser.add_argument(
        "--id-prefix", default="", metavar="TEXT", help="put before all ids, for folders whose ids would be the same"
    )
    parser.add_argument(
        "--class-from-folder",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="give images the attribute `class`, the name of the folder they lie in; not those of manifests "
        "(default: yes)",
    )
    parser.add_argument("-0", "--null", action="store_true", help="paths on standard input end with NUL, as by -print0")
    add_ingestion(parser, batch=_BATCH, concurrency=_CONCURRENCY)
    add_target(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from workbench.ingest import Ingestion
    from workbench.inputs.opening import open_inputs, with_more

    inputs = [
        with_more(each, id_prefix=args.id_prefix, attributes=dict(args.attribute))
        for each in open_inputs(args.paths, nul=args.null, class_from_folder=args.class_from_folder)
    ]
    with _failure_file(args.failures) as on_failure:
        ingestion = Ingestion(
            batch=args.batch,
            concurrency=args.concurrency,
            tenant=args.tenant,
            shard=args.shard,
            distinct=len(inputs) == 1 and inputs[0].distinct,
            on_failure=on_failure,
            kept_failures=_SHOWN_FAILURES,
        )
        report = ingestion.report
        code = _INTERRUPTED
        try:
            if args.dry_run:
                _look(ingestion, inputs)
            else:
                _store(args, ingestion, inputs)
            code = 1 if report.failed or report.stopped_by else 0
        except KeyboardInterrupt:
            print()
        finally:  # also before an error's message
            _print_failures(report, args.failures)
            if not args.dry_run and report.seconds:
                _print_report(report, args.checkpoint)
    return code


def _store(args: argparse.Namespace, ingestion: Ingestion, inputs: Sequence[Input]) -> None:
    """Stores the images with progress."""
    import asyncio

    from lookalike import AsyncClient
    from workbench.counting import Count
    from workbench.ingest import CALL_SECONDS
    from workbench.progress import progress

    async def run() -> None:
        async with AsyncClient(args.target, timeout=CALL_SECONDS) as client:
            collection = await client.create_collection(
                args.collection, multi_tenant=bool(args.tenant), if_not_exists=True
            )
            with ExitStack() as stack:
                if args.checkpoint:
                    made = min(version.create_time for version in collection.versions)
                    ingestion.checkpoint = stack.enter_context(_checkpoint(args, inputs, made.isoformat()))
                bar = stack.enter_context(progress("Storing", 0, "images"))
                count = Count(inputs, args.shard)

                def show(report: IngestReport) -> None:
                    known = report.all_found or count.complete
                    total = report.found if report.all_found else max(report.found, count.so_far)
                    bar.set(report.done, report.failed, total, total_known=known, done_before=report.resumed)

                found = (found for each in inputs for found in each.find())
                await ingestion.run(client, args.collection, found, on_progress=show)

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
        print(f"  {_printable(image.id)}  {json.dumps(dict(image.attributes))}  {_printable(image.source)}")
    formats = ", ".join(f"{count:,} {name}" for name, count in sorted(looked.formats.items()))
    print(
        f"{report.found:,} images found = {looked.good:,} would be sent ({looked.bytes / 1e6:,.1f} MB"
        f"{'; ' if formats else ''}{formats}) + {report.failed:,} could not be"
    )


@contextmanager
def _failure_file(path: Path | None) -> Iterator[Callable[[Failure], None]]:
    """Yields what to call with each failure."""
    if path is None:
        yield lambda failure: None
        return
    with path.open("w", encoding="utf-8", buffering=1) as file:  # each line at once

        def write(failure: Failure) -> None:
            try:
                file.write(json.dumps({"id": failure.id, "source": failure.source, "reason": failure.reason}) + "\n")
            except OSError as error:
                raise CommandError(f"{path} cannot be written: {error.strerror}") from error

        yield write


def _print_failures(report: IngestReport, file: Path | None) -> None:
    for failure in report.failures:
        print(f"  failed: {_printable(failure.id)}: {_printable(failure.reason)}")
    if report.failed > len(report.failures):
        where = f"all of them are in {file}" if file else "--failures FILE writes all of them to a file"
        print(f"  and {report.failed - len(report.failures):,} more; {where}")


def _print_report(report: IngestReport, checkpoint: Path | None) -> None:
    print(report)
    if report.stopped_by or report.done < report.found or not report.all_found:
        reason = f"stopped by {report.stopped_by}" if report.stopped_by else "interrupted"
        again = f"goes on from {checkpoint}" if checkpoint else "sends all again, of which what is stored is left alone"
        print(f"That is not all: {reason}. The same command {again}.")


def _printable(text: str) -> str:
    """Returns a text with what a terminal would not show, or would obey, escaped."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def _shard(text: str) -> Shard:
    from workbench.shards import parse_shard

    try:
        return parse_shard(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _attribute(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
