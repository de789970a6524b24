"""Progress of work that takes more than two seconds: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

_SECONDS_BETWEEN_LINES = 5.0


class Progress:
    """How far a piece of work is.

    Args:
        total: how much there is to do, in `unit`.
        unit: what is counted, in the plural: "images".
        show: called after every change.
    """

    def __init__(self, total: float, unit: str, show: Callable[[Progress], None]) -> None:
        self.total, self.done, self.failed = total, 0.0, 0
        self.total_known = True  # otherwise there is at least as much
        self._before = 0.0
        self._unit, self._show, self._started = unit, show, time.monotonic()

    def advance(self, amount: float = 1, failed: int = 0) -> None:
        """Adds `amount` to what is done; `failed` of it did not succeed."""
        self.done += amount
        self.failed += failed
        self._show(self)

    def set(
        self, done: float, failed: int, total: float, *, total_known: bool = True, done_before: float = 0.0
    ) -> None:
        """Says how far it is; `done_before` of what is done had been done before, and counts for no rate."""
        self.done, self.failed, self.total, self.total_known = done, failed, total, total_known
        self._before = done_before
        self._show(self)

    @property
    def finished(self) -> bool:
        """Whether all is done."""
        return self.total_known and self.done >= self.total

    def __str__(self) -> str:
        seconds = time.monotonic() - self._started
        rate = (self.done - self._before) / seconds if seconds > 0 else 0.0
        of = "/" if self.total_known else " of at least "
        parts = [f"{self.done:,.0f}{of}{self.total:,.0f} {self._unit}", f"{rate:,.{0 if rate >= 10 else 1}f}/s"]
        if self.finished:
            parts.append(f"{seconds:.1f} s")
        elif rate > 0 and self.total_known:
            parts.append(f"{(self.total - self.done) / rate:,.0f} s left")
        if self.failed:
            parts.append(f"{self.failed:,} failed")
        return ", ".join(parts)


@contextmanager
def progress(what: str, total: float, unit: str) -> Iterator[Progress]:
    """Shows the progress of `what` on standard error for as long as the context lasts.

    >>> with progress("Reading", len(files), "files") as bar:
    ...     for file in files:
    ...         file.read_bytes()
    ...         bar.advance()
    """
    what = what[:1].upper() + what[1:]
    with (_bar if sys.stderr.isatty() else _lines)(what, total, unit) as shown:
        yield shown


@contextmanager
def stages() -> Iterator[Callable[[str, int, int], None]]:
    """Shows the progress of work that goes through stages, one after the other, each with a bar of its own.

    Yields a function to call with the name of the stage, the steps done and the steps that there are.
    """
    with ExitStack() as current:
        bars: dict[str, Progress] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in bars:
                current.close()
                bars[stage] = current.enter_context(progress(stage, total, "steps"))
            bars[stage].advance(done - bars[stage].done)

        yield show


@contextmanager
def _bar(what: str, total: float, unit: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as RichProgress

    columns = (TextColumn("  {task.description}"), BarColumn(), TextColumn("{task.fields[status]}"))
    with RichProgress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total, status="")

        def show(now: Progress) -> None:
            bar.update(task, completed=now.done, total=now.total if now.total_known else None, status=str(now))

        yield Progress(total, unit, show)


@contextmanager
def _lines(what: str, total: float, unit: str) -> Iterator[Progress]:
    printed = time.monotonic()
    ended = False

    def show(now: Progress) -> None:
        nonlocal printed, ended
        if (now.finished and not ended) or time.monotonic() - printed >= _SECONDS_BETWEEN_LINES:
            printed, ended = time.monotonic(), now.finished
            print(f"  {what}: {now}", file=sys.stderr, flush=True)

    yield Progress(total, unit, show)
