"""What each backbone's training did to pixels: float32 [N, H, W, 3] RGB in 0..255 -> the backbone's input.

The first two are `keras.applications.imagenet_utils.preprocess_input` in its modes of the same names
(https://keras.io/api/applications/); the third is EfficientNet-Lite's
(https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# Of ImageNet, in the order blue, green, red.
_CAFFE_MEAN = (103.939, 116.779, 123.68)


def _caffe(pixels: Any) -> Any:
    return pixels[..., ::-1] - list(_CAFFE_MEAN)


def _tf(pixels: Any) -> Any:
    return pixels / 127.5 - 1.0


def _lite(pixels: Any) -> Any:
    return (pixels - 127.0) / 128.0


PREPROCESSING: dict[str, Callable[[Any], Any]] = {"caffe": _caffe, "tf": _tf, "lite": _lite}
