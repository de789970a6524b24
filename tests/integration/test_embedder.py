"""A real embedder process on loopback, serving a real model."""

import signal
import struct
import subprocess
import sys
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
import skimage
from embedder_process import ROOT, TIMEOUT, running
from google.rpc import code_pb2, error_details_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_status import rpc_status

from embedder_service import decode
from embedder_service.model import bundle as bundles
from embedder_service.runtimes import load_runtime
from embedder_service.runtimes.openvino import fastest
from lookalike import AsyncEmbedderClient, EmbedderClient, Embedding, LookalikeError
from lookalike.embedder.v1 import embedder_pb2

SERVICE = "lookalike.embedder.v1.EmbedderService"
PHOTOGRAPHS = [
    Path(skimage.__file__).parent / "data" / name
    for name in (
        *("rocket.jpg", "hubble_deep_field.jpg", "retina.jpg", "astronaut.png", "brick.png", "camera.png"),
        *("chelsea.png", "coffee.png", "coins.png", "grass.png", "gravel.png", "moon.png"),
    )
]


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


def different(photograph, count, start=0):
    """As many files of one picture, no two of them equal: what follows the end of a JPEG is ignored."""
    return [photograph + start.to_bytes(4, "big") for start in range(start, start + count)]


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
    assert limits.max_stream_in_flight == 64


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


def check_stream(results, photographs, alone):
    """Whether a stream answered each photograph with its vector, and the bad image with the reason."""
    assert results.keys() == {"bad", *map(str, range(len(photographs)))}
    bad = results.pop("bad")
    assert isinstance(bad, LookalikeError)
    assert bad.code is grpc.StatusCode.INVALID_ARGUMENT
    for name, embedding in results.items():
        np.testing.assert_allclose(embedding.vector, vector(alone[int(name)].embedding), atol=1e-6)


async def test_a_stream_answers_every_image_under_its_id(embedder, photographs):
    alone = embedder.embed_batch(photographs).results
    items = [("bad", b"text"), *((str(n), photograph) for n, photograph in enumerate(photographs))]
    with EmbedderClient(embedder.address, timeout=TIMEOUT) as client:
        check_stream(dict(client.embed_stream(items)), photographs, alone)
    async with AsyncEmbedderClient(embedder.address, timeout=TIMEOUT) as client:
        check_stream({name: result async for name, result in client.embed_stream(items)}, photographs, alone)


def test_images_of_a_stream_may_expect_another_model_and_fail_alone(embedder, photographs):
    requests = [
        embedder_pb2.EmbedStreamRequest(correlation_id=name, image=photographs[0], expected_fingerprint=expected)
        for name, expected in (("any", ""), ("other", "abc"))
    ]
    results = {
        response.correlation_id: response.result
        for response in embedder.stub.EmbedStream(iter(requests), timeout=TIMEOUT)
    }
    assert results["any"].HasField("embedding")
    assert results["other"].error.code == code_pb2.FAILED_PRECONDITION


def test_a_stream_longer_than_the_queue_is_never_refused_and_holds_nobody_up(bundle, photographs):
    flags = ["--queue-images", "8", "--max-batch-images", "4", "--max-stream-in-flight", "4"]
    with running(bundle, *flags) as embedder, EmbedderClient(embedder.address, timeout=TIMEOUT) as client:
        images = [(str(n), photographs[n % len(photographs)]) for n in range(60)]
        stream = client.embed_stream(images)
        first = [next(stream) for _ in range(3)]
        # Nobody reads the stream now: it holds no more than it may, and others get their turn.
        for photograph in photographs:
            embedder.embed(photograph)
        results = dict([*first, *stream])
        assert len(results) == 60
        assert all(isinstance(result, Embedding) for result in results.values())
        assert "embedder_rejected_images_total{" not in embedder.metrics()


def test_an_image_of_a_stream_has_a_time_of_its_own(embedder, photographs):
    requests = [embedder_pb2.EmbedStreamRequest(correlation_id=name, image=photographs[0]) for name in ("late", "ok")]
    requests[0].timeout.FromNanoseconds(1)
    responses = list(embedder.stub.EmbedStream(iter(requests), timeout=TIMEOUT))
    codes = {response.correlation_id: response.result.error.code for response in responses}
    assert codes == {"late": code_pb2.DEADLINE_EXCEEDED, "ok": code_pb2.OK}


def test_a_stream_ends_in_order_when_the_server_stops(bundle, photographs):
    with running(bundle) as embedder:
        ended = threading.Event()

        def requests():
            for n, photograph in enumerate(photographs):
                yield embedder_pb2.EmbedStreamRequest(correlation_id=str(n), image=photograph)
            ended.wait(TIMEOUT)  # a caller that would go on

        call = embedder.stub.EmbedStream(requests(), timeout=TIMEOUT)
        answered = [next(call).correlation_id for _ in photographs]
        assert sorted(answered, key=int) == [str(n) for n in range(len(photographs))]
        embedder.process.send_signal(signal.SIGTERM)
        error = rejected(next, call)
        ended.set()
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert "to another one" in error.details()
        assert embedder.process.wait(TIMEOUT) == 0


def test_an_abandoned_stream_leaves_nothing_behind(embedder, photographs):
    with EmbedderClient(embedder.address, timeout=TIMEOUT) as client:
        stream = client.embed_stream((str(n), image) for n, image in enumerate(different(photographs[0], 100)))
        next(stream)
        stream.close()
    while embedder.metric("embedder_queue_depth"):
        pass


def test_interactive_images_overtake_a_batch_of_bulk_ones(bundle, photographs):
    with running(bundle) as embedder:
        request = embedder_pb2.EmbedBatchRequest(images=different(photographs[0], 200))
        batch = embedder.stub.EmbedBatch.future(request, timeout=TIMEOUT)
        while embedder.metric("embedder_queue_depth") < 200:
            assert not batch.done()
        for photograph in photographs[1:4]:
            embedder.embed(photograph)
        assert not batch.done()
        patient = embedder_pb2.EmbedRequest(image=photographs[4], priority=embedder_pb2.PRIORITY_BULK)
        error = rejected(embedder.stub.Embed, patient, timeout=0.2)
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert all(result.HasField("embedding") for result in batch.result().results)


def test_equal_images_in_flight_are_computed_once(bundle, photographs):
    with running(bundle) as embedder:
        results = embedder.embed_batch(photographs[:1] * 40).results
        assert all(result.embedding == results[0].embedding for result in results)
        assert embedder.metric("embedder_batch_images_sum") == 1
        assert embedder.metric("embedder_deduplicated_images_total") == 39


def test_stages_are_timed_for_those_who_ask(embedder, photographs):
    for method, request in (
        (embedder.stub.Embed, embedder_pb2.EmbedRequest(image=photographs[0])),
        (embedder.stub.EmbedBatch, embedder_pb2.EmbedBatchRequest(images=photographs[:3])),
    ):
        _, call = method.with_call(request, metadata=[("lookalike-timings", "1")], timeout=TIMEOUT)
        seconds = {
            key.removeprefix("lookalike-timing-"): float(value)
            for key, value in call.trailing_metadata()
            if key.startswith("lookalike-timing-")
        }
        assert seconds.keys() == {"admit", "queue", "decode", "run", "total"}
        assert 0 < seconds["run"] < seconds["total"] < TIMEOUT
        assert seconds["total"] >= sum(value for stage, value in seconds.items() if stage != "total") - 1e-4
        _, call = method.with_call(request, timeout=TIMEOUT)
        assert not any(key.startswith("lookalike-timing-") for key, _ in call.trailing_metadata())


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
        "embedder_decoders_lost_total",
        "embedder_rejected_images_total",
        "embedder_expired_images_total",
        "embedder_deduplicated_images_total",
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
    images = photographs[:4]
    flags = ["--queue-images", "4", "--bulk-share", "1", "--max-batch-images", "4"]
    with running(bundle, *flags) as embedder:
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
        calls = [
            embedder.stub.EmbedBatch.future(embedder_pb2.EmbedBatchRequest(images=images), timeout=TIMEOUT)
            for images in (different(photographs[0], 40, start) for start in (0, 40, 80))
        ]
        while embedder.metric("embedder_queue_depth") < 120:
            assert not all(call.done() for call in calls), "the calls were over before the signal"
        embedder.process.send_signal(signal.SIGTERM)
        for call in calls:
            assert all(result.HasField("embedding") for result in call.result().results)
        assert embedder.process.wait(TIMEOUT) == 0


def test_work_that_nobody_waits_for_is_dropped(bundle, photographs):
    with running(bundle) as embedder:
        request = embedder_pb2.EmbedBatchRequest(images=different(photographs[0], 256))
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
