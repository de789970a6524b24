"""Real servers on loopback, with a real model, on Milvus Lite and on a real Milvus server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from embedder_service.model.build import build
from lookalike import Client
from workbench.demo_images import DemoImages, make_demo_images
from workbench.services import Services, running


@pytest.fixture(scope="session")
def demo_images(tmp_path_factory: pytest.TempPathFactory) -> DemoImages:
    """The sample photographs and their edited copies."""
    return make_demo_images(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory, demo_images: DemoImages) -> Path:
    """A bundle of the real EfficientNet-Lite0, its PCA fitted on the demo images."""
    folder = tmp_path_factory.mktemp("model") / "bundle"
    copies = sorted(demo_images.copies.rglob("*.*"))
    build("efficientnet_lite0", "imagenet", copies, 64, folder, lambda *_: None)
    return folder


@pytest.fixture(scope="module")
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
