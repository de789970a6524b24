"""Whether the client was the limit: figures then say more of it than of the server."""

from __future__ import annotations

import os

from workbench.loadtest.record import Record

_BUSY = 0.85  # of a core: an event loop so busy makes calls wait
_LATE_SHARE = 0.1
_LATE_MS = 1.0


def reasons(record: Record, processes: int) -> list[str]:
    """Returns in which ways the client held the calls up; none if it did not."""
    use, found = record.client(), []
    counts = record.counts
    busiest = max(use.cpu, default=0.0)
    cores = os.cpu_count() or 1
    if busiest >= _BUSY:
        more = "--processes " + str(processes + 1) if cores > processes else "a machine with more cores"
        found.append(f"a process of this client took {busiest:.0%} of a core: use {more}")
    if counts.overdue:
        found.append(f"{counts.overdue:,} calls were not sent because this client was more than a second late")
    late = use.late_ms["p99"]
    # Being late matters where it is a part of what is measured.
    slow = record.all.response.percentile(99) * 1e3
    if late > _LATE_MS and late > _LATE_SHARE * slow:
        found.append(f"1% of the calls were sent {late:.1f} ms late or later, where the p99 of all is {slow:.1f} ms")
    return found
