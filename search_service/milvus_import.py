"""Bulk import: Milvus reads Parquet files from its own storage, which is faster than any number of writes.

It neither looks for equal ids nor keeps to the order of other writes, so it is for versions that nobody sees yet.
"""

from __future__ import annotations

from dataclasses import dataclass

from pymilvus import BulkInsertState

from search_service.milvus_connection import Call, Client
from search_service.records import CollectionVersion


@dataclass(frozen=True, slots=True)
class ImportState:
    """How far the import of a file is.

    Attributes:
        done: whether all its rows are stored.
        rows: how many there are, as soon as Milvus knows it.
        failure: why it has ended without success; empty where it has not.
    """

    done: bool
    rows: int
    failure: str


def start(version: CollectionVersion, path: str) -> Call[int]:
    """Ask for the import of a file, by its path in Milvus' storage. Returns the number of the task."""

    def call(client: Client, timeout: float) -> int:
        # The context names the database.
        context = client._generate_call_context()
        return int(client._handler.do_bulk_insert(version.physical_name, "", [path], timeout=timeout, context=context))

    return call


def state(task: int) -> Call[ImportState]:
    """How far a task is."""

    def call(client: Client, timeout: float) -> ImportState:
        told = client._handler.get_bulk_insert_state(task, timeout=timeout, context=client._generate_call_context())
        failed = told.state in (BulkInsertState.ImportFailed, BulkInsertState.ImportFailedAndCleaned)
        reason = told.failed_reason or "Milvus gives no reason; its log may"
        return ImportState(
            done=told.state == BulkInsertState.ImportCompleted, rows=told.row_count, failure=reason if failed else ""
        )

    return call
