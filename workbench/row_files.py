"""Rows of a collection in Parquet files, as Milvus' bulk import reads them; each file is whole or not there.

A file's metadata tells the vector space and the shard that it belongs to. Beside the files of a shard that is complete
lies a summary, `<i>-of-<n>.json`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
from pyarrow import fs, parquet

from search_service.milvus_rows import EncodedRow
from search_service.records import VectorSpace
from workbench.errors import CommandError
from workbench.shards import Shard

_KEY = b"lookalike"
_UNFINISHED = ".unfinished"
_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("tenant", pa.string()),
        ("model_fp", pa.string()),
        ("content_sha256", pa.string()),
        ("source", pa.string()),
        ("updated_ms", pa.int64()),
        ("attributes", pa.string()),  # JSON
        ("vector", pa.list_(pa.float32())),
    ]
)


@dataclass(frozen=True)
class Origin:
    """What the rows of a file have in common: the space of their vectors, and whether ids belong to tenants."""

    space: VectorSpace
    multi_tenant: bool


@dataclass(frozen=True)
class RowFile:
    """A file, by its name in the folder, and the number of its rows."""

    name: str
    shard: Shard
    origin: Origin
    rows: int


@dataclass(frozen=True)
class Summary:
    """What became of the images of a shard that is complete: `found` = `rows` + `failed`."""

    found: int
    rows: int
    failed: int


class Folder:
    """A folder of row files.

    Args:
        where: a path, or the URI of an object store as pyarrow names it: `s3://bucket/prefix?region=eu-west-1`,
            `s3://bucket/prefix?scheme=http&endpoint_override=minio:9000`, `gs://...`. Keys come from the environment.

    Raises:
        CommandError: it names no file system.
    """

    def __init__(self, where: str) -> None:
        self.system: Any
        self.path: str
        try:
            self.system, self.path = fs.FileSystem.from_uri(where) if "://" in where else _local(where)
        except (pa.ArrowException, ValueError, OSError) as error:
            raise CommandError(f"{where} cannot be opened: {error}") from error

    @property
    def in_storage(self) -> str:
        """What a Milvus that keeps its data in the same place calls the folder."""
        # Of an object store the path begins with the bucket.
        return self.path if isinstance(self.system, fs.LocalFileSystem) else self.path.partition("/")[2]

    def files(self) -> list[RowFile]:
        """Returns all whole files, by path. Raises CommandError for a Parquet file of another kind."""
        selector = fs.FileSelector(self.path, allow_not_found=True)
        paths = sorted(info.path for info in self.system.get_file_info(selector) if info.path.endswith(".parquet"))
        return [self._described(path) for path in paths]

    def ids(self, file: RowFile) -> Any:
        """Returns the primary keys in a file: a pyarrow array of strings."""
        return parquet.read_table(f"{self.path}/{file.name}", filesystem=self.system, columns=["id"])["id"]

    def summaries(self) -> dict[Shard, Summary]:
        """Returns the summaries of the shards that are complete."""
        selector = fs.FileSelector(self.path, allow_not_found=True)
        found = {}
        for info in self.system.get_file_info(selector):
            if info.path.endswith(".json"):
                with self.system.open_input_stream(info.path) as stream:
                    told = json.loads(stream.read())
                shard = Shard(**told.pop("shard"))
                found[shard] = Summary(**told)
        return found

    def finish(self, shard: Shard, summary: Summary) -> None:
        """Writes the summary of a shard."""
        told = json.dumps({"shard": asdict(shard), **asdict(summary)}) + "\n"
        self._write_whole(f"{_name(shard)}.json", told.encode())

    def _write_whole(self, name: str, data: bytes) -> None:
        self.system.create_dir(self.path, recursive=True)
        with self.system.open_output_stream(f"{self.path}/{name}{_UNFINISHED}") as stream:
            stream.write(data)
        self.system.move(f"{self.path}/{name}{_UNFINISHED}", f"{self.path}/{name}")

    def _described(self, path: str) -> RowFile:
        try:
            metadata = parquet.read_metadata(path, filesystem=self.system)
            told = json.loads(metadata.metadata[_KEY])
            origin = Origin(VectorSpace(**told["space"]), told["multi_tenant"])
            return RowFile(path.rpartition("/")[2], Shard(**told["shard"]), origin, metadata.num_rows)
        except (pa.ArrowException, TypeError, KeyError, ValueError) as error:
            raise CommandError(
                f"{path} is no file of rows: `lookalike embed` writes such files ({type(error).__name__}: {error})"
            ) from error


class RowWriter:
    """Writes rows to files of a folder, one after the other, for as long as the context lasts.

    A file that is being written has another name, so that what a crash leaves is not taken for whole.

    Args:
        shard: what the rows belong to.
        first: the number of the first file.
        rows_per_file: how many rows a file has, at least, but for the last.
    """

    def __init__(self, folder: Folder, shard: Shard, origin: Origin, *, first: int = 0, rows_per_file: int) -> None:
        self.rows = 0  # in whole files
        self._folder, self._shard = folder, shard
        self._number, self._rows_per_file = first, rows_per_file
        told = {"shard": asdict(shard), "space": asdict(origin.space), "multi_tenant": origin.multi_tenant}
        self._schema = _SCHEMA.with_metadata({_KEY: json.dumps(told).encode()})
        self._writer: Any = None
        self._in_file = 0

    def __enter__(self) -> Self:
        self._folder.system.create_dir(self._folder.path, recursive=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._close_file()

    def write(self, rows: Sequence[EncodedRow]) -> None:
        """Writes encoded rows, see `search_service.milvus_rows.encode_rows`."""
        if self._writer is None:
            self._writer = parquet.ParquetWriter(
                self._path + _UNFINISHED, self._schema, filesystem=self._folder.system, compression="zstd"
            )
        self._writer.write_batch(_batch(rows, self._schema))
        self._in_file += len(rows)
        if self._in_file >= self._rows_per_file:
            self._close_file()

    @property
    def _path(self) -> str:
        return f"{self._folder.path}/{_name(self._shard)}-{self._number:06d}.parquet"

    def _close_file(self) -> None:
        writer, self._writer = self._writer, None
        writer.close()
        self._folder.system.move(self._path + _UNFINISHED, self._path)
        self.rows += self._in_file
        self._in_file = 0
        self._number += 1


def _name(shard: Shard) -> str:
    return f"{shard.index:05d}-of-{shard.count:05d}"


def _batch(rows: Sequence[EncodedRow], schema: Any) -> Any:
    vectors = np.stack([row["vector"] for row in rows])
    offsets = np.arange(0, vectors.size + 1, vectors.shape[1], dtype=np.int32)
    columns = [
        pa.array([row[name] for row in rows], kind)
        for name, kind in zip(schema.names, schema.types, strict=True)
        if name != "vector"
    ]
    return pa.RecordBatch.from_arrays([*columns, pa.ListArray.from_arrays(offsets, vectors.ravel())], schema=schema)


def _local(where: str) -> tuple[Any, str]:
    return fs.LocalFileSystem(), str(Path(where).expanduser().resolve())
