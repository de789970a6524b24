"""Which precisions a bundle gets, what they lose, and which of them a CPU takes."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import embedder_service
from embedder_service.model import bundle as bundles
from embedder_service.model.accuracy import accuracy_of
from embedder_service.model.build import build
from embedder_service.model.gate import Gate
from embedder_service.model.ov import openvino as ov
from embedder_service.runtimes.instructions import cpu_flags, native_precisions

ROOT = Path(embedder_service.__file__).parents[1]
_NATIVE = native_precisions(ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"), cpu_flags())
needs_int8 = pytest.mark.skipif("int8" not in _NATIVE, reason="this CPU has no 8-bit dot product")


@pytest.mark.parametrize(
    ("capabilities", "flags", "expected"),
    [
        (["FP32", "INT8", "BIN"], {"avx2"}, ("f32",)),
        (["FP32", "INT8", "WINOGRAD"], {"avx2", "avx512f", "avx512_vnni"}, ("int8", "f32")),
        (["FP32", "INT8"], {"avx2", "avx_vnni"}, ("int8", "f32")),
        (["BF16", "FP32", "INT8"], {"avx512_vnni", "avx512_bf16", "amx_int8"}, ("int8", "bf16", "f32")),
        (["BF16", "FP32"], frozenset(), ("bf16", "f32")),
    ],
)
def test_a_cpu_has_the_precisions_that_it_has_instructions_for(capabilities, flags, expected):
    assert native_precisions(capabilities, flags) == expected


def test_flags_are_those_the_kernel_names(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu avx2 avx512_vnni\nvmx flags\t: vnmi\n\nprocessor\t: 1\n")
    assert cpu_flags(cpuinfo) == {"fpu", "avx2", "avx512_vnni"}
    cpuinfo.write_text("processor\t: 0\nFeatures\t: fp asimd\n")
    assert cpu_flags(cpuinfo) == frozenset()
    assert cpu_flags(tmp_path / "none") == frozenset()


def test_accuracy_is_the_share_of_the_four_nearest_others_of_an_images_class():
    """Two classes of five at opposite ends, and one image that lies with the other class."""
    angles = np.radians([0, 1, 2, 3, 4, 90, 91, 92, 93, 94, 95])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    classes = ["a"] * 5 + ["b"] * 5 + ["a"]
    # Right: of "a", four for each of the five; of "b", four for the first three and three for those nearest to the
    # stray, which has none.
    assert accuracy_of(vectors, classes) == pytest.approx((5 * 4 + 3 * 4 + 2 * 3) / (11 * 4))


def test_accuracy_is_the_same_in_chunks_as_by_comparing_all(monkeypatch):
    random = np.random.default_rng(7)
    vectors = random.normal(size=(103, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    classes = random.choice(["a", "b", "c"], 103)
    distances = np.linalg.norm(vectors[:, np.newaxis] - vectors, axis=2)
    nearest = np.argsort(distances, axis=1)[:, 1:5]  # the first is the image itself
    expected = (classes[nearest] == classes[:, np.newaxis]).mean()
    monkeypatch.setattr("embedder_service.model.accuracy._CHUNK", 10)
    assert accuracy_of(vectors, list(classes)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("cosine", "loss", "objection"),
    [
        (0.98, 0.3, None),
        (0.98, None, None),
        (1.0, -2.0, None),
        (0.9799, 0.0, "its mean cosine to float32 is 0.9799, and 0.98 is the least allowed"),
        (0.99, 0.31, "it loses 0.31 points of accuracy, and 0.3 are allowed"),
    ],
)
def test_the_gate_bounds_cosine_and_accuracy(cosine, loss, objection):
    assert Gate().objection(cosine, loss) == objection


def test_every_precision_of_this_cpu_is_measured_on_all_images(lite0, image_paths):
    precisions = lite0.manifest.precisions
    assert set(precisions) == {*_NATIVE, "f16"}
    assert 0 < precisions["f16"].mean_loss < 1e-4  # on a few images: it is for GPUs, and slow here
    for name in precisions.keys() - {"f32", "f16"}:
        assert precisions[name].images == len(image_paths)
        assert 0 < precisions[name].mean_loss < precisions[name].max_loss < 0.2
        assert abs(lite0.manifest.accuracy_loss(name)) <= 5
    assert precisions["f32"].accuracy > 0.4  # of the four nearest, two can be of the photograph
    assert lite0.manifest.built_with["nncf"]


@needs_int8
def test_an_int8_model_has_its_head_in_float32_and_its_convolutions_in_int8(lite0):
    model = ov.Core().read_model(lite0.openvino_model("int8"))
    quantized = [node for node in model.get_ordered_ops() if node.get_type_name() == "FakeQuantize"]
    consumers = {
        target.get_node().get_type_name()
        for node in quantized
        for output in node.outputs()
        for target in output.get_target_inputs()
    }
    assert "Convolution" in consumers
    assert not consumers & {"MatMul", "ReduceMean", "Power", "Maximum"}
    size = {name: lite0.openvino_model(name).with_suffix(".bin").stat().st_size for name in ("f32", "int8")}
    assert size["int8"] < 0.4 * size["f32"]


def test_what_the_gate_rejects_is_left_out_with_the_reason(tmp_path, image_paths):
    built = build(
        "mobilenet", "random", image_paths, 4, tmp_path / "bundle", lambda *_: None, gate=Gate(min_cosine=1.0)
    )
    assert set(built.bundle.manifest.precisions) == {"f32"}
    assert set(built.left_out) == {"bf16", "int8", "f16"}
    for name in {*_NATIVE, "f16"} - {"f32"}:
        assert "and 1 is the least allowed" in built.left_out[name]
    assert not built.bundle.path.joinpath(bundles.OPENVINO_INT8).exists()
    built.bundle.verify_checksums()
    assert built.bundle.manifest.precisions["f32"].accuracy is None  # no classes were given


def test_without_readable_images_there_is_float32_alone(tmp_path):
    file = tmp_path / "text.jpg"
    file.write_text("not an image")
    built = build("mobilenet", "random", [file], None, tmp_path / "bundle", lambda *_: None)
    assert set(built.bundle.manifest.precisions) == {"f32"}
    assert set(built.left_out) == {"bf16", "int8", "f16"}


def test_quantization_reports_to_nobody():
    program = """
import sys
import embedder_service.model.quantize
from unittest.mock import MagicMock
from nncf.telemetry import telemetry
assert isinstance(telemetry, MagicMock), telemetry  # what NNCF takes where there is no telemetry
assert sys.modules["openvino_telemetry"] is None
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
