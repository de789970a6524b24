"""Arguments and output of the commands that read images, from folders, tar files, manifests and lists."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import CommandError
from workbench.options import add_tenant

if TYPE_CHECKING:
    from workbench.ingest import Failure, Ingestion, IngestReport
    from workbench.inputs.found import Input
    from workbench.shards import Shard

_SHOWN_FAILURES = 5
_INTERRUPTED = 130
PATHS = """\
  a folder                 all images in it, at any depth; ids are paths relative to it
  a tar file               .tar, .tar.gz, .tgz, .tar.bz2, .tar.xz; read as a stream; ids are the names in it
  a manifest               .csv, .jsonl or .parquet with a column `path`, relative to the manifest, or `image` (bytes;
                           base64 in JSON lines); a column `id` if it is not to be the path; all other columns, and an
                           object `attributes`, become attributes
  an image file            its id is its name
  -                        paths on standard input, one in a line; ids are the paths as they are written
"""


def add_images(parser: argparse.ArgumentParser) -> None:
    """Adds which images are read, and what becomes of them."""
    parser.add_argument("paths", nargs="+", metavar="PATH", help="where the images are")
    add_tenant(parser, "whose images they become")
    parser.add_argument(
        "--failures",
        type=Path,
        metavar="FILE",
        help="write what failed, and why, to this file as it happens, as JSON lines; it is overwritten",
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


def _open_images(args: argparse.Namespace) -> list[Input]:
    """Opens the inputs. Raises CommandError."""
    from workbench.inputs.opening import open_inputs, with_more

    return [
        with_more(each, id_prefix=args.id_prefix, attributes=dict(args.attribute))
        for each in open_inputs(args.paths, nul=args.null, class_from_folder=args.class_from_folder)
    ]


def ingesting(args: argparse.Namespace, work: Callable[[Ingestion, Sequence[Input]], None], *, again: str) -> int:
    """Opens the inputs, does the work, and says what became of the images; returns the exit code.

    Args:
        again: what the same command does if this one was stopped.
    """
    from workbench.ingest import Ingestion

    inputs = _open_images(args)
    with _failure_file(args.failures) as on_failure:
        ingestion = Ingestion(
            batch=args.batch,
            concurrency=args.concurrency,
            shard=args.shard,
            distinct=len(inputs) == 1 and inputs[0].distinct,
            on_failure=on_failure,
            kept_failures=_SHOWN_FAILURES,
        )
        report = ingestion.report
        code = _INTERRUPTED
        try:
            work(ingestion, inputs)
            code = 1 if report.failed or report.stopped_by else 0
        except KeyboardInterrupt:
            print()
        finally:  # also before an error's message
            _print_failures(report, args.failures)
            if report.seconds:
                _print_report(report, again)
    return code


@contextmanager
def _failure_file(path: Path | None) -> Iterator[Callable[[Failure], None]]:
    """Yields what to call with each failure."""
    if path is None:
        yield lambda failure: None
        return
    file = path.open("w", encoding="utf-8", buffering=1)  # each line at once

    def write(failure: Failure) -> None:
        try:
            file.write(json.dumps({"id": failure.id, "source": failure.source, "reason": failure.reason}) + "\n")
        except OSError as error:
            raise CommandError(f"{path} cannot be written: {error.strerror}") from error

    try:
        yield write
    finally:
        with suppress(OSError):  # it tries again to write the line of that error
            file.close()


def _print_failures(report: IngestReport, file: Path | None) -> None:
    for failure in report.failures:
        print(f"  failed: {printable(failure.id)}: {printable(failure.reason)}")
    if report.failed > len(report.failures):
        where = f"all of them are in {file}" if file else "--failures FILE writes all of them to a file"
        print(f"  and {report.failed - len(report.failures):,} more; {where}")


def _print_report(report: IngestReport, again: str) -> None:
    print(report)
    if report.stopped_by or report.done < report.found or not report.all_found:
        reason = f"stopped by {report.stopped_by}" if report.stopped_by else "interrupted"
        print(f"That is not all: {reason}. The same command {again}.")


def printable(text: str) -> str:
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
