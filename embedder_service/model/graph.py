"""The one graph: uint8 pixels in, finished embeddings out, so that no caller can forget a step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embedder_service.model.ov import openvino as ov
from embedder_service.model.preprocessing import PREPROCESSING
from embedder_service.model.tf import keras
from embedder_service.model.tf import tensorflow as tf


class Embedder(tf.Module):  # type: ignore[misc]  # TensorFlow brings no types
    """Preprocessing, backbone, average pooling, L2 and, if given, PCA and L2 again."""

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
        super().__init__()
        self._network = network
        self._preprocess = PREPROCESSING[preprocessing]
        self._mean = None if mean is None else mean.astype(np.float32)
        self._components = None if components is None else components.astype(np.float32)
        signature = [tf.TensorSpec([None, *network.input_shape[1:]], tf.uint8, name="images")]
        self.embed = tf.function(self._embed, input_signature=signature)

    def _embed(self, images: tf.Tensor) -> tf.Tensor:
        """uint8 [N, H, W, 3], RGB -> float32 [N, D], rows of L2 norm 1."""
        features = self._network(self._preprocess(tf.cast(images, tf.float32)), training=False)
        vectors = tf.math.l2_normalize(features, axis=1)
        if self._components is not None:
            projected = tf.matmul(vectors - self._mean, self._components, transpose_b=True)
            vectors = tf.math.l2_normalize(projected, axis=1)
        return vectors

    def save(self, folder: Path) -> None:
        """Write a TensorFlow SavedModel, with `embed` as its function and its serving signature."""
        tf.saved_model.save(self, str(folder), signatures=self.embed)

    def to_openvino(self) -> ov.Model:
        """The same graph for OpenVINO, in float32."""
        return ov.convert_model(self.embed.get_concrete_function())
