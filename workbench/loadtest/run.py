"""A load test from its settings to its result."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from workbench.loadtest import bottleneck, compare, gates, limit, prometheus, recall, result, summary
from workbench.loadtest.connection import Connection
from workbench.loadtest.fleet import Fleet, Interrupt, interrupt
from workbench.loadtest.limit import Judge, Limit, Probe, Verdict
from workbench.loadtest.live import View
from workbench.loadtest.load import Batch, ClosedLoop, Job, Load, OpenLoop
from workbench.loadtest.operations import Workload
from workbench.loadtest.preflight import Targets
from workbench.loadtest.record import Record
from workbench.loadtest.schedule import steady
from workbench.loadtest.settings import FindMax, Settings

INTERRUPTED, FAILED, GATE_FAILED = 130, 1, 3
# Time for every process to take up a job before its first call is due.
_HEAD_START = 0.2
_FIRST_CALLERS = 8


@dataclass
class _Level:
    """A level that ran: what it found, and whether it went to its end."""

    record: Record
    complete: bool
    limits: list[str]
    servers: dict[str, Any] | None = None
    recall: dict[str, Any] | None = None

    def result(self) -> dict[str, Any]:
        found = result.of_level(self.record, complete=self.complete, limits=self.limits)
        return found | {"recall": self.recall, "servers": self.servers}


class LoadTest:
    """Runs the levels of a load test, or the search for the limit."""

    def __init__(self, settings: Settings, workload: Workload, connection: Connection, targets: Targets) -> None:
        self._settings, self._workload, self._connection, self._targets = settings, workload, connection, targets
        self._levels: list[_Level] = []
        self._limit: Limit | None = None
        self._warnings: list[str] = []
        self._gave_up = False

    def run(self) -> tuple[dict[str, Any], int]:
        """Runs it; returns the result and the exit code."""
        began = datetime.now(UTC)
        with interrupt() as asked:
            with Fleet(self._workload, self._connection, self._settings.processes) as fleet, View() as view:
                self._fleet, self._view, self._asked = fleet, view, asked
                if self._settings.find_max is not None:
                    self._search(self._settings.find_max)
                else:
                    for load in self._settings.levels:
                        if asked.requested or self._gave_up:
                            break
                        self._levels.append(self._level(load, summary.title({"load": result.of_load(load)})))
            found = self._result(asked)
        return found, self._finish(found, began, asked)

    def _level(self, load: Load, what: str, judge: Callable[[Job], Judge] | None = None) -> _Level:
        """Runs one level; a judge may end it as soon as it has a verdict."""
        settings, workload = self._settings, self._workload
        begin = time.monotonic() + _HEAD_START + load.warm_up_seconds
        job = Job(load, begin, settings.timeout, settings.most_in_flight)
        record = Record(job, workload.names, settings.processes)
        judging = judge(job) if judge else None
        verdict: Verdict | None = None

        def on_batch(batch: Batch) -> None:
            record.add(batch)
            if judging:
                judging.add(batch)

        def should_stop() -> bool:
            nonlocal verdict
            self._view.show(what, record)
            now = time.monotonic()
            if self._asked.requested:
                return True
            if judging and (verdict := judging.verdict(now)):
                return True
            waited = now - max(record.last_reply, begin - load.warm_up_seconds)
            self._gave_up = waited > settings.give_up and (
                record.counts.failed > 0 or record.counts.planned > record.counts.sent
            )
            return self._gave_up

        with prometheus.reading(settings.prometheus, begin) as servers:
            complete = self._fleet.run(job, on_batch, should_stop)
        if not complete:
            record.end(time.monotonic())
        level = _Level(record, complete or verdict is not None, bottleneck.reasons(record, settings.processes))
        level.servers = servers.result(begin, begin + record.seconds)
        if record.recall and not self._asked.requested:
            self._view.say(f"  comparing {len(record.recall)} replies with the exact answer")
            level.recall = recall.compare(self._connection, workload, record.recall, settings.timeout)
        self._verdict, self._figures = verdict, judging.last_figures() if judging else []
        return level

    def _search(self, find: FindMax) -> None:
        """Searches for the limit."""
        start = find.start
        if start is None:
            load = ClosedLoop(_FIRST_CALLERS, find.window, self._settings.warm_up)
            level = self._level(load, f"finding a rate to begin with, {_FIRST_CALLERS} callers")
            start = limit.first_rate(level.record.goodput)

        def probe(rate: float) -> Probe | None:
            if self._asked.requested or self._gave_up:
                return None
            schedule = steady(rate, find.window * find.most_windows, find.arrivals, self._settings.seed)
            warm_up = (
                steady(rate, self._settings.warm_up, find.arrivals, self._settings.seed + 1)
                if self._settings.warm_up
                else None
            )
            load = OpenLoop(schedule, warm_up)
            level = self._level(
                load, f"{rate:,.4g} calls/s", lambda job: Judge(find, load, job.begin, self._workload.names)
            )
            self._levels.append(level)
            if self._asked.requested or self._gave_up:
                return None
            verdict = self._verdict or "unstable"
            self._view.say(
                f"  {rate:,.1f} calls/s: {verdict}, p99 {level.record.all.response.percentile(99) * 1e3:.1f} ms"
            )
            return Probe(verdict, self._figures, bool(level.limits))

        self._limit = limit.search(find, start, probe)

    def _result(self, asked: Interrupt) -> dict[str, Any]:
        settings = self._settings
        levels = [level.result() for level in self._levels]
        if settings.find_max is not None:
            levels.sort(key=lambda level: float(level["load"]["rate"]))
        status = "interrupted" if asked.requested else "gave up" if self._gave_up else "complete"
        found: dict[str, Any] = {
            "schema": result.SCHEMA,
            "status": status,
            **result.surroundings(),
            "target": self._targets.described,
            "workload": result.of_workload(self._workload),
            "connection": {
                "processes": settings.processes,
                "channels": self._connection.channels,
                "load_balancing": self._connection.load_balancing,
                "tls": self._connection.security.encrypted,
                "compression": self._connection.compression,
                "timeout_seconds": settings.timeout,
                "most_in_flight": settings.most_in_flight,
            },
            "levels": levels,
            "knee": limit.knee(
                [level["rates"]["goodput"] for level in levels], [level["response_ms"]["mean"] for level in levels]
            ),
            "limit": None,
        }
        if self._limit is not None and settings.find_max is not None:
            objective = [bound.text for bound in settings.find_max.objective]
            found["limit"] = {"objective": objective, **dataclasses.asdict(self._limit)}
        found["gates"] = [self._gate(bound) for bound in settings.fail_if]
        found["warnings"] = self._all_warnings(levels)
        found = result.plain(found)
        if settings.compare is not None and levels:
            found["comparison"] = compare.compare(
                result.read(settings.compare), found, settings.tolerance, settings.seed
            )
        return found

    def _gate(self, bound: gates.Bound) -> dict[str, Any]:
        """Returns whether a condition to fail at is met by any level, or, of a search for the limit, by the limit's."""
        if bound.figure == "max-rate":
            figures = [self._limit.rate or 0.0] if self._limit else []
        else:
            levels = self._levels
            if self._limit is not None:
                levels = [level for level in levels if _rate(level.record.job.load) == self._limit.rate]
            means = [level.recall["mean"] if level.recall else float("nan") for level in levels]
            figures = [gates.figure(level.record, bound, mean) for level, mean in zip(levels, means, strict=True)]
        known = [figure for figure in figures if figure == figure]
        # Nothing that could be compared is a failure as well: a test that did not run passes nothing.
        failed = not known or any(bound.holds(figure) for figure in known)
        worst = (max if bound.relation.startswith(">") else min)(known, default=None)
        return {"condition": bound.text, "failed": failed, "figure": _shown(bound, worst), "value": worst}

    def _all_warnings(self, levels: list[dict[str, Any]]) -> list[str]:
        found = list(self._warnings)
        for level in levels:
            name = summary.title(level)
            found += [f"{name}: this client was the limit: {reason}" for reason in level["client"]["reasons"]]
            if any(not outage["over"] for outage in level["outages"]):
                found.append(f"{name}: the target died: no server answered any more")
        if self._gave_up:
            found.append(f"ended before its time: there was no good reply for {self._settings.give_up:.0f} s")
        return found

    def _finish(self, found: dict[str, Any], began: datetime, asked: Interrupt) -> int:
        """Writes the files; returns the exit code."""
        settings = self._settings
        if settings.json:
            result.write(settings.json, found)
        if settings.hdr:
            result.write_hdr(settings.hdr, began, found["levels"])
        if settings.html:
            from workbench.loadtest import report

            report.write(settings.html, found)
        if asked.requested:
            return INTERRUPTED
        died = any(not outage["over"] for level in found["levels"] for outage in level["outages"])
        if self._gave_up or died or not any(level["counts"]["ok"] for level in found["levels"]):
            return FAILED
        worse = found.get("comparison", {}).get("verdict") == "worse"
        return GATE_FAILED if worse or any(gate["failed"] for gate in found["gates"]) else 0


def _rate(load: Load) -> float | None:
    return load.schedule.rate if isinstance(load, OpenLoop) else None


def _shown(bound: gates.Bound, value: float | None) -> str:
    if value is None:
        return "no figure"
    if bound.figure in {"errors", "unsent"}:
        return f"{value:.3%}"
    if bound.figure in {"rate", "max-rate", "recall"}:
        return f"{value:,.4g}"
    return f"{summary.ms(value * 1e3)} ms"
