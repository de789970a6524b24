"""The one graph: uint8 pixels in, finished embeddings out, so that no caller can forget a step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embedder_service.model.ov import openvino as ov
from embedder_service.model.preprocessing import PREPROCESSING
from embedder_service.model.tf import keras
from embedder_service.model.tf import tensorflow as tf


class Embedder:
    """Preprocessing, backbone, average pooling, L2 and, if given, PCA and L2 again.

    `embed` computes in float32. `embed_f16` is the same over the same variables, with the backbone in mixed float16;
    what comes before and after it, pooling included, stays in float32. Both take uint8 [N, H, W, 3], RGB, and give
    float32 [N, D], rows of L2 norm 1. Activations beyond float16's 65,504 give vectors that are not finite.
    """

    def __init__(
        self,
        network: keras.Model,
        preprocessing: str,
        mean: NDArray[np.floating] | None = None,
        components: NDArray[np.floating] | None = None,
    ) -> None:
        """Put the graph together.

        Args:
            network: float32 [N, H, W, 3] -> float32 [N, F].
            preprocessing: key of `PREPROCESSING`.
            mean: float [F], of the normalised features, or None for no PCA.
            components: float [D, F], orthonormal rows.
        """
        self._network = network
        self._preprocess = PREPROCESSING[preprocessing]
        # Variables, as the backbone's weights are: a constant would be stored once for each function.
        self._mean = None if mean is None else tf.Variable(mean.astype(np.float32), trainable=False)
        self._components = None if components is None else tf.Variable(components.astype(np.float32), trainable=False)
        signature = [tf.TensorSpec([None, *network.input_shape[1:]], tf.uint8, name="images")]
        self.embed = tf.function(self._embed, input_signature=signature)
        self.embed_f16 = tf.function(self._embed_f16, input_signature=signature)

    def _embed(self, images: tf.Tensor) -> tf.Tensor:
        features = self._network(self._preprocess(tf.cast(images, tf.float32)), training=False)
        vectors = tf.math.l2_normalize(features, axis=1)
        if self._components is not None:
            projected = tf.matmul(vectors - self._mean, self._components, transpose_b=True)
            vectors = tf.math.l2_normalize(projected, axis=1)
        return vectors

    def _embed_f16(self, images: tf.Tensor) -> tf.Tensor:
        with _mixed_float16(self._network):
            return self._embed(images)

    def save(self, folder: Path, *, f16: bool = True) -> None:
        """Write a TensorFlow SavedModel with the functions `embed`, its serving signature, and `embed_f16`.

        Args:
            folder: where to.
            f16: False leaves `embed_f16` out, for a network that float16 cannot hold.
        """
        # Not Keras's model itself: it would store its layers and their functions as well, to be trained again.
        saved = tf.Module()
        saved.weights = [*self._network.weights, self._mean, self._components]
        saved.embed = self.embed
        if f16:
            saved.embed_f16 = self.embed_f16
        tf.saved_model.save(saved, str(folder), signatures=self.embed)

    def to_openvino(self) -> ov.Model:
        """The same graph for OpenVINO, in float32."""
        return ov.convert_model(self.embed.get_concrete_function())


@contextmanager
def _mixed_float16(network: keras.Model) -> Iterator[None]:
    """While it lasts, a network is traced to compute in float16, with its variables and its pooling in float32.

    https://keras.io/api/mixed_precision/
    """
    layers = [layer for layer in network.layers if not isinstance(layer, keras.layers.GlobalAveragePooling2D)]
    policies = [layer.dtype_policy for layer in layers]
    for layer in layers:
        layer.dtype_policy = "mixed_float16"
    try:
        yield
    finally:
        for layer, policy in zip(layers, policies, strict=True):
            layer.dtype_policy = policy
