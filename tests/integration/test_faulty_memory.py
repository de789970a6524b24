"""Too little memory: a limit on the address space of a running server, and requests that need more than is left."""

from __future__ import annotations

import io
import os
import resource
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from service_processes import embedder

from lookalike import Client, EmbedderClient, Embedding, Item, LookalikeError, UpsertOutcome, VectorSpace
from workbench.demo_images import DemoImages
from workbench.services import ANY_PORT, ServerProcess

MIB = 1 << 20


def leave(process: ServerProcess, room: int) -> None:
    """Lets a process have so many bytes more than now, and no more."""
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + room
    resource.prlimit(process.pid, resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def large_image(side: int) -> bytes:
    """A small file of many pixels, in a format whose decoder holds them all at once."""
    out = io.BytesIO()
    Image.new("RGB", (side, side), (90, 120, 30)).save(out, "WEBP", lossless=True)
    return out.getvalue()


def test_an_image_for_which_there_is_no_memory_harms_no_other(
    tmp_path: Path, bundle: Path, demo_images: DemoImages
) -> None:
    image, large = demo_images.queries[0].read_bytes(), large_image(7000)
    with embedder("one", bundle, tmp_path) as process, EmbedderClient(process.addresses.grpc, timeout=20) as client:
        usual = client.embed(image)
        leave(process, 64 * MIB)
        for _ in range(3):
            _, good = client.embed_batch([large, image])  # whether that fails depends on who decodes it
            assert isinstance(good, Embedding)
            np.testing.assert_array_equal(good.vector, usual.vector)
        resource.prlimit(process.pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert isinstance(client.embed(large), Embedding)


def test_a_search_service_without_memory_loses_nothing_that_it_acknowledged(tmp_path: Path) -> None:
    """What needs more than there is fails, or ends the process; it is started again, and has all of the rest."""
    flags = ["--milvus-uri", str(tmp_path / "milvus.db"), "--embedder", "127.0.0.1:1"]
    flags += ["--address", ANY_PORT, "--metrics-address", ANY_PORT]
    acknowledged: list[str] = []

    def store(client: Client, attributes: str) -> None:
        first = len(acknowledged)
        items = [
            Item(str(n), vector=Embedding([1, n, 0, 0], "mine"), attributes={"text": attributes})
            for n in range(first, first + 200)
        ]
        results = client.upsert("points", items)
        assert {result.outcome for result in results} == {UpsertOutcome.STORED}
        acknowledged.extend(result.id for result in results)

    def store_much(client: Client) -> None:
        for _ in range(50):
            store(client, "a" * 60_000)

    process = ServerProcess("search-service", "search_service.main", flags, tmp_path)
    process.__enter__()
    with Client(process.addresses.grpc, timeout=20, retry=False) as client:
        client.create_collection("points", space=VectorSpace("mine", 4))
        store(client, "")
        store(client, "a" * 60_000)
        leave(process, 8 * MIB)
        with pytest.raises(LookalikeError) as caught:
            store_much(client)
    print(f"{caught.value} after {len(acknowledged)} rows")
    os.kill(process.pid, signal.SIGKILL)  # where it has not ended by itself
    print("it ended with", os.waitstatus_to_exitcode(os.waitpid(process.pid, 0)[1]))
    with (
        ServerProcess("search-service", "search_service.main", flags, tmp_path) as process,
        Client(process.addresses.grpc) as client,
    ):
        for start in range(0, len(acknowledged), 500):
            some = acknowledged[start : start + 500]
            assert client.get("points", some, read_your_writes=True).missing_ids == ()
        store(client, "")
