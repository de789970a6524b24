"""How long each stage of a request took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from service_kit import tracing


class Timings:
    """Collects the seconds spent in named stages, from its creation on."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._stages: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times the block as one stage, which is a span in traces."""
        started = time.monotonic()
        try:
            with tracing.span(name):
                yield
        finally:
            self._stages[name] = time.monotonic() - started

    def seconds(self) -> dict[str, float]:
        """Returns the seconds of each stage so far, and of everything as "total"."""
        return {**self._stages, "total": time.monotonic() - self._started}
