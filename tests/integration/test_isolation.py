"""A real embedder whose decoders crash, hang and are killed: each fault costs one image, none outlives the server."""

import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import psutil
import pytest
from embedder_process import TIMEOUT, running
from google.rpc import code_pb2
from grpc_health.v1 import health_pb2
from hostile_images import real_images
from poisoned_decoder import CRASH, HANG, LIE
from waiting import until

from lookalike.embedder.v1 import embedder_pb2

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="all of it is only on Linux")
# The embedder with decoders that some files are poison for.
POISONED = f"""
import sys
sys.path.append({str(Path(__file__).parents[1])!r})
from embedder_service import decode_process, main
decode_process.PROGRAM = "poisoned_decoder"
sys.exit(main.main())
"""


# The embedder, which finds no interpreter between two signals.
WITHOUT_PYTHON = """
import signal, sys
from embedder_service import main
for number, path in (signal.SIGUSR1, "/no/python"), (signal.SIGUSR2, sys.executable):
    signal.signal(number, lambda *_, path=path: setattr(sys, "executable", path))
sys.exit(main.main())
"""


def decoders(embedder):
    return psutil.Process(embedder.process.pid).children()


@pytest.fixture(scope="module")
def photographs(demo_images):
    return [path.read_bytes() for path in sorted(demo_images.copies.rglob("*.jpg"))[:8]]


def test_vectors_are_the_same_from_processes_and_from_threads(bundle):
    images = [data for _, data in real_images()]
    vectors = {}
    for isolation in ("process", "thread"):
        with running(bundle, "--decode-isolation", isolation) as embedder:
            assert bool(decoders(embedder)) is (isolation == "process")
            vectors[isolation] = [result.embedding for result in embedder.embed_batch(images).results]
    assert all(len(vector.values) for vector in vectors["process"])
    assert vectors["process"] == vectors["thread"]


def test_among_poisonous_images_all_good_ones_are_embedded(bundle, photographs):
    flags = ["--decode-threads", "4", "--decode-timeout", "1"]
    poison = [photographs[0] + bytes([n]) + word for n, word in enumerate((CRASH, LIE, CRASH, HANG, CRASH, CRASH))]
    with running(bundle, *flags, program=("-c", POISONED)) as embedder, ThreadPoolExecutor() as threads:
        expected = embedder.embed_batch(photographs).results
        poisonings = [threads.submit(embedder.embed_batch, [image, *photographs]) for image in poison]
        for number, poisoning in enumerate(poisonings):
            bad, *good = poisoning.result().results
            lie = poison[number].endswith(LIE)
            assert bad.error.code == (code_pb2.INTERNAL if lie else code_pb2.INVALID_ARGUMENT)
            assert [result.embedding for result in good] == [result.embedding for result in expected]
        page = embedder.metrics()
        for reason, count in {"crashed": 4, "timeout": 1, "garbled": 1}.items():
            assert f'embedder_decoders_lost_total{{reason="{reason}"}} {count}.0' in page
        until(lambda: len(decoders(embedder)) == 4)


def test_deadlines_hold_while_a_decoder_hangs(bundle, photographs):
    with running(bundle, "--decode-threads", "1", program=("-c", POISONED)) as embedder:
        request = embedder_pb2.EmbedRequest(image=photographs[0] + HANG)
        with pytest.raises(grpc.RpcError) as caught:
            embedder.stub.Embed(request, timeout=0.5)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_without_a_decoder_calls_and_health_say_so_until_there_is_one(bundle, photographs):
    flags = ["--decode-threads", "1", "--readiness-interval", "0.2"]
    with running(bundle, *flags, program=("-c", WITHOUT_PYTHON)) as embedder:
        watch = embedder.health.Watch(health_pb2.HealthCheckRequest(), timeout=TIMEOUT)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        embedder.process.send_signal(signal.SIGUSR1)
        decoders(embedder)[0].kill()
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(grpc.RpcError) as caught:
            embedder.embed(photographs[0])
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "no decoder can be started" in caught.value.details()
        embedder.process.send_signal(signal.SIGUSR2)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        assert embedder.embed(photographs[0]).embedding.values


def test_no_decoder_outlives_a_server_that_is_killed(bundle, photographs):
    with running(bundle, "--decode-threads", "3", program=("-c", POISONED)) as embedder:
        # One that was replaced, and one that hangs in an image, and so does not see that its input has ended.
        embedder.embed_batch([photographs[0] + CRASH])
        until(lambda: len(decoders(embedder)) == 3)
        processes = decoders(embedder)
        spent = {process: process.cpu_times().user for process in processes}
        call = embedder.stub.Embed.future(embedder_pb2.EmbedRequest(image=photographs[0] + HANG), timeout=TIMEOUT)
        until(lambda: any(process.cpu_times().user > spent[process] + 0.2 for process in processes))
        embedder.process.kill()
        until(lambda: not any(process.is_running() for process in processes))
        assert call.code() is grpc.StatusCode.UNAVAILABLE


def test_sigterm_to_all_processes_lets_calls_finish_and_ends_the_decoders(bundle, photographs):
    with running(bundle) as embedder:
        processes = decoders(embedder)
        images = [photographs[0] + number.to_bytes(4, "big") for number in range(120)]
        call = embedder.stub.EmbedBatch.future(embedder_pb2.EmbedBatchRequest(images=images), timeout=TIMEOUT)
        while embedder.metric("embedder_queue_depth") < 100:
            assert not call.done(), "the call was over before the signal"
        for process in (*processes, embedder.process):
            process.send_signal(signal.SIGTERM)
        assert all(result.HasField("embedding") for result in call.result().results)
        assert embedder.process.wait(TIMEOUT) == 0
        assert not any(process.is_running() for process in processes)
