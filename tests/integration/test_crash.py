"""kill -9 of the search service in the middle of an ingest, and of the embedder under a search service."""

from __future__ import annotations

import os
import signal
import socket
import threading
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from lookalike import Client, Embedding, Item, LookalikeError, UpsertOutcome, VectorSpace
from workbench.demo_images import DemoImages
from workbench.images import find_images
from workbench.main import main
from workbench.services import ServerProcess

# Acknowledged images after which the service is killed: while the first rows are unflushed, and later.
MOMENTS = (24, 152)


def search_service(folder: Path, port: int, embedder: str) -> ServerProcess:
    flags = ["--milvus-uri", str(folder / "milvus.db"), "--embedder", embedder]
    flags += ["--address", f"127.0.0.1:{port}", "--metrics-address", "127.0.0.1:0"]
    return ServerProcess("search-service", "search_service.main", flags, folder)


def embedder_on(folder: Path, port: int, bundle: Path) -> ServerProcess:
    flags = ["--bundle", str(bundle), "--address", f"127.0.0.1:{port}", "--metrics-address", "127.0.0.1:0"]
    return ServerProcess("embedder", "embedder_service.main", flags, folder)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.mark.parametrize("moment", MOMENTS)
def test_nothing_acknowledged_is_lost_and_a_second_ingest_completes_the_first(
    tmp_path: Path, bundle: Path, demo_images: DemoImages, moment: int, capsys: pytest.CaptureFixture[str]
) -> None:
    files = find_images(demo_images.copies)
    items = [Item(file.id, image=file.path.read_bytes(), source=str(file.path)) for file in files]
    acknowledged: list[str] = []
    reached = threading.Event()

    def ingest(target: str) -> None:
        with Client(target) as client:
            client.create_collection("photos")
            try:
                for start in range(0, len(items), 8):
                    results = client.upsert("photos", items[start : start + 8])
                    acknowledged.extend(result.id for result in results if result.outcome is UpsertOutcome.STORED)
                    if len(acknowledged) >= moment:
                        reached.set()
            except LookalikeError as error:
                assert error.code is grpc.StatusCode.UNAVAILABLE  # noqa: PT017 - in a thread: it ends with the kill

    port = free_port()
    with ExitStack() as stack:
        embedder = stack.enter_context(embedder_on(tmp_path, 0, bundle))
        first = search_service(tmp_path, port, embedder.addresses.grpc)
        first.__enter__()
        thread = threading.Thread(target=ingest, args=(first.addresses.grpc,))
        thread.start()
        assert reached.wait(120)
        os.kill(first.pid, signal.SIGKILL)
        thread.join(60)
        assert not thread.is_alive()
        assert moment <= len(acknowledged) < len(items)

        second = stack.enter_context(search_service(tmp_path, port, embedder.addresses.grpc))
        with Client(second.addresses.grpc) as client:
            assert client.get("photos", acknowledged).missing_ids == ()
            ingest_again = ["ingest", str(demo_images.copies), "--collection", "photos"]
            assert main([*ingest_again, "--target", second.addresses.grpc]) == 0
            assert f"{len(files)} images found" in capsys.readouterr().out
            # Each is there, and the count leaves no room for any to be there twice.
            assert client.get("photos", [file.id for file in files]).missing_ids == ()
            assert client.count("photos") == len(files)
            query = client.search("photos", image=demo_images.queries[0].read_bytes(), top_k=5)
            assert {hit.id.split("/")[0] for hit in query.hits} == {demo_images.queries[0].stem}


# Before the first rows are flushed, and after.
@pytest.mark.parametrize("moment", [1_000, 7_000])
def test_nothing_acknowledged_in_a_stream_is_lost(tmp_path: Path, moment: int) -> None:
    count = 9_000
    items = [Item(str(n), vector=Embedding([1, n, n % 7, 1], "mine"), attributes={"n": n}) for n in range(count)]
    acknowledged: list[str] = []
    port, nowhere = free_port(), "127.0.0.1:1"  # vectors need no embedder

    def ingest(client: Client, server: ServerProcess) -> None:
        for result in client.upsert_stream("points", items):
            assert result.outcome is UpsertOutcome.STORED
            acknowledged.append(result.id)
            if len(acknowledged) == moment:
                os.kill(server.pid, signal.SIGKILL)

    first = search_service(tmp_path, port, nowhere)
    first.__enter__()
    with Client(first.addresses.grpc) as client:
        client.create_collection("points", space=VectorSpace("mine", 4))
        with pytest.raises(LookalikeError) as caught:
            ingest(client, first)
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    assert moment <= len(acknowledged) < count

    with search_service(tmp_path, port, nowhere) as second, Client(second.addresses.grpc) as client:
        for start in range(0, len(acknowledged), 500):
            assert client.get("points", acknowledged[start : start + 500]).missing_ids == ()
        # A second stream, from the first row without an acknowledgement on, completes the first.
        rest = list(client.upsert_stream("points", items[len(acknowledged) :]))
        assert {result.outcome for result in rest} == {UpsertOutcome.STORED}
        assert client.count("points") == count


def test_searches_by_image_fail_while_the_embedder_is_away_and_work_when_it_is_back(
    tmp_path: Path, bundle: Path, demo_images: DemoImages
) -> None:
    image = demo_images.queries[0].read_bytes()
    port = free_port()
    first = embedder_on(tmp_path, port, bundle)
    first.__enter__()
    with (
        search_service(tmp_path, free_port(), first.addresses.grpc) as search,
        Client(search.addresses.grpc) as client,
    ):
        client.create_collection("photos")
        client.upsert("photos", [Item("a", image=image), Item("b", image=image)])
        os.kill(first.pid, signal.SIGKILL)
        with pytest.raises(LookalikeError) as caught:
            client.search("photos", image=image)
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE
        assert "embedder" in caught.value.message
        # What needs no embedding goes on.
        assert [hit.id for hit in client.search("photos", id="a").hits] == ["b"]
        with embedder_on(tmp_path, port, bundle):
            assert {hit.id for hit in client.search("photos", image=image).hits} == {"a", "b"}
