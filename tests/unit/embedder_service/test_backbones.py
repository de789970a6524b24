import hashlib
import socket
import time
import urllib.request
from importlib import import_module
from pathlib import Path

import h5py
import numpy as np
import pytest

from embedder_service.decode import decode
from embedder_service.model import network, weights
from embedder_service.model.backbones import BACKBONES, DEFAULT, find
from embedder_service.model.efficientnet_lite0 import load_state_dict
from embedder_service.model.graph import Embedder
from embedder_service.model.preprocessing import PREPROCESSING
from embedder_service.model.tf import keras, tensorflow
from embedder_service.model.weights import WeightsUnavailable
from embedder_service.resizing import FILTERS
from embedder_service.runtimes.openvino import OpenVinoRuntime
from service_kit.errors import InvalidArgument

# Keras, of NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

KERAS_MODULES = {
    "resnet50": "resnet50",
    "inceptionv3": "inception_v3",
    "vgg16": "vgg16",
    "vgg19": "vgg19",
    "mobilenet": "mobilenet",
}


def picture(photographs, name, size):
    return decode((photographs / name).read_bytes(), height=size, width=size, resize="bicubic")[np.newaxis]


@pytest.mark.parametrize("name", BACKBONES)
def test_tensorflow_and_openvino_agree(photographs, tmp_path, name):
    backbone = BACKBONES[name]
    model, _ = network.create(backbone, "random")
    assert model.count_params() == backbone.parameters
    embedder = Embedder(model, backbone.preprocessing)
    embedder.save(tmp_path / "saved_model")
    saved = tensorflow.saved_model.load(str(tmp_path / "saved_model"))
    runtime = OpenVinoRuntime(embedder.to_openvino())
    for photograph in ("chelsea.png", "rocket.jpg"):
        image = picture(photographs, photograph, backbone.size)
        expected = saved.embed(image).numpy()
        vector = runtime.run(image)
        assert vector.shape == (1, backbone.features)
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
        assert np.vdot(vector, expected) >= 0.9999
    runtime.close()


@pytest.mark.parametrize("name", KERAS_MODULES)
def test_preprocessing_is_what_keras_applications_does(photographs, name):
    pixels = picture(photographs, "chelsea.png", 64).astype(np.float32)
    expected = getattr(keras.applications, KERAS_MODULES[name]).preprocess_input(pixels.copy())
    np.testing.assert_allclose(PREPROCESSING[BACKBONES[name].preprocessing](pixels), expected, atol=1e-4)


def test_every_backbone_names_a_filter_and_a_preprocessing_that_exist():
    assert {backbone.resize for backbone in BACKBONES.values()} <= FILTERS.keys()
    assert {backbone.preprocessing for backbone in BACKBONES.values()} == PREPROCESSING.keys()
    assert DEFAULT == "resnet50"


def test_an_unknown_backbone_is_refused_with_those_there_are():
    with pytest.raises(InvalidArgument, match=r"no backbone 'alexnet'; choose one of resnet50, .*efficientnet_lite0"):
        find("alexnet")


@pytest.mark.parametrize(
    ("photograph", "classes"),
    [
        ("chelsea.png", {281, 282, 285}),  # tabby, tiger cat, Egyptian cat
        ("coffee.png", {967, 504}),  # espresso, coffee mug
        ("camera.png", {872}),  # tripod
        ("motorcycle_left.png", {665, 670}),  # moped, motor scooter
        ("rocket.jpg", {657}),  # missile
    ],
)
def test_efficientnet_lite0_recognises_photographs(lite0_network, photographs, photograph, classes):
    """ImageNet's class indices; the classifier, which the bundle leaves out, is applied here."""
    state = weights.read_lite0(weights.lite0_file())
    pixels = picture(photographs, photograph, 224).astype(np.float32)
    features = np.asarray(lite0_network(PREPROCESSING["lite"](pixels)))
    logits = features @ state["_fc.weight"].T + state["_fc.bias"]
    assert set(np.argsort(logits[0])[-2:]) & classes


@pytest.fixture(scope="module")
def lite0_network():
    return network.create(BACKBONES["efficientnet_lite0"], "imagenet")[0]


def test_a_state_dict_with_too_much_in_it_is_refused(lite0_network):
    state = dict(weights.read_lite0(weights.lite0_file()), _extra=np.zeros(1))
    with pytest.raises(ValueError, match="_extra"):
        load_state_dict(lite0_network, state)


def test_random_weights_depend_on_the_seed_alone():
    first, described = network.create(BACKBONES["mobilenet"], "random", seed=1)
    second, again = network.create(BACKBONES["mobilenet"], "random", seed=1)
    _, other = network.create(BACKBONES["mobilenet"], "random", seed=2)
    assert described == again
    assert described.source == "random"
    assert described.sha256 != other.sha256
    for one, two in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("suffix", [".weights.h5", ".h5", ".keras"])
def test_weights_come_from_a_file_and_their_digest_from_their_values(tmp_path, suffix):
    model, described = network.create(BACKBONES["mobilenet"], "random", seed=3)
    file = tmp_path / f"notop{suffix}"
    model.save_weights(file) if suffix == ".weights.h5" else model.save(file)
    _, loaded = network.create(BACKBONES["mobilenet"], str(file))
    assert loaded.source == "file"
    assert loaded.sha256 == described.sha256


def test_a_file_with_another_checksum_is_not_read(tmp_path):
    file = tmp_path / "notop.h5"
    file.write_bytes(b"nothing that HDF5 could read")
    with pytest.raises(WeightsUnavailable, match=r"notop\.h5 has SHA-256 [0-9a-f]{64}, expected 00; it was not read"):
        network.create(BACKBONES["mobilenet"], str(file), sha256="00")
    with pytest.raises(WeightsUnavailable, match="expected 00; it was not read"):
        network.create(BACKBONES["efficientnet_lite0"], "imagenet", sha256="00")
    with pytest.raises(WeightsUnavailable, match="does not fit mobilenet"):
        network.create(BACKBONES["mobilenet"], str(file), sha256=hashlib.sha256(file.read_bytes()).hexdigest().upper())


def test_imagenet_weights_are_taken_from_kerass_folder_if_they_are_there(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    model, described = network.create(BACKBONES["mobilenet"], "random", seed=3)
    (tmp_path / "models").mkdir()
    model.save(tmp_path / "models" / "mobilenet_1_0_224_tf_no_top.h5")
    _, loaded = network.create(BACKBONES["mobilenet"], "imagenet")
    assert (loaded.source, loaded.sha256) == ("imagenet", described.sha256)


@pytest.mark.parametrize("name", [name for name, backbone in BACKBONES.items() if backbone.keras_md5])
def test_the_checksums_of_imagenet_weights_are_those_that_keras_states(name):
    source = Path(import_module(f"keras.src.applications.{KERAS_MODULES[name].removesuffix('50')}").__file__)
    assert f'"{BACKBONES[name].keras_md5}"' in source.read_text()


def test_efficientnet_lite0_takes_the_packages_file_too():
    _, described = network.create(BACKBONES["efficientnet_lite0"], "imagenet")
    _, loaded = network.create(BACKBONES["efficientnet_lite0"], str(weights.lite0_file()))
    assert (loaded.source, loaded.sha256) == ("file", described.sha256)


def test_a_weights_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(WeightsUnavailable, match=r"there is no weights file .*gone\.h5"):
        network.create(BACKBONES["mobilenet"], str(tmp_path / "gone.h5"))


def test_another_networks_weights_are_refused(tmp_path):
    file = tmp_path / "mobilenet.weights.h5"
    network.create(BACKBONES["mobilenet"], "random")[0].save_weights(file)
    with pytest.raises(WeightsUnavailable, match=r"mobilenet\.weights\.h5 does not fit vgg16 without its classifier"):
        network.create(BACKBONES["vgg16"], str(file))


def test_a_file_with_a_part_of_the_weights_is_refused(tmp_path):
    file = tmp_path / "partial.weights.h5"
    network.create(BACKBONES["mobilenet"], "random")[0].save_weights(file)
    with h5py.File(file, "r+") as content:
        kernel = content["layers/conv2d/vars/0"]
        kernel[...] = np.full(kernel.shape, np.nan)
    with pytest.raises(WeightsUnavailable, match=r"1 of the \d+ arrays are not in it"):
        network.create(BACKBONES["mobilenet"], str(file))


@pytest.fixture
def proxy(monkeypatch, tmp_path):
    """Sets the address that downloads go through, with nothing cached."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(urllib.request, "_opener", None)  # it remembers the proxy it saw first
    return lambda port: monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")


def test_no_network_is_reported_in_one_sentence(proxy):
    proxy(9)  # nobody listens
    with pytest.raises(WeightsUnavailable) as caught:
        network.create(BACKBONES["mobilenet"], "imagenet")
    assert "ImageNet weights for mobilenet could not be downloaded" in caught.value.message
    assert "--weights PATH" in caught.value.message
    assert "\n" not in caught.value.message


def test_a_host_that_never_answers_is_given_up_on(proxy, monkeypatch):
    monkeypatch.setattr(network, "_REACH_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        proxy(silent.getsockname()[1])
        started = time.monotonic()
        with pytest.raises(WeightsUnavailable, match=r"did not answer within 1 s|timed out"):
            network.create(BACKBONES["mobilenet"], "imagenet")
    assert time.monotonic() - started < 5
