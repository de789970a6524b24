import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import embedder_service
from embedder_service.decode import decode
from embedder_service.model.bundle import pattern_image
from embedder_service.model.ov import openvino
from embedder_service.runtimes import load_runtime
from embedder_service.runtimes.instructions import FASTEST_FIRST, cpu_flags, native_precisions
from service_kit.cores import physical_cores
from service_kit.errors import FailedPrecondition, InvalidArgument

ROOT = Path(embedder_service.__file__).parents[1]
needs_int8 = pytest.mark.skipif(
    "int8" not in native_precisions((), cpu_flags()), reason="this CPU has no 8-bit dot product"
)
needs_bf16 = pytest.mark.skipif(
    "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"), reason="this CPU has no bf16"
)


@pytest.fixture(scope="module")
def images(image_paths):
    """uint8 [8, 224, 224, 3]."""
    return np.stack([decode(path.read_bytes(), height=224, width=224, resize="bilinear") for path in image_paths[:8]])


@pytest.fixture(scope="module", params=["openvino", "tensorflow"])
def runtime(lite0, request):
    loaded = load_runtime(lite0, request.param, precision="f32")
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def expected(lite0, images):
    loaded = load_runtime(lite0, "openvino", precision="f32", streams=1)
    yield np.concatenate([loaded.run(image[np.newaxis]) for image in images])
    loaded.close()


def test_a_runtime_says_what_it_is(runtime):
    assert runtime.name in ("openvino", "tensorflow")
    assert runtime.device in ("CPU", "GPU")
    assert runtime.precision == "f32"
    assert runtime.slots >= 1
    assert runtime.buckets[0] == 1
    assert list(runtime.buckets) == sorted(runtime.buckets)


def test_the_vectors_are_float32_of_norm_1_and_of_the_bundles_length(runtime, lite0, images):
    vector = runtime.run(images[:1])
    assert vector.dtype == np.float32
    assert vector.shape == (1, lite0.manifest.dims)
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)


def test_the_pattern_gives_the_vector_in_the_manifest(runtime, lite0):
    vector = runtime.run(pattern_image(224, 224))[0]
    assert np.dot(vector, lite0.manifest.pattern_vector) > 0.9999


def test_both_runtimes_give_the_same_vectors(runtime, images, expected):
    vectors = np.concatenate([runtime.run(image[np.newaxis]) for image in images])
    assert (vectors * expected).sum(axis=1).min() > 0.9999


def test_a_result_outlives_the_next_run(runtime, images):
    first = runtime.run(images[:1])
    kept = first.copy()
    for image in images:
        runtime.run(image[np.newaxis])
    np.testing.assert_array_equal(first, kept)


def test_many_threads_get_their_own_results(runtime, images, expected):
    with ThreadPoolExecutor(6) as pool:
        vectors = np.concatenate(list(pool.map(lambda index: runtime.run(images[index % 8][np.newaxis]), range(48))))
    assert (vectors * np.tile(expected, (6, 1))).sum(axis=1).min() > 0.9999


@pytest.mark.parametrize(
    "batch",
    [
        np.zeros((1, 10, 10, 3), np.uint8),
        np.zeros((3, 224, 224, 3), np.uint8),
        np.zeros((1, 224, 224, 3), np.float32),
        np.zeros((224, 224, 3), np.uint8),
    ],
)
def test_another_shape_or_type_is_refused(runtime, batch):
    with pytest.raises(ValueError, match="the model takes uint8"):
        runtime.run(batch)


def test_strided_images_are_taken(runtime, images, expected):
    mirrored = np.ascontiguousarray(images[:1, :, ::-1])
    assert np.vdot(runtime.run(mirrored[:, :, ::-1]), expected[0]) > 0.9999


@pytest.mark.parametrize("name", ["openvino", "tensorflow"])
def test_a_closed_runtime_refuses_and_can_be_closed_again(lite0, images, name):
    runtime = load_runtime(lite0, name, precision="f32")
    runtime.close()
    runtime.close()
    for _ in range(3):
        with pytest.raises(RuntimeError, match="the runtime is closed"):
            runtime.run(images[:1])


def test_openvino_computes_in_float32_even_where_the_cpu_would_rather_not(lite0, images):
    tensorflow = load_runtime(lite0, "tensorflow", precision="f32")
    runtime = load_runtime(lite0, "openvino", precision="f32")
    np.testing.assert_allclose(runtime.run(images[:1]), tensorflow.run(images[:1]), atol=1e-5)


@needs_bf16
def test_bf16_is_close_to_float32_and_not_the_same(lite0, images, expected):
    runtime = load_runtime(lite0, "openvino", precision="bf16")
    assert runtime.precision == "bf16"
    cosine = np.vdot(runtime.run(images[:1]), expected[0])
    assert 0.99 < cosine < 0.999999


@needs_int8
def test_int8_is_close_to_float32_and_not_the_same(lite0, images, expected):
    runtime = load_runtime(lite0, "openvino", precision="int8")
    assert runtime.precision == "int8"
    vectors = np.concatenate([runtime.run(image[np.newaxis]) for image in images])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    cosines = (vectors * expected).sum(axis=1)
    assert 0.95 < cosines.mean() < 0.99999


def test_auto_is_the_fastest_precision_that_the_bundle_has_and_the_cpu(lite0):
    native = native_precisions(openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"), cpu_flags())
    for contained in ({"f32"}, {"f32", "bf16"}, {"f32", "int8"}, {"f32", "bf16", "int8"}):
        precisions = dict.fromkeys(contained, lite0.manifest.precisions["f32"])
        bundle = replace(lite0, manifest=replace(lite0.manifest, precisions=precisions))
        assert load_runtime(bundle).precision == min(contained & set(native), key=FASTEST_FIRST.index)


def test_streams_and_threads_are_those_asked_for(lite0):
    # Of its two slots a stream runs one, and the other is its next.
    assert load_runtime(lite0, "openvino", streams=3).slots == 6
    assert load_runtime(lite0, "openvino", streams=1, threads=2).slots == 2
    assert load_runtime(lite0, "openvino", threads=1).slots == 2
    assert load_runtime(lite0, "openvino").slots == 2 * physical_cores()


def test_fewer_threads_than_streams_are_refused(lite0):
    with pytest.raises(InvalidArgument, match="2 threads are too few for 3 streams"):
        load_runtime(lite0, "openvino", streams=3, threads=2)


def test_a_precision_that_the_bundle_has_not_is_refused(lite0):
    with pytest.raises(FailedPrecondition, match=r"has no precision 'fp8'; it has .*f32"):
        load_runtime(lite0, "openvino", precision="fp8")


def test_an_unknown_runtime_is_refused_with_those_there_are(lite0):
    with pytest.raises(InvalidArgument, match="no runtime 'onnx'; choose one of openvino, tensorflow"):
        load_runtime(lite0, "onnx")


def test_serving_with_openvino_never_imports_tensorflow_nor_openvinos_telemetry(lite0):
    program = """
import sys
from embedder_service.model.bundle import load, pattern_image
from embedder_service.runtimes import load_runtime
bundle = load(sys.argv[1])
load_runtime(bundle, "openvino").run(pattern_image(224, 224))
print(sorted({name.partition(".")[0] for name, module in sys.modules.items() if module}))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(lite0.path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "'openvino'" in done.stdout
    for absent in ("tensorflow", "keras", "sklearn", "nncf", "openvino_telemetry"):
        assert f"'{absent}'" not in done.stdout
