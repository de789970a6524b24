"""The first load of a collection from files of rows: Milvus reads them itself, then the collection is there, whole.

Until then nobody can write to it, so that there is nothing to reconcile. A run that is stopped has changed nothing that
anybody sees, and the next one begins anew.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from search_service.records import CollectionVersion, IndexSpec
from search_service.store import MilvusStore
from workbench.errors import CommandError
from workbench.id_set import id_hash
from workbench.row_files import Folder, Origin, RowFile
from workbench.shards import Shard

_CALL_SECONDS = 60.0
_POLL_SECONDS = 0.5
# Files that Milvus imports at the same time. It queues more, up to a limit, but nothing is gained by that.
_TASKS = 4


@dataclass(frozen=True)
class Load:
    """What is to be loaded: whole, of one space, and each id once."""

    folder: Folder
    files: Sequence[RowFile]
    origin: Origin
    rows: int


def check(folder: Folder) -> Load:
    """Looks whether the files of a folder can become a collection; reads their ids.

    Keeps 8 bytes an id in memory.

    Raises:
        CommandError: a shard is missing or not complete, files are of different models, or an id is there twice.
    """
    files = folder.files()
    if not files:
        raise CommandError(f"there are no files of rows in {folder.path}: make some with `lookalike embed`")
    origins = {file.origin for file in files}
    if len(origins) > 1:
        prints = ", ".join(sorted({origin.space.fingerprint for origin in origins}))
        raise CommandError(
            f"the files in {folder.path} are not of one kind, with models {prints}: use a folder for each"
        )
    _check_shards(folder, files)
    rows = sum(file.rows for file in files)
    hashes = np.fromiter((id_hash(key) for file in files for key in folder.ids(file).to_pylist()), np.uint64, rows)
    if len(np.unique(hashes)) < rows:
        raise CommandError(
            f"an id is twice in the files of {folder.path}, and Milvus would store both: were two runs with different "
            "inputs written to the same folder? Embed into an empty one"
        )
    return Load(folder, files, origins.pop(), rows)


async def load(
    store: MilvusStore,
    load: Load,
    collection: str,
    index: IndexSpec,
    *,
    files_at: str,
    patience: float,
    show: Callable[[str, int, int], None],
) -> CollectionVersion:
    """Imports the files into a collection that is there when all rows are, and its index.

    Args:
        files_at: what Milvus calls the folder, in its own storage.
        patience: seconds without any progress after which it is given up.
        show: called with a stage, how much of it is done, and how much there is.

    Raises:
        ServiceError: Milvus failed; AlreadyExists, when there is a collection of that name.
        CommandError: Milvus did not import a file, or has another number of rows in the end.
    """
    version = await store.create_hidden(
        collection, load.origin.space, index, multi_tenant=load.origin.multi_tenant, deadline=_within()
    )
    await _import(store, version, load, files_at, patience, show)
    await _settle(store, version, load.rows, patience, show)
    await store.publish(version, deadline=_within())
    return version


async def _import(
    store: MilvusStore,
    version: CollectionVersion,
    load: Load,
    files_at: str,
    patience: float,
    show: Callable[[str, int, int], None],
) -> None:
    done = 0
    files = iter(load.files)

    async def worker() -> None:
        nonlocal done
        for file in files:  # shared by all workers: each file goes to one of them
            await _import_file(store, version, f"{files_at}/{file.name}", patience)
            done += file.rows
            show("Importing", done, load.rows)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(_TASKS):
                group.create_task(worker())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def _import_file(store: MilvusStore, version: CollectionVersion, path: str, patience: float) -> None:
    task = await store.start_import(version, path, deadline=_within())
    seen, end = -1, time.monotonic() + patience
    while not (state := await store.import_state(task, deadline=_within())).done:
        if state.failure:
            raise CommandError(f"Milvus did not import {path}: {state.failure}")
        if state.rows > seen:
            seen, end = state.rows, time.monotonic() + patience
        if time.monotonic() > end:
            raise CommandError(f"Milvus got no further with {path} for {patience:g} s: see its log, or allow more")
        await asyncio.sleep(_POLL_SECONDS)


async def _settle(
    store: MilvusStore, version: CollectionVersion, rows: int, patience: float, show: Callable[[str, int, int], None]
) -> None:
    """Waits until Milvus counts all rows and has indexed them; both come some time after the import."""
    seen, end = -1, time.monotonic() + patience
    while True:
        state = next(
            state
            for state in (await store.describe(version.collection, deadline=_within())).versions
            if state.version == version
        )
        if state.rows > rows:
            raise CommandError(
                f"Milvus has {state.rows:,} rows of {rows:,}, as when it did an import twice: start the command again"
            )
        show("Indexing", min(state.rows, state.indexed_rows), rows)
        if state.rows == state.indexed_rows == rows:
            return
        progress = state.rows + state.indexed_rows
        if progress > seen:
            seen, end = progress, time.monotonic() + patience
        if time.monotonic() > end:
            raise CommandError(
                f"Milvus has {state.rows:,} of {rows:,} rows, {state.indexed_rows:,} of them in its index, and got no "
                f"further for {patience:g} s: see its log, or allow more"
            )
        await asyncio.sleep(_POLL_SECONDS)


def _check_shards(folder: Folder, files: Sequence[RowFile]) -> None:
    counts = {file.shard.count for file in files}
    if len(counts) > 1:
        raise CommandError(
            f"{folder.path} holds shards of {sorted(counts)}: use a folder for each division into shards"
        )
    summaries, count = folder.summaries(), counts.pop()
    missing = [shard for shard in (Shard(index, count) for index in range(count)) if shard not in summaries]
    if missing:
        raise CommandError(
            f"{len(missing)} of {count} shards in {folder.path} are not complete, as {missing[0]}: run `lookalike "
            "embed` for them to its end"
        )
    for shard, summary in summaries.items():
        rows = sum(file.rows for file in files if file.shard == shard)
        if rows != summary.rows:
            raise CommandError(f"shard {shard} in {folder.path} has {rows:,} rows, not {summary.rows:,} as it should")


def _within() -> float:
    return time.monotonic() + _CALL_SECONDS
