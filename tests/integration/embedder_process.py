"""A real embedder process on loopback, for the tests to call."""

import json
import re
import subprocess
import sys
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import grpc
import psutil
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2_grpc

import embedder_service
from lookalike.embedder.v1 import embedder_pb2, embedder_pb2_grpc

ROOT = Path(embedder_service.__file__).parents[1]
TIMEOUT = 60


class Embedder:
    """An embedder process and a channel to it."""

    def __init__(self, process, address, channel, metrics):
        self.process = process
        self.address = address
        self.stub = embedder_pb2_grpc.EmbedderServiceStub(channel)
        self.health = health_pb2_grpc.HealthStub(channel)
        self.reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        self._metrics = metrics

    def embed(self, image, **fields):
        return self.stub.Embed(embedder_pb2.EmbedRequest(image=image, **fields), timeout=TIMEOUT)

    def embed_batch(self, images, **fields):
        return self.stub.EmbedBatch(embedder_pb2.EmbedBatchRequest(images=images, **fields), timeout=TIMEOUT)

    def memory(self, name="VmRSS"):
        """Bytes of memory the process and those that decode for it hold, or with "VmHWM" held at their peaks."""
        pids = [self.process.pid, *(child.pid for child in psutil.Process(self.process.pid).children())]
        statuses = [Path(f"/proc/{pid}/status").read_text() for pid in pids]
        return sum(1024 * int(re.search(rf"^{name}:\s+(\d+) kB$", text, re.MULTILINE)[1]) for text in statuses)

    def metrics(self):
        """The page of metrics."""
        with urllib.request.urlopen(f"http://{self._metrics}/metrics", timeout=TIMEOUT) as page:
            return page.read().decode()

    def metric(self, name):
        """The value of a metric without labels."""
        return float(re.search(rf"^{name} (\S+)$", self.metrics(), re.MULTILINE)[1])


@contextmanager
def running(bundle, *flags, program=("-m", "embedder_service.main")):
    """Runs an embedder, or a program that is one, until the context ends."""
    command = [
        *(sys.executable, *program, "--bundle", bundle, "--log-format", "json"),
        *("--address", "127.0.0.1:0", "--metrics-address", "127.0.0.1:0", "--drain-delay", "0"),
    ]
    with subprocess.Popen([*command, *flags], cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            log = {}
            while "serving" not in log:
                line = process.stderr.readline()
                assert line.startswith("{"), line + process.stderr.read()
                entry = json.loads(line)
                log[entry["event"]] = entry
            # What libtiff writes of damaged files must not fill the pipe.
            Thread(target=process.stderr.read, daemon=True).start()
            with grpc.insecure_channel(log["listening"]["address"]) as channel:
                yield Embedder(process, log["listening"]["address"], channel, log["listening"]["metrics_address"])
        finally:
            process.kill()
