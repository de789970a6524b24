"""How long each stage of a request took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from search_service import metrics
from service_kit import calls, tracing


@contextmanager
def timed(stage: str) -> Iterator[None]:
    """Times the block as a stage: for the metrics, as a span in traces, and for the log if the call is slow."""
    started = time.monotonic()
    try:
        with tracing.span(stage):
            yield
    finally:
        seconds = time.monotonic() - started
        metrics.STAGE.labels(stage).observe(seconds)
        calls.note(stage, round(seconds, 6))


class Timings:
    """Collects the seconds spent in named stages, from its creation on."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._stages: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times the block as one stage."""
        started = time.monotonic()
        try:
            with timed(name):
                yield
        finally:
            self._stages[name] = time.monotonic() - started

    def seconds(self) -> dict[str, float]:
        """Returns the seconds of each stage so far, and of everything as "total"."""
        return {**self._stages, "total": time.monotonic() - self._started}
