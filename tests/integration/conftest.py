"""Real servers on loopback, with a real model, on Milvus Lite and on a real Milvus server."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest
from service_processes import embedder

from embedder_service.model.build import build
from lookalike import Client, VectorSpace
from workbench.demo_images import DemoImages, make_demo_images
from workbench.services import Services, running

Once: TypeAlias = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """Makes something at the path that it returns, once for all processes of a run (`make test WORKERS=N`)."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "once"
    folder.mkdir(exist_ok=True)

    def make(name: str, write: Callable[[Path], object]) -> Path:
        with (folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (folder / name).exists():
                write(folder / name)
        return folder / name

    return make


@pytest.fixture(scope="session")
def demo_images(once: Once) -> DemoImages:
    """The sample photographs and their edited copies."""
    return make_demo_images(once("demo", make_demo_images))


@pytest.fixture(scope="session")
def bundle(once: Once, demo_images: DemoImages) -> Path:
    """A bundle of the real EfficientNet-Lite0, its PCA fitted on the demo images."""
    copies = sorted(demo_images.copies.rglob("*.*"))
    return once("bundle", lambda out: build("efficientnet_lite0", "imagenet", copies, 64, out, lambda *_: None))


@pytest.fixture(scope="session")
def services(
    backend: str, bundle: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Services]:
    """Both services, on either backend."""
    folder = tmp_path_factory.mktemp("services")
    milvus = folder / "milvus.db" if backend == "lite" else request.getfixturevalue("milvus_server").uri
    with running(bundle, milvus, folder / "logs") as services:
        yield services


@pytest.fixture(scope="module")
def client(services: Services) -> Iterator[Client]:
    """A client of the search service."""
    with Client(services.search.addresses.grpc) as client:
        yield client


@pytest.fixture
def photos(client: Client) -> Iterator[str]:
    """An empty collection for images."""
    client.create_collection("photos")
    yield "photos"
    client.delete_collection("photos")


@pytest.fixture
def points(client: Client) -> Iterator[str]:
    """An empty collection for vectors of 4 dimensions of a model called "mine"."""
    client.create_collection("points", space=VectorSpace("mine", 4))
    yield "points"
    client.delete_collection("points")


@pytest.fixture(scope="session")
def second_bundle(once: Once, demo_images: DemoImages) -> Path:
    """Another model: of half the dimensions, its PCA fitted on fewer images."""
    some = sorted(demo_images.copies.rglob("*.*"))[:48]
    return once("second", lambda out: build("efficientnet_lite0", "imagenet", some, 32, out, lambda *_: None))


@pytest.fixture(scope="session")
def embedders(bundle: Path, second_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The addresses of an embedder with the old model, and one with the new."""
    logs = tmp_path_factory.mktemp("embedders")
    with embedder("old", bundle, logs) as old, embedder("new", second_bundle, logs) as new:
        yield old.addresses.grpc, new.addresses.grpc
