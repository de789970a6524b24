"""Servers as child processes: their start, their end, and what is said when either goes wrong.

The children are small servers of these tests' own, which keep the promises of ours: they write the address file when
they serve, answer health checks, and end with 0 on SIGTERM.
"""

import os
import signal
import sys

import grpc
import pytest

from workbench.errors import CommandError
from workbench.services import ServerProcess

_SERVER = """
import json, os, signal, sys, threading
from concurrent.futures import ThreadPoolExecutor
import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

behaviour, address_file = sys.argv[1], sys.argv[sys.argv.index("--address-file") + 1]
print("the log says", behaviour, flush=True)
if behaviour == "dies":
    sys.exit(3)
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: None if behaviour == "stubborn" else stop.set())
if behaviour == "hangs":
    stop.wait()
    sys.exit(0)
server = grpc.server(ThreadPoolExecutor(1))
servicer = health.HealthServicer()
status = health_pb2.HealthCheckResponse
servicer.set("", status.NOT_SERVING if behaviour == "sick" else status.SERVING)
health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
server.start()
with open(address_file + ".new", "w") as file:
    json.dump({"grpc": address, "metrics": "127.0.0.1:1"}, file)
os.rename(address_file + ".new", address_file)
stop.wait()
server.stop(None).wait()
sys.exit(5 if behaviour == "fails" else 0)
"""


@pytest.fixture
def child(tmp_path, monkeypatch):
    (tmp_path / "small_child_server.py").write_text(_SERVER)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, sys.path)]))

    def make(behaviour, **options):
        return ServerProcess("greeter", "small_child_server", [behaviour], tmp_path / "logs", **options)

    return make


def _ended(server):
    return server._process.poll() is not None


def test_a_server_serves_within_the_context_and_is_gone_after_it(child):
    with child("works") as server:
        server.check()
        with grpc.insecure_channel(server.addresses.grpc) as channel:
            grpc.channel_ready_future(channel).result(timeout=10)
    assert _ended(server)
    assert "the log says works" in server.log.read_text()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_server_is_stopped_when_the_work_fails(child, error):
    with pytest.raises(error), child("works") as server:
        raise error
    assert _ended(server)


def test_a_server_that_dies_at_the_start_is_reported_with_its_log(child):
    with pytest.raises(CommandError) as caught, child("dies"):
        pass
    assert "the greeter ended by itself with exit code 3" in str(caught.value)
    assert "the log says dies" in str(caught.value)


def test_a_server_that_does_not_get_ready_is_stopped_and_reported_with_its_log(child):
    server = child("hangs", ready_seconds=2.0)
    with pytest.raises(CommandError) as caught, server:
        pass
    assert "was not ready within 2 s" in str(caught.value)
    assert "the log says hangs" in str(caught.value)
    assert _ended(server)


def test_a_server_that_says_it_does_not_serve_is_not_used(child):
    server = child("sick")
    with pytest.raises(CommandError, match="says that it does not serve"), server:
        pass
    assert _ended(server)


def test_a_server_that_dies_later_is_noticed(child):
    def work():
        with child("works") as server:
            os.kill(server.pid, signal.SIGKILL)
            server.check(wait=10)

    with pytest.raises(CommandError, match="ended by itself with exit code -9"):
        work()


def test_an_exit_code_other_than_0_is_reported(child):
    with pytest.raises(CommandError, match="ended with exit code 5 instead of 0"), child("fails"):
        pass


def test_the_first_error_is_the_one_that_is_reported(child):
    with pytest.raises(RuntimeError, match="the work failed"), child("fails"):
        raise RuntimeError("the work failed")


def test_a_server_that_ignores_the_signal_is_killed(child, monkeypatch):
    monkeypatch.setattr("workbench.services._STOP_SECONDS", 1.0)
    with pytest.raises(CommandError, match="ended with exit code -9"), child("stubborn") as server:
        pass
    assert _ended(server)
