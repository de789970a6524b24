"""Stores on real Milvus Lite and on a real Milvus server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from milvus_samples import SPACE, MilvusProcess, Place, free_port, within

from benchmarks.milvus_server import Database, MilvusServer
from search_service.records import CollectionVersion
from search_service.store import MilvusStore


@pytest.fixture
def uri(tmp_path: Path) -> str:
    """Where Milvus Lite can keep its rows."""
    return str(tmp_path / "milvus.db")


@pytest.fixture
def place(backend: str, request: pytest.FixtureRequest) -> Iterator[Place]:
    """An empty place on either backend."""
    if backend == "lite":
        yield Place(request.getfixturevalue("uri"))
    else:
        server: MilvusServer = request.getfixturevalue("milvus_server")
        with Database(server, f"test_{uuid4().hex}") as database:
            yield Place(server.uri, database.name)


@pytest.fixture
async def store(place: Place) -> AsyncIterator[MilvusStore]:
    async with place.store() as opened:
        yield opened


@pytest.fixture
async def photos(store: MilvusStore) -> CollectionVersion:
    return await store.create_collection("photos", SPACE, deadline=within())


@pytest.fixture
def fragile(
    backend: str, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[tuple[MilvusProcess | MilvusServer, Place]]:
    """A process that can be made to hang and to die, and an empty place on it."""
    if backend == "lite":
        process = MilvusProcess(tmp_path / "server.db", free_port())
        yield process, Place(process.uri)
        process.kill()
    else:
        server: MilvusServer = request.getfixturevalue("milvus_server")
        with Database(server, f"test_{uuid4().hex}") as database:
            yield server, Place(server.uri, database.name)
            # Other tests need it as well.
            server.recover()
