"""The backbones there are, and what must be known of each before TensorFlow is even imported."""

from __future__ import annotations

from dataclasses import dataclass

from service_kit.errors import InvalidArgument

DEFAULT = "resnet50"


@dataclass(frozen=True)
class Backbone:
    """A convolutional network without its classifier, ending in global average pooling."""

    name: str
    title: str  # as its paper writes it, and as `keras.applications` calls it where `keras_weights` is given
    size: int  # height and width of the input
    features: int  # length of the pooled output
    parameters: int  # without the classifier
    preprocessing: str  # key of `preprocessing.PREPROCESSING`
    resize: str  # key of `decode.FILTERS`
    keras_weights: (
        str | None
    )  # where Keras downloads its ImageNet weights from, below its own address; None: not Keras's


BACKBONES = {
    backbone.name: backbone
    for backbone in (
        Backbone(
            "resnet50",
            "ResNet50",
            224,
            2048,
            23_587_712,
            "caffe",
            "bicubic",
            "resnet/resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5",
        ),
        Backbone(
            "inceptionv3",
            "InceptionV3",
            299,
            2048,
            21_802_784,
            "tf",
            "bicubic",
            "inception_v3/inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5",
        ),
        Backbone(
            "vgg16",
            "VGG16",
            224,
            512,
            14_714_688,
            "caffe",
            "bicubic",
            "vgg16/vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5",
        ),
        Backbone(
            "vgg19",
            "VGG19",
            224,
            512,
            20_024_384,
            "caffe",
            "bicubic",
            "vgg19/vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5",
        ),
        Backbone(
            "mobilenet",
            "MobileNet",
            224,
            1024,
            3_228_864,
            "tf",
            "bicubic",
            "mobilenet/mobilenet_1_0_224_tf_no_top.h5",
        ),
        Backbone("efficientnet_lite0", "EfficientNet-Lite0", 224, 1280, 3_413_024, "lite", "bicubic", None),
    )
}


def find(name: str) -> Backbone:
    """The backbone of that name.

    Raises:
        InvalidArgument: there is none.
    """
    if name not in BACKBONES:
        raise InvalidArgument(f"there is no backbone {name!r}; choose one of {', '.join(BACKBONES)}")
    return BACKBONES[name]
