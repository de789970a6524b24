"""Clocks that jump: the time of day of both services is set back and forth by libfaketime, while they run.

Only the time of day jumps, as when somebody sets it; what counts seconds (CLOCK_MONOTONIC) goes on, as it does then.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from deploy_tools import ROOT
from service_processes import embedder, searching

from lookalike import Client, Item
from workbench.demo_images import DemoImages

DAY = 24 * 3600


class Clock:
    """The time of day of processes that are started while it is there."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.jump(0)

    def jump(self, seconds: int) -> None:
        """Sets it so many seconds away from the true time."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:+d}")
        new.replace(self._file)


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clock:
    library = next((ROOT / ".venv-deploy" / "debian").glob("usr/lib/*/faketime/libfaketimeMT.so.1"), None)
    if library is None:
        pytest.skip("libfaketime is not installed: make check-deploy does so, on Debian")
    clock = Clock(tmp_path / "clock")
    monkeypatch.setenv("LD_PRELOAD", str(library))
    monkeypatch.setenv("FAKETIME_TIMESTAMP_FILE", str(tmp_path / "clock"))
    monkeypatch.setenv("FAKETIME_NO_CACHE", "1")
    monkeypatch.setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1")
    return clock


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
            for k in range(10):
                id = f"{n}-{k}"
                client.upsert("photos", [Item(id, image=image)])
                [record] = client.get("photos", [id], read_your_writes=True).records
                assert record.update_time
                assert abs(record.update_time.timestamp() - before - jump) < 60
                assert id in {hit.id for hit in client.search("photos", image=image, top_k=100).hits}
        assert client.count("photos") == 60
        assert len(list(client.scan("photos"))) == 60
    for log in tmp_path.glob("*.log"):
        assert "circuit opened" not in log.read_text()
        assert "not ready" not in log.read_text().partition("serving")[2]


_ = (os, Iterator)
