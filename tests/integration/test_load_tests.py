"""`lookalike loadtest` against servers whose times are known."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("hdrh", reason="the load test needs hdrhistogram: pip install 'lookalike[loadtest]'")

from workbench.errors import CommandError
from workbench.loadtest import preflight, report
from workbench.loadtest.connection import Connection

_SERVER = Path(__file__).with_name("timed_server.py")
_SECONDS = 120


class _Server:
    def __init__(self, log: Path, *flags: str) -> None:
        command = [sys.executable, str(_SERVER), "--log", str(log), *flags]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()
        self._log = log

    def wait_for_a_call(self) -> None:
        """Waits until the first call has come."""
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "called\n"

    def stop(self) -> dict[str, Any]:
        """Ends it and returns what it did."""
        self.process.terminate()
        self.process.wait(30)
        done: dict[str, Any] = json.loads(self._log.read_text())
        return done


@contextmanager
def _server(folder: Path, *flags: str) -> Iterator[_Server]:
    server = _Server(folder / "server.json", *flags)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.wait()


def _command(server: _Server, folder: Path, *flags: str) -> list[str]:
    base = [sys.executable, "-m", "workbench.main", "loadtest", "embed", "--embedder", server.address]
    return [*base, "--synthetic", "64x64", "--json", str(folder / "result.json"), *flags]


def _run(server: _Server, folder: Path, *flags: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    command = _command(server, folder, *flags)
    done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    written = folder / "result.json"
    return done, json.loads(written.read_text()) if written.exists() else {}


def _assert_adds_up(level: dict[str, Any]) -> None:
    counts = level["counts"]
    assert counts["planned"] == counts["sent"] + counts["unsent"]
    assert counts["unsent"] == counts["unsent_crowded"] + counts["unsent_overdue"]
    assert counts["sent"] == counts["ok"] + sum(counts["errors"].values()) + counts["cut_off"]
    assert counts["ok"] == sum(operation["ok"] for operation in level["operations"].values())


def test_a_stall_shows_in_full_from_intended_time_and_hardly_in_a_closed_loop(tmp_path: Path) -> None:
    seconds, rate = 6.0, 200
    stalling = ("--service-ms", "4", "--stall-at", "2", "--stall", "1.5")
    load = ("--duration", f"{seconds}s", "--warm-up", "0")
    with _server(tmp_path, *stalling) as server:
        done, result = _run(server, tmp_path, "--rate", str(rate), "--arrivals", "constant", *load)
        begin, end = server.stop()["stall"]
    assert done.returncode == 0, done.stderr
    # Calls that came due in the stall waited for its end: of n calls, the one at rank 0.99 n came 0.01 n / rate after
    # its begin. The log has how long the stall really was.
    truth = (end - begin) - 0.01 * seconds
    open_p99 = result["levels"][0]["response_ms"]["p99"] / 1e3
    assert open_p99 == pytest.approx(truth, rel=0.05)
    assert result["levels"][0]["counts"]["planned"] == rate * seconds
    _assert_adds_up(result["levels"][0])

    with _server(tmp_path, *stalling) as server:
        done, result = _run(server, tmp_path, "--concurrency", "1", *load)
    assert done.returncode == 0, done.stderr
    assert result["levels"][0]["service_ms"]["max"] / 1e3 > 1.4  # it was there
    assert result["levels"][0]["service_ms"]["p99"] / 1e3 < 0.05 * truth


def test_the_limit_of_a_server_of_known_capacity_is_found(tmp_path: Path) -> None:
    capacity = 270.0
    objective = ("--find-max", "--slo", "p99=300ms,errors=0.1%", "--arrivals", "constant", "--precision", "2%")
    with _server(tmp_path, "--capacity", str(capacity), "--queue-ms", "150") as server:
        done, result = _run(server, tmp_path, *objective, "--start-rate", "100", "--window", "1s", "--warm-up", "0.3s")
    assert done.returncode == 0, done.stderr
    if result["limit"]["client_limited"]:
        pytest.skip(f"this machine is too busy for a test of time, and the command said so: {result['warnings'][:1]}")
    assert result["limit"]["rate"] == pytest.approx(capacity, rel=0.05), result["limit"]
    assert result["limit"]["broken"] > capacity
    for level in result["levels"]:
        _assert_adds_up(level)


def test_calls_refused_and_calls_that_could_not_be_sent_are_counted(tmp_path: Path) -> None:
    with _server(tmp_path, "--capacity", "50", "--queue-ms", "2000") as server:
        flags = ("--rate", "150", "--duration", "3s", "--warm-up", "0", "--max-in-flight", "20", "--processes", "2")
        done, result = _run(server, tmp_path, *flags)
        answered = len(server.stop()["calls"])
    counts = result["levels"][0]["counts"]
    _assert_adds_up(result["levels"][0])
    assert counts["unsent_crowded"] > 100
    assert counts["ok"] == counts["sent"] == answered
    assert "unsent" in done.stdout
    with _server(tmp_path, "--capacity", "50", "--queue-ms", "50") as server:
        done, result = _run(
            server, tmp_path, "--rate", "150", "--duration", "3s", "--warm-up", "0", "--fail-if", "errors>1%"
        )
    assert done.returncode == 3
    _assert_adds_up(result["levels"][0])
    assert result["levels"][0]["counts"]["errors"]["RESOURCE_EXHAUSTED"] > 100


def test_several_processes_send_the_same_calls_as_one(tmp_path: Path) -> None:
    found = []
    for processes in ("1", "3"):
        with _server(tmp_path) as server:
            _, result = _run(server, tmp_path, "--rate", "100", "--duration", "2s", "--processes", processes)
        _assert_adds_up(result["levels"][0])
        found.append(result["levels"][0]["counts"]["planned"])
    assert found[0] == found[1]


@contextmanager
def _running(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """Runs a load test; the context is entered when the measurement has begun."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        assert "calls/s" in process.stderr.readline()
        yield process
    finally:
        process.kill()
        process.wait()


def test_ctrl_c_gives_the_report_of_what_ran(tmp_path: Path) -> None:
    with _server(tmp_path, "--service-ms", "2000") as server:
        command = _command(server, tmp_path, "--rate", "50", "--duration", "60s", "--warm-up", "0")
        with _running(command) as process:
            server.wait_for_a_call()
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "planned" in out
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["status"] == "interrupted"
    _assert_adds_up(result["levels"][0])
    assert result["levels"][0]["counts"]["cut_off"] > 0
    assert result["levels"][0]["seconds"] < 30


def test_a_target_that_dies_midway_is_reported(tmp_path: Path) -> None:
    with _server(tmp_path, "--service-ms", "2") as server:
        command = _command(server, tmp_path, "--rate", "50", "--duration", "60s", "--warm-up", "1s", "--give-up", "3s")
        with _running(command) as process:
            server.process.kill()
            out, err = process.communicate(timeout=40)
    assert process.returncode == 1, err
    assert "the target died" in out
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["status"] == "gave up"
    level = result["levels"][0]
    _assert_adds_up(level)
    assert level["counts"]["errors"]["UNAVAILABLE"] > 50
    assert [outage["over"] for outage in level["outages"]] == [False]


def test_a_target_that_is_not_there_is_said_within_two_seconds() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts connections, and never says anything
        silent_address = f"127.0.0.1:{silent.getsockname()[1]}"
        for address, reason in (("127.0.0.1:9", "UNAVAILABLE"), (silent_address, "no answer|UNAVAILABLE")):
            begin = time.monotonic()
            with pytest.raises(CommandError, match=reason) as raised:
                preflight.look(Connection(embedder=address), {"embedder"}, ())
            assert time.monotonic() - begin < 2.0
            assert address in str(raised.value)


def test_a_token_and_tls_reach_the_server(tmp_path: Path) -> None:
    new = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=embedder.test"]
    new += ["-addext", "subjectAltName=DNS:embedder.test", "-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run(new, cwd=tmp_path, check=True, capture_output=True)
    (tmp_path / "token").write_text("open sesame\n")
    pems = ("--cert", str(tmp_path / "cert.pem"), "--key", str(tmp_path / "key.pem"))
    trust = ("--ca", str(tmp_path / "cert.pem"), "--server-name", "embedder.test")
    load = ("--rate", "20", "--duration", "1s", "--warm-up", "0")
    with _server(tmp_path, *pems, "--token", "open sesame") as server:
        # Mutual TLS: the server trusts the same certificate.
        done, result = _run(server, tmp_path, *load, *trust, *pems, "--token-file", str(tmp_path / "token"))
        assert done.returncode == 0, done.stderr
        assert result["levels"][0]["counts"]["ok"] == result["levels"][0]["counts"]["planned"]
        assert "sesame" not in (tmp_path / "result.json").read_text()
        done, _ = _run(server, tmp_path, *load, *trust, *pems)
        assert (done.returncode, "UNAUTHENTICATED" in done.stderr) == (1, True)
        done, _ = _run(server, tmp_path, *load, *trust)
        assert done.returncode == 1
        assert "UNAVAILABLE" in done.stderr


def test_the_second_result_is_compared_with_the_first(tmp_path: Path) -> None:
    load = ("--rate", "100", "--duration", "3s", "--warm-up", "0.5s")
    with _server(tmp_path, "--service-ms", "5") as server:
        _run(server, tmp_path, *load)
    old = tmp_path / "old.json"
    os.replace(tmp_path / "result.json", old)
    with _server(tmp_path, "--service-ms", "40") as server:
        done, result = _run(server, tmp_path, *load, "--compare", str(old), "--html", str(tmp_path / "report.html"))
    assert done.returncode == 3, done.stderr
    assert result["comparison"]["verdict"] == "worse"
    verdicts = {figure["figure"]: figure["verdict"] for figure in result["comparison"]["levels"][0]["figures"]}
    assert verdicts["p50 ms"] == "worse"
    assert verdicts["errors"] == "same"
    assert not math.isnan(result["levels"][0]["response_ms"]["p99"])
    assert "<svg" in (tmp_path / "report.html").read_text()
    _assert_names_are_escaped(result)


def _assert_names_are_escaped(result: dict[str, Any]) -> None:
    """Whatever text of a result comes from outside, the report shows it as text."""
    nasty = '"><img src=x onerror=alert(1)>&'
    result["command"].append(nasty)
    result["warnings"].append(nasty)
    result["target"] = {nasty: {"address": nasty}}
    result["versions"] |= {nasty: nasty}
    result["machine"] |= {nasty: nasty}
    result["workload"] |= {"images": {"source": nasty}, "collections": [nasty], "filters": [nasty]}
    result["comparison"] |= {"old": nasty, "differences": [nasty]}
    result["levels"][0]["counts"]["errors"] = {nasty: 1}
    page = report.render(result)
    assert "<img" not in page
    assert page.count(escape(nasty)) >= 12
