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
    resize: str  # key of `resizing.FILTERS`
    keras_weights: str | None  # its ImageNet weights, below Keras's own address; None: not Keras's
    keras_md5: str | None = None  # of that file, as Keras states it, which it does not for MobileNet


# Images are resized bilinearly. On Caltech-101 with EfficientNet-Lite0, against bicubic, that costs 0.2 points of
# accuracy (90.1 and 90.2 %), keeps a thumbnail of 100 pixels nearer to its original (mean cosine 0.88 and 0.86), and
# takes 0.3 ms less for each image.
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
            "bilinear",
            "resnet/resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5",
            "4d473c1dd8becc155b73f8504c6f6626",
        ),
        Backbone(
            "inceptionv3",
            "InceptionV3",
            299,
            2048,
            21_802_784,
            "tf",
            "bilinear",
            "inception_v3/inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5",
            "bcbd6486424b2319ff4ef7d526e38f63",
        ),
        Backbone(
            "vgg16",
            "VGG16",
            224,
            512,
            14_714_688,
            "caffe",
            "bilinear",
            "vgg16/vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5",
            "6d6bbae143d832006294945121d1f1fc",
        ),
        Backbone(
            "vgg19",
            "VGG19",
            224,
            512,
            20_024_384,
            "caffe",
            "bilinear",
            "vgg19/vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5",
            "253f8cb515780f3b799900260a226db6",
        ),
        Backbone(
            "mobilenet",
            "MobileNet",
            224,
            1024,
            3_228_864,
            "tf",
            "bilinear",
            "mobilenet/mobilenet_1_0_224_tf_no_top.h5",
        ),
        Backbone("efficientnet_lite0", "EfficientNet-Lite0", 224, 1280, 3_413_024, "lite", "bilinear", None),
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
