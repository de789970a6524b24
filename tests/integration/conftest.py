"""Real servers on loopback, with a real model and Milvus Lite."""

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
def services(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """Both services."""
    folder = tmp_path_factory.mktemp("services")
    with running(bundle, folder / "milvus.db", folder / "logs") as services:
        yield services


@pytest.fixture(scope="module")
def client(services: Services) -> Iterator[Client]:
    """A client of the search service."""
    with Client(services.search.addresses.grpc) as client:
        yield client
