import dataclasses
import hashlib
import json
import re
import subprocess

import numpy as np
import pytest

from embedder_service import decode
from embedder_service.main import load
from embedder_service.model import bundle as bundles
from embedder_service.model import manifest as manifests
from embedder_service.model.manifest import Input, Pca, Weights
from embedder_service.settings import EmbedderSettings
from service_kit.errors import FailedPrecondition, InvalidArgument

SPACE = {
    "backbone": "resnet50",
    "weights": Weights("imagenet", "aa"),
    "input": Input(224, 224, "bicubic", 1, "caffe"),
    "pooling": "average",
    "normalisation": "l2",
    "pca": Pca(dims=150, images=8677, explained_variance_ratio=0.7, sha256="bb"),
}


def edited(space, path, value):
    """The space with one field, given as "name" or "name.field", set to another value."""
    name, _, field = path.partition(".")
    return space | {name: dataclasses.replace(space[name], **{field: value}) if field else value}


def test_the_fingerprint_is_the_same_everywhere_and_always():
    expected = "ca4edd40fdd9df7261c7ed1cda4657fc0d545eacae85c0f8c56b04c7b05aeff7"
    assert manifests.fingerprint(**SPACE) == expected


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("backbone", "vgg16"),
        ("weights.sha256", "ab"),
        ("input.height", 225),
        ("input.width", 225),
        ("input.resize", "bilinear"),
        ("input.decode_revision", 2),
        ("input.preprocessing", "tf"),
        ("pooling", "max"),
        ("normalisation", "none"),
        ("pca.dims", 149),
        ("pca.sha256", "bc"),
        ("pca", None),
    ],
)
def test_whatever_changes_the_vectors_changes_the_fingerprint(field, value):
    assert manifests.fingerprint(**edited(SPACE, field, value)) != manifests.fingerprint(**SPACE)


@pytest.mark.parametrize(
    ("field", "value"), [("weights.source", "file"), ("pca.images", 1), ("pca.explained_variance_ratio", 0.1)]
)
def test_what_does_not_change_the_vectors_does_not_change_the_fingerprint(field, value):
    assert manifests.fingerprint(**edited(SPACE, field, value)) == manifests.fingerprint(**SPACE)


def test_a_manifest_survives_being_written_and_read(lite0):
    assert manifests.parse(lite0.manifest.to_json(), "here") == lite0.manifest


def with_precisions(bundle, **precisions):
    return dataclasses.replace(bundle.manifest, precisions=precisions)


def test_each_precision_names_the_model_to_run(lite0):
    int8 = manifests.Precision("openvino/int8.xml", images=300, mean_loss=0.011, max_loss=0.048, accuracy=0.9)
    manifest = with_precisions(lite0, f32=lite0.manifest.precisions["f32"], int8=int8)
    assert manifests.parse(manifest.to_json(), "here").precisions["int8"] == int8
    opened = bundles.Bundle(lite0.path, manifest)
    assert opened.openvino_model("int8") == lite0.path / "openvino/int8.xml"


@pytest.mark.parametrize(
    ("f32", "int8", "loss"), [(0.9023, 0.9, 0.23), (0.9, 0.9023, -0.23), (None, 0.9, None), (0.9, None, None)]
)
def test_the_loss_of_accuracy_is_in_points_against_f32(lite0, f32, int8, loss):
    def precision(accuracy):
        return manifests.Precision("model.xml", images=8677, mean_loss=0.0, max_loss=0.0, accuracy=accuracy)

    manifest = with_precisions(lite0, f32=precision(f32), int8=precision(int8))
    assert manifest.accuracy_loss("int8") == (None if loss is None else pytest.approx(loss))
    assert manifest.accuracy_loss("bf16") is None


def test_bf16_runs_the_float_model(lite0):
    assert lite0.openvino_model("bf16") == lite0.openvino_model("f32")


def test_a_directory_that_is_not_there_is_named(tmp_path):
    with pytest.raises(
        FailedPrecondition, match=r"nowhere is not a model bundle: there is no such directory; make one"
    ):
        bundles.load(tmp_path / "nowhere")


def test_a_directory_without_a_manifest_is_not_a_bundle(tmp_path):
    with pytest.raises(FailedPrecondition, match=r"it has no readable manifest\.json"):
        bundles.load(tmp_path)
    assert not bundles.is_bundle(tmp_path)


def rewritten(bundle, change):
    """The bundle with its manifest's JSON changed in place."""
    file = bundle.path / bundles.MANIFEST
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))
    return bundle.path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.clear(), "does not describe a model bundle"),
        (lambda data: data.update(kind="pwa"), "does not describe a model bundle"),
        (lambda data: data.update(schema_version=99), "has schema version 99, this program reads 2"),
        (lambda data: data.pop("backbone"), "is damaged: manifest should have the fields"),
        (lambda data: data.update(colour="red"), "is damaged: manifest should have the fields"),
        (
            lambda data: data["input"].update(height="224"),
            r"manifest\.input\.height should be of type int, it is '224'",
        ),
        (lambda data: data.update(precisions=[]), r"is damaged: manifest\.precisions"),
        (lambda data: data["pattern_vector"].append("x"), r"manifest\.pattern_vector\[16\] should be of type float"),
        (lambda data: data["input"].update(height=225), "was edited: its fields give the fingerprint"),
        (lambda data: data.update(fingerprint="00"), "was edited"),
    ],
)
def test_a_manifest_that_cannot_be_trusted_is_refused(lite0_copy, change, message):
    with pytest.raises(FailedPrecondition, match=message):
        bundles.load(rewritten(lite0_copy, change))


def test_a_manifest_that_is_not_json_is_refused(lite0_copy):
    (lite0_copy.path / bundles.MANIFEST).write_text("{")
    with pytest.raises(FailedPrecondition, match="is not JSON"):
        bundles.load(lite0_copy.path)


def test_a_bundle_of_another_decoder_is_refused(lite0, monkeypatch):
    monkeypatch.setattr(decode, "REVISION", decode.REVISION + 1)
    with pytest.raises(FailedPrecondition, match="its vectors would differ, build the bundle again"):
        bundles.load(lite0.path)


def test_the_checksums_are_those_that_sha256sum_reads(lite0):
    lite0.verify_checksums()
    done = subprocess.run(["sha256sum", "-c", "--strict", "SHA256SUMS"], cwd=lite0.path, capture_output=True, text=True)
    assert done.returncode == 0
    assert {"manifest.json", "pca.npz", "openvino/model.bin"} <= set(re.findall(r"^(\S+): OK$", done.stdout, re.M))


def test_a_changed_file_is_named(lite0_copy):
    file = lite0_copy.path / "openvino" / "model.bin"
    data = bytearray(file.read_bytes())
    data[1000] ^= 1
    file.write_bytes(data)
    with pytest.raises(FailedPrecondition, match=r"openvino/model\.bin has changed"):
        lite0_copy.verify_checksums()


def test_a_missing_and_an_added_file_are_named(lite0_copy):
    (lite0_copy.path / "pca.npz").rename(lite0_copy.path / "other.npz")
    with pytest.raises(FailedPrecondition, match=r"pca\.npz is missing; other\.npz is not listed"):
        lite0_copy.verify_checksums()


def test_missing_checksums_are_noticed(lite0_copy):
    (lite0_copy.path / "SHA256SUMS").unlink()
    with pytest.raises(FailedPrecondition, match="SHA256SUMS is missing or unreadable"):
        lite0_copy.verify_checksums()


def test_the_embedder_reads_no_model_of_a_bundle_that_has_changed(lite0_copy):
    (lite0_copy.path / "openvino" / "model.xml").write_text("<model")
    with pytest.raises(FailedPrecondition, match=r"not as it was built: openvino/model\.xml has changed"):
        load(EmbedderSettings(bundle=lite0_copy.path))


def test_a_bundle_can_be_pinned_by_the_digest_of_its_checksums(lite0):
    digest = hashlib.sha256((lite0.path / "SHA256SUMS").read_bytes()).hexdigest()
    lite0.verify_checksums(digest.upper())
    with pytest.raises(FailedPrecondition, match=f"is another one: its SHA256SUMS has the SHA-256 {digest}, not 00"):
        lite0.verify_checksums("00")


@pytest.mark.parametrize("file", ["/etc/model.xml", "../model.xml", "openvino/../../model.xml"])
def test_a_model_outside_of_the_bundle_is_not_read(lite0, file):
    precision = dataclasses.replace(lite0.manifest.precisions["f32"], model=file)
    opened = bundles.Bundle(lite0.path, with_precisions(lite0, f32=precision))
    with pytest.raises(FailedPrecondition, match="names a model outside of it"):
        opened.openvino_model("f32")


def test_the_digest_of_a_set_of_images_is_of_their_contents_alone(tmp_path):
    first, second, renamed = tmp_path / "a.jpg", tmp_path / "b.jpg", tmp_path / "c.jpg"
    first.write_bytes(b"one")
    second.write_bytes(b"two")
    renamed.write_bytes(b"one")
    digest = bundles.images_digest([first, second])
    assert bundles.images_digest([second, renamed]) == digest
    assert bundles.images_digest([first]) != digest
    assert bundles.images_digest([first, renamed, second]) != digest


def test_an_image_file_that_is_gone_is_named(tmp_path):
    with pytest.raises(InvalidArgument, match=r"gone\.jpg cannot be read: No such file"):
        bundles.images_digest([tmp_path / "gone.jpg"])


def test_the_pattern_is_the_same_image_everywhere():
    pattern = bundles.pattern_image(224, 200)
    assert pattern.shape == (1, 224, 200, 3)
    assert pattern.dtype == np.uint8
    assert len(np.unique(pattern)) > 200
    np.testing.assert_array_equal(pattern[0, 0, 0], [0, 90, 180])
