"""A real embedder process on loopback, serving a real model."""

import json
import re
import signal
import struct
import subprocess
import sys
import urllib.request
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
import skimage
from google.rpc import code_pb2, error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

import embedder_service
from embedder_service import decode
from embedder_service.model import bundle as bundles
from embedder_service.runtimes import load_runtime
from embedder_service.runtimes.openvino import fastest
from lookalike.embedder.v1 import embedder_pb2, embedder_pb2_grpc

SERVICE = "lookalike.embedder.v1.EmbedderService"
ROOT = Path(embedder_service.__file__).parents[1]
TIMEOUT = 60
PHOTOGRAPHS = [
    Path(skimage.__file__).parent / "data" / name
    for name in (
        *("rocket.jpg", "hubble_deep_field.jpg", "retina.jpg", "astronaut.png", "brick.png", "camera.png"),
        *("chelsea.png", "coffee.png", "coins.png", "grass.png", "gravel.png", "moon.png"),
    )
]


class Embedder:
    """An embedder process and a channel to it."""

    def __init__(self, process, channel, metrics):
        self.process = process
        self.stub = embedder_pb2_grpc.EmbedderServiceStub(channel)
        self.health = health_pb2_grpc.HealthStub(channel)
        self.reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        self._metrics = metrics

    def embed(self, image, **fields):
        return self.stub.Embed(embedder_pb2.EmbedRequest(image=image, **fields), timeout=TIMEOUT)

    def embed_batch(self, images, **fields):
        return self.stub.EmbedBatch(embedder_pb2.EmbedBatchRequest(images=images, **fields), timeout=TIMEOUT)

    def metrics(self):
        """The page of metrics."""
        with urllib.request.urlopen(f"http://{self._metrics}/metrics", timeout=TIMEOUT) as page:
            return page.read().decode()

    def metric(self, name):
        """The value of a metric without labels."""
        return float(re.search(rf"^{name} (\S+)$", self.metrics(), re.MULTILINE)[1])


@contextmanager
def running(bundle, *flags):
    """Runs an embedder until the context ends."""
    command = [
        *(sys.executable, "-m", "embedder_service.main", "--bundle", bundle, "--log-format", "json"),
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
            with grpc.insecure_channel(log["listening"]["address"]) as channel:
                yield Embedder(process, channel, log["listening"]["metrics_address"])
        finally:
            process.kill()


@pytest.fixture(scope="module")
def embedder(bundle):
    with running(bundle) as embedder:
        yield embedder


@pytest.fixture(scope="session")
def photographs():
    return [path.read_bytes() for path in PHOTOGRAPHS]


def rejected(call, *args, **fields):
    with pytest.raises(grpc.RpcError) as caught:
        call(*args, **fields)
    return caught.value


def vector(embedding):
    return np.array(embedding.values, np.float32)


def huge_png():
    """A PNG file of 30,000 x 30,000 pixels in a few kilobytes."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(4 << 20), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_get_model_describes_the_bundle_and_the_limits(embedder, bundle):
    manifest = bundles.load(bundle).manifest
    response = embedder.stub.GetModel(embedder_pb2.GetModelRequest(), timeout=TIMEOUT)
    model, limits = response.model, response.limits
    assert model.fingerprint == manifest.fingerprint
    assert model.dimension == manifest.dims
    assert (model.backbone, model.weights_source) == ("efficientnet_lite0", manifest.weights.source)
    assert (model.input_height, model.input_width) == (224, 224)
    assert (model.runtime, model.device) == ("openvino", "CPU")
    assert embedder_pb2.Precision.Name(model.precision) == f"PRECISION_{fastest(manifest.precisions).upper()}"
    assert len(model.precision_losses) == len(manifest.precisions)
    assert 0 < model.explained_variance_ratio <= 1
    assert all(loss.mean_cosine > 0.9 for loss in model.precision_losses)
    assert limits.max_image_bytes == 16 << 20
    assert limits.max_image_pixels == decode.DEFAULT_MAX_PIXELS
    assert limits.max_batch_images == 256
    assert limits.max_message_bytes == 64 << 20


def test_the_service_gives_the_vectors_of_the_bare_runtime(embedder, bundle, photographs):
    opened = bundles.load(bundle)
    size = opened.manifest.input
    runtime = load_runtime(opened)
    expected = [
        runtime.run(decode.decode(photograph, height=size.height, width=size.width, resize=size.resize)[np.newaxis])[0]
        for photograph in photographs
    ]
    runtime.close()
    response = embedder.embed_batch(photographs)
    assert response.model_fingerprint == opened.manifest.fingerprint
    for photograph, result, right in zip(photographs, response.results, expected, strict=True):
        single = embedder.embed(photograph)
        assert single.model_fingerprint == opened.manifest.fingerprint
        np.testing.assert_allclose(vector(result.embedding), right, atol=1e-6)
        np.testing.assert_allclose(vector(single.embedding), right, atol=1e-6)
        assert np.linalg.norm(vector(single.embedding)) == pytest.approx(1, abs=1e-5)


def test_bad_images_of_a_batch_fail_alone_with_their_reasons(embedder, photographs):
    good = photographs[0]
    bad = {
        "cannot be decoded": good[: len(good) // 2],
        "not an image in a known format": b"Dear sir or madam",
        "empty": b"",
        "30000x30000": huge_png(),
        "16777217 bytes, above the limit of 16777216": good + bytes((16 << 20) + 1 - len(good)),
    }
    images = [good, *(image for text in bad.values() for image in (text, good))]
    results = embedder.embed_batch(images).results
    assert len(results) == len(images)
    for result in results[::2]:
        assert result.embedding == results[0].embedding
        assert len(result.embedding.values) > 0
    for result, reason in zip(results[1::2], bad, strict=True):
        assert result.error.code == code_pb2.INVALID_ARGUMENT
        assert reason in result.error.message


def test_a_single_bad_image_fails_its_call(embedder):
    error = rejected(embedder.embed, huge_png())
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "30000x30000" in error.details()


@pytest.mark.parametrize("count", [0, 257])
def test_a_batch_of_a_wrong_size_is_refused_with_the_limit(embedder, count):
    error = rejected(embedder.embed_batch, [b"x"] * count)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert f"has {count} images; send at least 1 and at most 256" in error.details()


def test_another_expected_fingerprint_is_refused_naming_both(embedder, bundle, photographs):
    own = bundles.load(bundle).manifest.fingerprint
    for error in (
        rejected(embedder.embed, photographs[0], expected_fingerprint="abc"),
        rejected(embedder.embed_batch, photographs, expected_fingerprint="abc"),
    ):
        assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "abc" in error.details()
        assert own in error.details()
    assert embedder.embed(photographs[0], expected_fingerprint=own).model_fingerprint == own


def test_streams_are_unimplemented_and_say_what_to_use(embedder):
    call = embedder.stub.EmbedStream(iter([embedder_pb2.EmbedStreamRequest()]), timeout=TIMEOUT)
    error = rejected(next, call)
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "EmbedBatch" in error.details()


@pytest.mark.parametrize("service", ["", SERVICE])
def test_health_says_serving(embedder, service):
    response = embedder.health.Check(health_pb2.HealthCheckRequest(service=service), timeout=TIMEOUT)
    assert response.status == health_pb2.HealthCheckResponse.SERVING


def test_reflection_lists_the_services(embedder):
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    (response,) = embedder.reflection.ServerReflectionInfo(iter([request]), timeout=TIMEOUT)
    names = {service.name for service in response.list_services_response.service}
    assert {SERVICE, "grpc.health.v1.Health"} <= names


def test_metrics_have_their_names_and_the_model(embedder, bundle, photographs):
    embedder.embed(photographs[0])
    page = embedder.metrics()
    for name in (
        "grpc_server_started_total",
        "grpc_server_handled_total",
        "grpc_server_handling_seconds",
        "embedder_images_total",
        "embedder_rejected_images_total",
        "embedder_queue_depth",
        "embedder_queue_capacity",
        "embedder_inflight_images",
        "embedder_model_info",
        "embedder_model_load_duration_seconds",
        "embedder_queue_wait_seconds",
        "embedder_batch_images",
        "embedder_stage_duration_seconds",
        "embedder_image_size_bytes",
    ):
        assert f"# TYPE {name} " in page
    assert f'fingerprint="{bundles.load(bundle).manifest.fingerprint}"' in page
    assert 'embedder_images_total{outcome="ok"}' in page
    assert embedder.metric("embedder_queue_capacity") == 512
    assert embedder.metric("embedder_model_load_duration_seconds") > 0


def test_the_server_never_loads_tensorflow(embedder, photographs):
    embedder.embed(photographs[0])
    files = Path(f"/proc/{embedder.process.pid}/maps").read_text()
    assert "/openvino/" in files
    assert "libtensorflow" not in files


def test_a_full_queue_refuses_with_the_time_to_try_again(bundle, photographs):
    images = photographs[:1] * 4
    with running(bundle, "--queue-images", "4", "--max-batch-images", "4") as embedder:
        request = embedder_pb2.EmbedBatchRequest(images=images)
        calls = [embedder.stub.EmbedBatch.future(request, timeout=TIMEOUT) for _ in range(16)]
        codes = [call.code() for call in calls]
        assert set(codes) == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
        refused = calls[codes.index(grpc.StatusCode.RESOURCE_EXHAUSTED)]
        info = error_details_pb2.RetryInfo()
        assert rpc_status.from_call(refused).details[0].Unpack(info)
        assert info.retry_delay.ToNanoseconds() > 0
        assert 'embedder_rejected_images_total{reason="images"}' in embedder.metrics()
        assert all(result.HasField("embedding") for result in embedder.embed_batch(images).results)


def test_calls_in_flight_finish_after_sigterm(bundle, photographs):
    with running(bundle) as embedder:
        request = embedder_pb2.EmbedBatchRequest(images=photographs[:1] * 40)
        calls = [embedder.stub.EmbedBatch.future(request, timeout=TIMEOUT) for _ in range(3)]
        while embedder.metric("embedder_queue_depth") < 120:
            assert not all(call.done() for call in calls), "the calls were over before the signal"
        embedder.process.send_signal(signal.SIGTERM)
        for call in calls:
            assert all(result.HasField("embedding") for result in call.result().results)
        assert embedder.process.wait(TIMEOUT) == 0


def test_work_that_nobody_waits_for_is_dropped(bundle, photographs):
    with running(bundle) as embedder:
        request = embedder_pb2.EmbedBatchRequest(images=photographs[:1] * 256)
        error = rejected(embedder.stub.EmbedBatch, request, timeout=0.2)
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        embedder.embed(photographs[0])
        while embedder.metric("embedder_queue_depth"):
            pass
        assert embedder.metric("embedder_batch_images_count") < 200


def test_many_callers_at_once_each_get_their_own_vector(embedder, photographs):
    alone = [vector(embedder.embed(photograph).embedding) for photograph in photographs]
    order = [n % len(photographs) for n in range(64)]
    with ThreadPoolExecutor(16) as callers:
        together = list(callers.map(lambda n: vector(embedder.embed(photographs[n]).embedding), order))
    for n, got in zip(order, together, strict=True):
        np.testing.assert_allclose(got, alone[n], atol=1e-6)


def test_a_bundle_that_is_not_there_ends_the_process_with_one_line_that_says_what_to_do(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "embedder_service.main", "--bundle", tmp_path / "none"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "lookalike bundle build" in line
