"""A server as a process of its own: exit codes, messages and signals."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import grpc
import pytest

import service_kit
from lookalike.embedder.v1 import embedder_pb2, embedder_pb2_grpc

SERVER = Path(__file__).with_name("small_server.py")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(service_kit.__file__).parents[1])}


def test_a_call_in_flight_finishes_after_sigterm_and_the_exit_code_is_0(start_process):
    process, events = start_process()
    with grpc.insecure_channel(events["address"]) as channel:
        stub = embedder_pb2_grpc.EmbedderServiceStub(channel)
        stub.Embed(embedder_pb2.EmbedRequest(image=b"ok"), timeout=10)
        call = stub.Embed.future(embedder_pb2.EmbedRequest(image=b"hold"), timeout=10)
        begun = threading.Event()
        # Calls of one connection are taken up in order: when this one is answered, the other one is in flight.
        stub.Embed.future(embedder_pb2.EmbedRequest(image=b"ok"), timeout=10).add_done_callback(lambda _: begun.set())
        assert begun.wait(10)
        process.send_signal(signal.SIGTERM)
        assert json.loads(process.stderr.readline())["event"] == "draining"
        process.stdin.write("go on\n")
        process.stdin.flush()
        assert call.result().model_fingerprint == "abc"
    assert process.wait(10) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_the_server_is_ready_ends_it_too(start_process, number):
    process, _ = start_process("--log-level=DEBUG", until="not ready")
    process.send_signal(number)
    assert process.wait(10) == 0


def run(*flags):
    return subprocess.run(
        [sys.executable, SERVER, *flags], capture_output=True, text=True, timeout=30, env=ENVIRONMENT, check=False
    )


def test_a_port_in_use_is_the_last_thing_the_process_says():
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        done = run(f"--address={address}")
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]  # gRPC's own log comes before
    assert f"cannot serve: cannot serve on {address}: the port is in use" in line


def test_a_wrong_flag_ends_the_process_with_code_2():
    done = run("--grace=soon")
    assert done.returncode == 2
    assert "--grace: 'soon' is not of type float" in done.stderr
