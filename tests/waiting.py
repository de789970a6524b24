"""Waiting for what is going on elsewhere: in threads, and in other processes."""

from __future__ import annotations

import time
from collections.abc import Callable

SECONDS = 60.0


def until(condition: Callable[[], object], seconds: float = SECONDS) -> None:
    """Returns as soon as a condition holds, and fails the test if it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"nothing came of it within {seconds:g} s"
        time.sleep(0.05)
