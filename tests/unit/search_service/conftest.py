"""Stores on real Milvus Lite."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from milvus_samples import SPACE, MilvusProcess, free_port, within

from search_service.records import CollectionVersion
from search_service.store import MilvusStore


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return str(tmp_path / "milvus.db")


@pytest.fixture
async def store(uri: str) -> AsyncIterator[MilvusStore]:
    async with MilvusStore(uri) as opened:
        yield opened


@pytest.fixture
async def photos(store: MilvusStore) -> CollectionVersion:
    return await store.create_collection("photos", SPACE, deadline=within())


@pytest.fixture
def start_milvus(tmp_path: Path) -> Iterator[Callable[..., MilvusProcess]]:
    started: list[MilvusProcess] = []

    def start(port: int | None = None) -> MilvusProcess:
        started.append(MilvusProcess(tmp_path / "server.db", port or free_port()))
        return started[-1]

    yield start
    for process in started:
        process.kill()
