"""Images listed in tables: CSV, JSON lines, Parquet.

A row has a `path`, relative to the folder of the table, or the image's bytes in `image`: binary in Parquet, base64 in
JSON lines. Its `id` is the path without one, or the hash of those bytes. All other columns are attributes, as are the
members of an object `attributes`. CSV has no types: its columns are text, but for `attributes`, which is JSON.
"""

from __future__ import annotations

import base64
import csv
import datetime
import decimal
import hashlib
import json
import os
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from lookalike.types import Attributes
from workbench.errors import CommandError
from workbench.inputs.found import Found, Input, Unreadable, read_file, unreadable

_RESERVED = ("id", "path", "image", "attributes")
# An image of 16 MB in base64 has 22 MB.
_MAX_LINE_BYTES = 64 << 20
_TEXT = {"encoding": "utf-8-sig", "errors": "surrogateescape", "newline": ""}
# Those with images take memory: few at a time.
_PARQUET_ROWS = 1024
_PARQUET_IMAGES = 4

# A row: its number, and its columns or what is wrong with it.
Rows = Generator[tuple[int, Mapping[str, Any] | Unreadable]]


def manifest(path: Path) -> Input:
    """Returns the images of a table.

    Raises:
        CommandError: it cannot be read, or has neither a column `path` nor one `image`.
    """
    path = path.resolve()
    rows = _KINDS[path.suffix.lower()]
    # The first row tells whether the whole can be read.
    with closing(rows(path)) as some:
        next(some, None)

    def find() -> Iterator[Found]:
        with closing(rows(path)) as numbered:
            for number, row in numbered:
                place = f"{path}, row {number}"
                try:
                    if isinstance(row, Unreadable):
                        raise row
                    found = _found(path, row)
                except Unreadable as error:
                    found = unreadable(place, place, str(error))
                yield found

    return Input(str(path), find, countable=path.suffix.lower() == ".csv")


def _found(manifest: Path, row: Mapping[str, Any]) -> Found:
    """Returns what a row stands for."""
    attributes = _attributes(row)
    name = _id(row.get("id"))
    image = row.get("image")
    if image is not None:
        data = _bytes(image)
        # As long as any hash that people compare.
        name = name or f"sha256-{hashlib.sha256(data).hexdigest()}"
        return Found(name, f"{manifest}!/{name}", attributes, lambda most: data[:most], at_once=True, size=len(data))
    path = row.get("path")
    if not isinstance(path, str) or not path:
        raise Unreadable("has neither a path nor an image")
    source = Path(os.path.abspath(manifest.parent / path))
    return Found(name or path, str(source), attributes, partial(read_file, source))


def _id(value: object) -> str:
    """Returns an id as text; none is the empty one."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise Unreadable(f"its id is {value!r}: use text or a whole number")
    return str(value)


def _bytes(image: object) -> bytes:
    if isinstance(image, bytes):
        return image
    if not isinstance(image, str):
        raise Unreadable(f"its image is of type {type(image).__name__}: use binary in Parquet, base64 in JSON lines")
    try:
        return base64.b64decode(image, validate=True)
    except ValueError as error:
        raise Unreadable(f"its image is not base64: {error}") from None


def _attributes(row: Mapping[str, Any]) -> Attributes:
    nested = row.get("attributes")
    if isinstance(nested, str):
        nested = _json(nested) if nested else None
    if nested is not None and not isinstance(nested, Mapping):
        raise Unreadable("its attributes are not an object")
    return {**{name: value for name, value in row.items() if name not in _RESERVED}, **(nested or {})}


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"is not JSON: {error}") from None


def _csv(path: Path) -> Rows:
    with path.open(**_TEXT) as file:  # type: ignore[call-overload]
        reader = csv.reader(_lines(file), strict=True)
        try:
            header = next(reader, [])
        except csv.Error as error:
            raise CommandError(f"{path} cannot be read as CSV: {error}") from error
        _check_columns(path, header, ("path",))
        number = 1
        while True:
            number += 1
            try:
                row = next(reader, None)
            except csv.Error as error:  # where the next row would begin is not known
                yield number, Unreadable(f"the table cannot be read from here on: {error}")
                return
            if row is None:
                return
            if not row:  # a blank line
                continue
            if len(row) != len(header):
                yield number, Unreadable(f"has {len(row)} columns, but the header has {len(header)}")
            else:
                # What is empty is missing.
                yield number, {name: value for name, value in zip(header, row, strict=True) if value}


def _lines(file: TextIO) -> Iterator[str]:
    while line := file.readline(_MAX_LINE_BYTES):
        if len(line) == _MAX_LINE_BYTES:
            raise csv.Error(f"a line has more than {_MAX_LINE_BYTES:,} characters")
        yield line


def _jsonl(path: Path) -> Rows:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(_MAX_LINE_BYTES):
            number += 1
            if len(line) == _MAX_LINE_BYTES and not line.endswith(b"\n"):
                yield number, Unreadable(f"has more than {_MAX_LINE_BYTES:,} bytes")
                while line and not line.endswith(b"\n"):
                    line = file.readline(_MAX_LINE_BYTES)
            elif line.strip():
                try:
                    row = _json(line.decode("utf-8-sig"))
                    yield number, row if isinstance(row, Mapping) else Unreadable("is not a JSON object")
                except UnicodeDecodeError as error:
                    yield number, Unreadable(f"is not UTF-8: {error}")
                except Unreadable as error:
                    yield number, error


def _parquet(path: Path) -> Rows:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError as error:
        raise CommandError("reading Parquet needs pyarrow: pip install 'lookalike[bulk]'") from error
    try:
        # Page by page, where the file has pages smaller than a group of rows.
        file = pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise CommandError(f"{path} cannot be read as Parquet: {error}") from error
    with file:
        names = file.schema_arrow.names
        _check_columns(path, names, ("path", "image"))
        rows = _PARQUET_IMAGES if "image" in names else _PARQUET_ROWS
        number = 0
        try:
            for batch in file.iter_batches(batch_size=rows, use_threads=False):
                for row in batch.to_pylist():
                    number += 1
                    yield number, {name: _plain(value) for name, value in row.items() if value is not None}
        except (pa.ArrowException, OSError) as error:
            yield number + 1, Unreadable(f"the table cannot be read from here on: {error}")


def _plain(value: Any) -> Any:
    """Returns what JSON has for a value of Parquet's further types."""
    match value:
        case datetime.datetime() | datetime.date() | datetime.time():
            return value.isoformat()
        case decimal.Decimal():
            return float(value)
        case _:
            return value


def _check_columns(path: Path, columns: list[str], needed: tuple[str, ...]) -> None:
    if twice := {name for name in columns if columns.count(name) > 1}:
        raise CommandError(f"{path} has several columns {min(twice)!r}: rename them")
    if not any(name in columns for name in needed):
        raise CommandError(
            f"{path} has no column {' or '.join(needed)}, which says where the images are; it has "
            f"{', '.join(columns) or 'no columns at all'}"
        )


_KINDS: Mapping[str, Callable[[Path], Rows]] = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}
SUFFIXES_OF_MANIFESTS = tuple(_KINDS)
