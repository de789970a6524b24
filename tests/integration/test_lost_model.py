"""A real embedder whose model hangs: everybody is told, and the process ends for a new one to be started."""

import signal

import grpc
from embedder_process import TIMEOUT, running
from grpc_health.v1 import health_pb2

from lookalike.embedder.v1 import embedder_pb2

# The embedder with its own model, whose runs never end once a signal has come.
_HANGING = """
import signal, sys, threading
from embedder_service import main
from embedder_service.runtimes.openvino import OpenVinoRuntime

hang, run = threading.Event(), OpenVinoRuntime.run
signal.signal(signal.SIGUSR1, lambda *_: hang.set())

def hanging(self, images):
    if hang.is_set():
        threading.Event().wait()
    return run(self, images)

OpenVinoRuntime.run = hanging
sys.exit(main.main())
"""


def test_a_model_that_hangs_ends_the_process_and_no_call_waits_for_ever(bundle, demo_images):
    photographs = [path.read_bytes() for path in sorted(demo_images.copies.rglob("*.jpg"))[:8]]
    flags = ["--stall-timeout", "1", "--readiness-interval", "0.2"]
    with running(bundle, *flags, program=("-c", _HANGING)) as embedder:
        embedder.embed(photographs[0])
        watch = embedder.health.Watch(health_pb2.HealthCheckRequest(), timeout=TIMEOUT)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        embedder.process.send_signal(signal.SIGUSR1)
        calls = [
            embedder.stub.Embed.future(embedder_pb2.EmbedRequest(image=photograph), timeout=TIMEOUT)
            for photograph in photographs
        ]
        assert {call.code() for call in calls} == {grpc.StatusCode.UNAVAILABLE}
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert embedder.process.wait(TIMEOUT) == 1
