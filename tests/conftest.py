"""What several kinds of tests need: a receiver of traces, and the backends of the search service."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator
from typing import Any, Literal

import pytest

from benchmarks.milvus_server import MilvusServer, why_not

Backend = Literal["lite", "server"]
# By default its parts look around every second or less often, which makes a collection take three to be ready.
_QUICK = {
    "QUERYCOORD_CHECKCHANNELINTERVAL": "100",  # milliseconds
    "QUERYCOORD_CHECKSEGMENTINTERVAL": "100",
    "QUERYCOORD_DISTPULLINTERVAL": "100",
    "PROXY_TIMETICKINTERVAL": "50",
    "QUERYCOORD_LEADERVIEWUPDATEINTERVAL": "1",  # seconds
    "QUERYCOORD_UPDATENEXTTARGETINTERVAL": "1",
}
_SERVER = pytest.StashKey[MilvusServer]()


@pytest.fixture(autouse=True)
def _log_level(caplog: pytest.LogCaptureFixture) -> None:
    """A test finds the levels of a new process, of pytest's handler, too, whatever a library has set before."""
    logging.disable(logging.NOTSET)
    caplog.set_level(logging.WARNING)


@pytest.fixture
def collector() -> Iterator[Any]:
    """A receiver of traces; its `environment` has processes send theirs to it."""
    from otlp_receiver import OtlpReceiver

    with OtlpReceiver() as receiver:
        yield receiver


@pytest.fixture(scope="session", params=["lite", pytest.param("server", marks=pytest.mark.milvus_server)])
def backend(request: pytest.FixtureRequest) -> Backend:
    """What Milvus there is: a test that uses it, also through other fixtures, runs once on each."""
    chosen: Backend = request.param
    return chosen


@pytest.fixture(scope="session")
def milvus_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MilvusServer]:
    """The one Milvus server of a run of tests."""
    if reason := why_not():
        pytest.skip(reason)
    server = MilvusServer(tmp_path_factory.mktemp("milvus"), configuration=_QUICK)
    request.config.stash[_SERVER] = server
    yield server
    server.kill()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Shows the end of the Milvus server's log with a test on it that failed."""
    report = yield
    server = item.config.stash.get(_SERVER, None)
    if report.failed and server is not None and item.get_closest_marker("milvus_server"):
        report.sections.append((f"the end of {server.log}", server.end_of_log()))
    return report
