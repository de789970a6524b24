"""How a load test is going: a table that changes on a terminal, a line now and then elsewhere; on standard error."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

from workbench.loadtest.record import Record

if TYPE_CHECKING:
    from rich.live import Live

_SECONDS_BETWEEN_LINES = 5.0
_SECONDS_BETWEEN_LOOKS = 0.5


class View:
    """Shows a load test for as long as the context is open."""

    def __init__(self) -> None:
        self._open = ExitStack()
        self._live: Live | None = None
        self._shown = 0.0

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = self._open.enter_context(
                Live(console=Console(stderr=True), auto_refresh=False, transient=True)
            )
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def say(self, text: str) -> None:
        """Shows a line that stays."""
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def show(self, what: str, record: Record) -> None:
        """Shows how far a level is, if it is time to."""
        now = time.monotonic()
        if now - self._shown < (_SECONDS_BETWEEN_LINES if self._live is None else _SECONDS_BETWEEN_LOOKS):
            return
        self._shown = now
        elapsed = now - record.begin
        if elapsed < 0:
            if self._live is not None:
                self._live.update(f"{what}: warming up, {-elapsed:.0f} s", refresh=True)
            return
        # The last second that is over.
        second = record.series[min(max(0, int(elapsed) - 1), len(record.series) - 1)]
        figures = {
            "time": f"{min(elapsed, record.seconds):.0f} of {record.seconds:.0f} s",
            "offered/s": f"{record.counts.planned / max(elapsed, 1.0):,.0f}",
            "good replies/s": f"{second.ok:,}",
            "errors": f"{record.counts.failed:,}",
            "unsent": f"{record.counts.unsent:,}",
            "in flight": f"{second.in_flight:,}",
            "p50 ms": f"{record.all.response.percentile(50) * 1e3:.1f}",
            "p99 ms": f"{record.all.response.percentile(99) * 1e3:.1f}",
            "client CPU": " ".join(f"{cores:.0%}" for cores in record.client().cpu),
        }
        if self._live is None:
            print(
                f"  {what}: " + ", ".join(f"{name} {value}" for name, value in figures.items()),
                file=sys.stderr,
                flush=True,
            )
            return
        from rich.table import Table

        table = Table(title=what, title_justify="left", title_style="bold")
        for name in figures:
            table.add_column(name, justify="right")
        table.add_row(*figures.values())
        self._live.update(table, refresh=True)
