"""A collection goes from one model to another and back: two real embedders, real images, Milvus Lite."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import grpc
import numpy as np
import pytest
from service_processes import searching

from lookalike import (
    AsyncClient,
    Client,
    Embedding,
    IndexSpec,
    IndexType,
    Item,
    LookalikeError,
    UpsertOutcome,
    VectorSpace,
    VersionState,
)
from workbench.demo_images import DemoImages

STORED, FAILED = UpsertOutcome.STORED, UpsertOutcome.FAILED


def items(images: list[Path]) -> list[Item]:
    return [Item(path.stem, image=path.read_bytes(), attributes={"name": path.stem}) for path in images]


def outcomes(client: Client, images: list[Path]) -> set[UpsertOutcome]:
    return {result.outcome for result in client.upsert("photos", items(images))}


def states(client: Client) -> list[tuple[int, VersionState, int]]:
    versions = client.describe_collection("photos").collection.versions
    return [(version.version, version.state, version.row_count) for version in versions]


def find(client: Client, copies: Path, name: str, version: int) -> None:
    """Asserts that an edited copy finds its photograph, and that this version of the collection answered."""
    result = client.search("photos", image=(copies / name / "mirror.jpg").read_bytes(), top_k=1, read_your_writes=True)
    assert [hit.id for hit in result.hits] == [name]
    assert result.served_by.version == version


def test_a_collection_moves_to_another_model_and_back_and_loses_nothing(
    embedders: tuple[str, str], demo_images: DemoImages, tmp_path: Path
) -> None:
    old, new = embedders
    photographs, copies = demo_images.queries, demo_images.copies
    early, late, last = photographs[:2], photographs[2:5], photographs[5:7]
    with searching(tmp_path, old) as target, Client(target) as client:
        first = client.create_collection("photos").serving
        assert first is not None
        assert outcomes(client, early) == {STORED}

    with searching(tmp_path, new, old) as target, Client(target) as client:
        version = client.create_collection_version("photos", index=IndexSpec(IndexType.FLAT))
        assert (version.version, version.state, version.row_count) == (2, VersionState.FILLING, 0)
        assert (version.space.dimension, version.index.type) == (32, IndexType.FLAT)
        assert version.space.fingerprint != first.space.fingerprint

        assert outcomes(client, late) == {STORED}
        assert states(client) == [(1, VersionState.SERVING, 5), (2, VersionState.FILLING, 3)]
        find(client, copies, late[0].stem, 1)
        # What was there before is stored again, for its source is at hand; what is there already is left alone.
        again = client.upsert("photos", items(early + late), if_content_changed=True)
        assert [result.outcome for result in again] == [STORED] * 2 + [UpsertOutcome.UNCHANGED] * 3
        assert client.delete("photos", ids=[late[2].stem]) == 1
        assert states(client) == [(1, VersionState.SERVING, 4), (2, VersionState.FILLING, 4)]

        switched = client.switch_collection_version("photos", 2)
        assert switched.serving_version == 2
        assert switched.serving is not None
        assert switched.serving.space == version.space
        for photograph in early + late[:2]:
            find(client, copies, photograph.stem, 2)
        [record] = client.get("photos", [early[0].stem], include_vector=True).records
        assert record.vector is not None
        assert record.vector.fingerprint == version.space.fingerprint

        assert outcomes(client, last) == {STORED}
        assert client.delete("photos", filter="attributes['name'] == {n}", filter_values={"n": early[0].stem}) == 1
        assert states(client) == [(1, VersionState.RETIRED, 5), (2, VersionState.SERVING, 5)]

        client.switch_collection_version("photos", 1)
        for photograph in [early[1], *late[:2], *last]:
            find(client, copies, photograph.stem, 1)
        assert client.get("photos", [early[0].stem, late[2].stem]).records == ()

        client.delete_collection("photos", version=2)
        assert states(client) == [(1, VersionState.SERVING, 5)]


def test_what_versions_cannot_do_is_refused_with_a_reason(
    embedders: tuple[str, str], demo_images: DemoImages, tmp_path: Path
) -> None:
    old, new = embedders
    photographs = demo_images.queries
    precondition, missing = grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.NOT_FOUND
    with searching(tmp_path, new, old) as target, Client(target) as client:
        with pytest.raises(LookalikeError, match="'photos' does not exist") as caught:
            client.create_collection_version("photos")
        assert caught.value.code is missing
        client.create_collection("photos")
        for refused in (
            lambda: client.switch_collection_version("photos", 2),
            lambda: client.delete_collection("photos", version=2),
        ):
            with pytest.raises(LookalikeError, match="has no version 2") as caught:
                refused()
            assert caught.value.code is missing
        with pytest.raises(LookalikeError, match="switch to another one first") as caught:
            client.delete_collection("photos", version=1)
        assert caught.value.code is precondition
        assert outcomes(client, photographs[:1]) == {STORED}
        client.create_collection_version("photos", space=VectorSpace("mine", 4))

        # No embedder has the model "mine"; a good vector of it cannot go to the version that serves.
        results = client.upsert("photos", [*items(photographs[1:2]), Item("a", vector=Embedding([1, 2, 3, 4], "mine"))])
        for result, part in zip(results, ("embedder", "version 1"), strict=True):
            assert result.error is not None
            assert (result.outcome, result.error.code) == (FAILED, precondition)
            assert part in result.error.message
            assert "mine" in result.error.message
        assert client.count("photos") == 1

        client.switch_collection_version("photos", 2)
        with pytest.raises(LookalikeError, match="mine") as caught:
            client.search("photos", image=photographs[0].read_bytes())
        assert caught.value.code is precondition
        assert client.search("photos", vector=Embedding([1, 2, 3, 4], "mine")).hits == ()


async def test_searches_never_fail_and_writes_are_not_lost_while_versions_are_switched(
    embedders: tuple[str, str], demo_images: DemoImages, tmp_path: Path
) -> None:
    old, new = embedders
    photograph, other = (path.read_bytes() for path in demo_images.queries[:2])
    stored: list[str] = []
    served: set[int] = set()
    errors: list[Exception] = []
    done = threading.Event()
    with searching(tmp_path, new, old) as target:
        async with AsyncClient(target) as client:
            collection = await client.create_collection("photos")
            assert collection.serving is not None
            await client.upsert("photos", [Item("first", image=photograph)])
            await client.create_collection_version("photos")
            await client.upsert("photos", [Item("first", image=photograph)])

            def write() -> None:
                with Client(target) as mine:
                    while not done.is_set():
                        [result] = mine.upsert("photos", [Item(f"row {len(stored)}", image=other)])
                        assert result.outcome is STORED, result.error
                        stored.append(result.id)

            def search() -> None:
                with Client(target) as mine:
                    while not done.is_set():
                        result = mine.search("photos", image=photograph, top_k=1)
                        assert [hit.id for hit in result.hits] == ["first"]
                        np.testing.assert_allclose(result.hits[0].similarity, 1, atol=1e-3)
                        served.add(result.served_by.version)

            def guarded(work: object) -> None:
                try:
                    work()  # type: ignore[operator]
                except Exception as error:
                    errors.append(error)

            threads = [threading.Thread(target=guarded, args=(work,)) for work in (write, search)]
            for thread in threads:
                thread.start()
            try:
                for number in (2, 1) * 10:
                    assert (await client.switch_collection_version("photos", number)).serving_version == number
                    # From the reply on, and not a moment later, that version answers.
                    assert (await client.search("photos", image=photograph)).served_by.version == number
            finally:
                done.set()
                for thread in threads:
                    thread.join()
            assert errors == []
            assert stored
            assert served == {1, 2}
            for number in (1, 2):
                await client.switch_collection_version("photos", number)
                assert await client.count("photos") == len(stored) + 1
            await client.delete_collection("photos", version=1)
            [version] = (await client.describe_collection("photos")).collection.versions
            assert version.version == 2


def test_the_command_shows_creates_switches_and_deletes_versions(embedders: tuple[str, str], tmp_path: Path) -> None:
    with searching(tmp_path, *embedders) as target:

        def collections(*arguments: str, code: int = 0) -> str:
            command = [sys.executable, "-m", "workbench.main", "collections", *arguments, "--target", target]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
            assert done.returncode == code, done.stderr
            return done.stdout + done.stderr

        collections("create", "photos")
        assert "version      2, FILLING" in collections("create-version", "photos", "--index", "hnsw")
        table = [line.split()[:5] for line in collections("versions", "photos").splitlines()]
        assert table == [
            ["version", "state", "rows", "dimensions", "index"],
            ["1", "SERVING", "0", "64", "FLAT"],
            ["2", "FILLING", "0", "64", "HNSW"],
        ]
        switched = [line.split()[:2] for line in collections("switch", "photos", "2").splitlines()]
        assert switched[1:] == [["1", "RETIRED"], ["2", "SERVING"]]
        assert "serves" in collections("delete", "photos", "--version", "2", code=1)
        assert collections("delete", "photos", "--version", "1") == "version 1 of collection photos is deleted\n"
        assert len(collections("versions", "photos").splitlines()) == 2
