import numpy as np
import pytest

from embedder_service.decode import decode
from embedder_service.model import network
from embedder_service.model.backbones import BACKBONES
from embedder_service.model.graph import Embedder
from embedder_service.model.tf import tensorflow

# Keras, of NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CONVOLUTIONS = ("Conv2D", "DepthwiseConv2dNative")


@pytest.fixture(scope="module")
def lite0_embedder():
    """With its ImageNet weights and a PCA."""
    backbone = BACKBONES["efficientnet_lite0"]
    generator = np.random.default_rng(0)
    components = np.linalg.qr(generator.standard_normal((backbone.features, 256)))[0].T
    model, _ = network.create(backbone, "imagenet")
    return Embedder(model, backbone.preprocessing, np.zeros(backbone.features), components)


@pytest.fixture(scope="module")
def saved(lite0_embedder, tmp_path_factory):
    """The folder that it is saved to."""
    folder = tmp_path_factory.mktemp("graph") / "both"
    lite0_embedder.save(folder)
    return folder


def picture(photographs, size):
    return decode((photographs / "chelsea.png").read_bytes(), height=size, width=size, resize="bicubic")[np.newaxis]


def convolution_types(function):
    operations = function.get_concrete_function().graph.get_operations()
    return {operation.get_attr("T") for operation in operations if operation.type in CONVOLUTIONS}


def bytes_below(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_computes_in_half_precision_and_its_vectors_hardly_move(photographs, name):
    backbone = BACKBONES[name]
    model, _ = network.create(backbone, "random")
    for layer in model.layers:
        # Without trained weights the residuals of ResNet50 double at each step, beyond float16.
        if name == "resnet50" and layer.name.endswith("_3_bn"):
            layer.gamma.assign(layer.gamma * 0.25)
    embedder = Embedder(model, backbone.preprocessing)
    assert convolution_types(embedder.embed_f16) == {tensorflow.float16}
    assert convolution_types(embedder.embed) == {tensorflow.float32}
    image = picture(photographs, backbone.size)
    full, half = (function(image).numpy() for function in (embedder.embed, embedder.embed_f16))
    assert half.dtype == np.float32
    assert np.linalg.norm(half) == pytest.approx(1, abs=1e-5)
    assert np.vdot(full, half) >= 0.999
    assert np.any(full != half)


def test_pooling_and_pca_stay_in_float32(lite0_embedder):
    operations = lite0_embedder.embed_f16.get_concrete_function().graph.get_operations()
    types = {kind: {o.get_attr("T") for o in operations if o.type == kind} for kind in ("Relu6", "Mean", "MatMul")}
    assert types == {"Relu6": {tensorflow.float16}, "Mean": {tensorflow.float32}, "MatMul": {tensorflow.float32}}


def test_half_precision_adds_no_second_copy_of_the_weights(lite0_embedder, saved, tmp_path):
    lite0_embedder.save(tmp_path / "f32", f16=False)
    assert bytes_below(saved) < 1.05 * bytes_below(tmp_path / "f32")
    assert hasattr(tensorflow.saved_model.load(str(saved)), "embed_f16")
    assert not hasattr(tensorflow.saved_model.load(str(tmp_path / "f32")), "embed_f16")


def test_the_saved_model_serves_in_float32_by_default(lite0_embedder, saved, photographs):
    image = picture(photographs, 224)
    served = tensorflow.saved_model.load(str(saved)).signatures["serving_default"]
    (vectors,) = served(images=tensorflow.constant(image)).values()
    np.testing.assert_allclose(vectors.numpy(), lite0_embedder.embed(image).numpy(), atol=1e-6)
