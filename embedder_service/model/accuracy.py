"""The accuracy of an embedding: how often the nearest neighbours of an image are of its class.

The measure of the lesson that this project started from: of every image, take its k nearest, itself among them and
left out; the accuracy is the share of the k - 1 others that have the image's class, over all images.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

K = 5
# Images compared with all others at a time: 40 MB of similarities where there are 10,000.
_CHUNK = 1000


def accuracy(right: int, images: int, k: int = K) -> float:
    """The accuracy, 0 to 1, where `right` neighbours of all `images` together are of the right class."""
    return right / (images * (k - 1))


def accuracy_of(vectors: NDArray[np.float32], classes: Sequence[str], k: int = K) -> float:
    """The accuracy of embeddings compared with each other.

    Args:
        vectors: float32 [N, D], rows of L2 norm 1, so that the nearest are those with the largest inner product.
        classes: the class of each.
        k: neighbours of an image, itself included; there are at least as many images.
    """
    _, of = np.unique(np.asarray(classes), return_inverse=True)
    right = 0
    for start in range(0, len(vectors), _CHUNK):
        chunk = np.arange(start, min(start + _CHUNK, len(vectors)))
        similarity = vectors[chunk] @ vectors.T
        similarity[np.arange(len(chunk)), chunk] = -np.inf
        nearest = np.argpartition(similarity, -(k - 1), axis=1)[:, -(k - 1) :]
        right += int((of[nearest] == of[chunk, np.newaxis]).sum())
    return accuracy(right, len(vectors), k)
