"""Clocks that jump: somebody sets the time of day, back and forth, under both services."""

from __future__ import annotations

import shutil
import struct
import subprocess
import time
from pathlib import Path

import pytest
from service_processes import embedder, searching

from lookalike import Client, Item
from workbench.demo_images import DemoImages

SOURCE = Path(__file__).parents[1] / "jumping_clock.c"
DAY = 24 * 3600


class Clock:
    """The time of day of the processes that are started while it is there."""

    def __init__(self, file: Path) -> None:
        self._file = file
        file.write_bytes(bytes(8))

    def jump(self, seconds: int) -> None:
        """Sets it so many seconds away from the true time."""
        with self._file.open("r+b") as file:  # in place: the processes have mapped it
            file.write(struct.pack("q", seconds))


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clock:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler for tests/jumping_clock.c: install one, as `cc`")
    library = tmp_path / "jumping_clock.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", library, SOURCE, "-ldl"], check=True)
    monkeypatch.setenv("LD_PRELOAD", str(library))
    monkeypatch.setenv("JUMPING_CLOCK", str(tmp_path / "clock"))
    return Clock(tmp_path / "clock")


def test_no_call_fails_or_waits_when_the_clock_jumps(
    clock: Clock, tmp_path: Path, bundle: Path, demo_images: DemoImages
) -> None:
    """The time of day stands in rows alone (when they were written), and decides over nothing else."""
    image = demo_images.queries[0].read_bytes()
    with (
        embedder("one", bundle, tmp_path) as model,
        searching(tmp_path, model.addresses.grpc) as address,
        Client(address, timeout=10, retry=False) as client,
    ):
        client.create_collection("photos")
        for n, jump in enumerate((0, DAY, -365 * DAY, 3600, -1, 0)):
            clock.jump(jump)
            before = time.time()
            for k in range(5):
                id = f"{n}-{k}"
                client.upsert("photos", [Item(id, image=image)])
                [record] = client.get("photos", [id], read_your_writes=True).records
                assert record.update_time
                assert abs(record.update_time.timestamp() - before - jump) < 60
                assert id in {hit.id for hit in client.search("photos", image=image, top_k=100).hits}
        assert client.count("photos") == 30
        assert len(list(client.scan("photos"))) == 30
    for log in tmp_path.glob("*.log"):
        assert "circuit opened" not in log.read_text()
        assert "not ready" not in log.read_text().partition("serving")[2]
