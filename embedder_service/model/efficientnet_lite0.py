"""EfficientNet-Lite0 in Keras: EfficientNet-B0 (https://arxiv.org/abs/1905.11946) without squeeze-and-excitation and
with ReLU6, as https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite defines it.

Layers are called as in the PyTorch state dict, less its leading underscore, so that the weights find them by name.
Those weights were converted from TensorFlow's: padding is TensorFlow's "same" (more at the bottom and right), and
epsilon is 1e-3.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedder_service.model.tf import keras
from embedder_service.model.weights import StateDict

_STEM = 32
_HEAD = 1280
_EPSILON = 1e-3
# (blocks, kernel, stride of the first, expansion, filters) of each stage: table 1 of the paper.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


def efficientnet_lite0(size: int) -> keras.Model:
    """The network up to global average pooling: float32 [N, size, size, 3] -> float32 [N, 1280]."""
    pixels = keras.Input((size, size, 3))
    x = _conv(pixels, "conv_stem", "bn0", _STEM, kernel=3, stride=2)
    for index, (kernel, stride, expansion, filters) in enumerate(_blocks()):
        x = _block(x, f"blocks.{index}._", kernel, stride, expansion, filters)
    x = _conv(x, "conv_head", "bn1", _HEAD)
    return keras.Model(pixels, keras.layers.GlobalAveragePooling2D()(x), name="efficientnet_lite0")


def load_state_dict(model: keras.Model, state: StateDict) -> None:
    """Put a PyTorch state dict into the model made by `efficientnet_lite0`.

    Raises:
        ValueError: names or shapes do not fit.
    """
    used: set[str] = set()
    for layer in model.layers:
        if not layer.weights:
            continue
        arrays = dict(_arrays(layer, state))
        layer.set_weights(list(arrays.values()))
        used |= arrays.keys()
    # The classifier is not part of this network, and PyTorch's counter is of no use to inference.
    left = {name for name in state.keys() - used if not name.startswith("_fc.") and "num_batches_tracked" not in name}
    if left:
        raise ValueError(f"the state dict has parameters that the network has not: {sorted(left)}")


def _arrays(layer: Any, state: StateDict) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """(name in the state dict, value in Keras's axis order) of each of the layer's weights."""
    if isinstance(layer, keras.layers.BatchNormalization):
        names = [f"_{layer.name}.{part}" for part in ("weight", "bias", "running_mean", "running_var")]
        yield from ((name, state[name]) for name in names)
    else:
        name = f"_{layer.name}.weight"
        depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
        yield name, state[name].transpose((2, 3, 0, 1) if depthwise else (2, 3, 1, 0))


def _blocks() -> Iterator[tuple[int, int, int, int]]:
    for blocks, kernel, stride, expansion, filters in _STAGES:
        yield kernel, stride, expansion, filters
        for _ in range(blocks - 1):
            yield kernel, 1, expansion, filters


def _block(x: Any, prefix: str, kernel: int, stride: int, expansion: int, filters: int) -> Any:
    """Inverted residual with linear bottleneck (https://arxiv.org/abs/1801.04381)."""
    shortcut = x
    if expansion != 1:
        x = _conv(x, f"{prefix}expand_conv", f"{prefix}bn0", x.shape[-1] * expansion)
    x = keras.layers.DepthwiseConv2D(kernel, stride, "same", use_bias=False, name=f"{prefix}depthwise_conv")(x)
    x = keras.layers.ReLU(6.0)(keras.layers.BatchNormalization(epsilon=_EPSILON, name=f"{prefix}bn1")(x))
    x = keras.layers.Conv2D(filters, 1, use_bias=False, name=f"{prefix}project_conv")(x)
    x = keras.layers.BatchNormalization(epsilon=_EPSILON, name=f"{prefix}bn2")(x)
    return keras.layers.Add()([x, shortcut]) if x.shape == shortcut.shape else x


def _conv(x: Any, conv: str, norm: str, filters: int, kernel: int = 1, stride: int = 1) -> Any:
    x = keras.layers.Conv2D(filters, kernel, stride, "same", use_bias=False, name=conv)(x)
    return keras.layers.ReLU(6.0)(keras.layers.BatchNormalization(epsilon=_EPSILON, name=norm)(x))
