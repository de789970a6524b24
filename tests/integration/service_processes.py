"""Embedders and search services as processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from workbench.services import ANY_PORT, ServerProcess


def embedder(name: str, bundle: Path, logs: Path) -> ServerProcess:
    flags = ["--bundle", str(bundle), "--address", ANY_PORT, "--metrics-address", ANY_PORT]
    return ServerProcess(f"embedder-{name}", "embedder_service.main", flags, logs)


@contextmanager
def searching(folder: Path, *embedders: str, milvus: str | None = None) -> Iterator[str]:
    """Runs a search service, on the database in a folder (the same one after a restart) or on a Milvus server."""
    flags = ["--milvus-uri", milvus or str(folder / "milvus.db"), "--embedder", ",".join(embedders)]
    flags += ["--address", ANY_PORT, "--metrics-address", ANY_PORT]
    with ServerProcess("search-service", "search_service.main", flags, folder) as process:
        yield process.addresses.grpc
