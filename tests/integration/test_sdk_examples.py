"""The examples of the client's docstrings and of its page, typed in as they stand against real services."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import io
import pkgutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import grpc
import pytest
from PIL import Image, ImageOps

import lookalike
from lookalike import AsyncClient, AsyncEmbedderClient, Client, EmbedderClient, Item
from workbench.demo_images import DemoImages
from workbench.services import Services, running

PAGE = Path(__file__).resolve().parents[2] / "docs" / "sdk.md"
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def docstrings() -> Iterator[doctest.DocTest]:
    """Yields the docstrings of the package that have examples, each once, and the page."""
    names = [module.name for module in pkgutil.walk_packages(lookalike.__path__, "lookalike.")]
    for name in ["lookalike", *(name for name in names if "_pb2" not in name)]:
        found = doctest.DocTestFinder().find(importlib.import_module(name), extraglobs={})
        yield from (docstring for docstring in found if docstring.examples)
    yield doctest.DocTestParser().get_doctest(PAGE.read_text(), {}, PAGE.name, str(PAGE), 0)


EXAMPLES = list(docstrings())


@pytest.fixture(scope="module")
def services(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """Both services, on Milvus Lite."""
    folder = tmp_path_factory.mktemp("services")
    with running(bundle, folder / "milvus.db", folder / "logs") as services:
        yield services


@pytest.fixture(scope="module")
def images(demo_images: DemoImages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the examples name."""
    folder = tmp_path_factory.mktemp("images")
    photographs = {path.stem: path for path in demo_images.queries}
    cat = Image.open(photographs["chelsea"]).convert("RGB")
    cat.save(folder / "cat.jpg")
    ImageOps.mirror(cat).save(folder / "mirrored.jpg")
    cat.save(folder / "query.jpg", quality=60)
    Image.open(photographs["rocket"]).convert("RGB").save(folder / "rocket.jpg")
    return folder


@asynccontextmanager
async def names(services: Services, asyncio: bool) -> AsyncIterator[dict[str, Any]]:
    """What the examples have imported, and the clients that they go on with."""
    search, embedder = services.search.addresses.grpc, services.embedder.addresses.grpc
    known = {name: getattr(lookalike, name) for name in lookalike.__all__} | {"Path": Path, "grpc": grpc}
    if asyncio:
        async with AsyncClient(search) as client, AsyncEmbedderClient(embedder) as images:
            yield known | {"client": client, "embedder": images}
    else:
        with Client(search) as client, EmbedderClient(embedder) as images:
            yield known | {"client": client, "embedder": images}


@pytest.fixture
def photos(services: Services, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The collection that the examples go on with; the only one."""
    monkeypatch.chdir(images)
    rows = [
        Item(name, image=Path(name).read_bytes(), attributes=attributes)
        for name, attributes in (("cat.jpg", {"year": 1991}), ("mirrored.jpg", {"year": 2005}), ("rocket.jpg", {}))
    ]
    with Client(services.search.addresses.grpc) as client:
        for collection in client.list_collections():
            client.delete_collection(collection.name)
        client.create_collection("photos")
        assert [result.error for result in client.upsert("photos", rows)] == [None] * 3


@pytest.mark.usefixtures("photos")
@pytest.mark.parametrize("docstring", EXAMPLES, ids=lambda docstring: docstring.name)
async def test_an_example_does_what_it_shows(docstring: doctest.DocTest, services: Services) -> None:
    async with names(services, asyncio=".aio_" in docstring.name) as known:
        for example in docstring.examples:
            source = example.source.replace("127.0.0.1:50052", services.search.addresses.grpc)
            source = source.replace("127.0.0.1:50051", services.embedder.addresses.grpc)
            # As `python -m asyncio` does: with await outside of functions.
            code = compile(source, docstring.name, "single", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
            output = io.StringIO()
            with redirect_stdout(output):
                result = eval(code, known)
                if inspect.isawaitable(result):
                    await result
            right = doctest.OutputChecker().check_output(example.want, output.getvalue(), FLAGS)
            assert right, f"{example.source}expected:\n{example.want}got:\n{output.getvalue()}"


def test_all_clients_have_examples() -> None:
    assert {"Client", "AsyncClient", "EmbedderClient", "AsyncEmbedderClient"} <= {
        docstring.name.split(".")[-1] for docstring in EXAMPLES
    }
