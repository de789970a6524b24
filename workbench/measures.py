"""How good a set of embeddings is: what its nearest neighbours are, measured in the usual ways.

"Nearest" is by Euclidean distance, and never includes the image itself. Vectors are float32 [N, D], of any length;
where all have length 1, the nearest are the most similar by cosine. Classes are integers, int64 [N].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from embedder_service.model import accuracy as lesson

Vectors: TypeAlias = NDArray[np.float32]
Ids: TypeAlias = NDArray[np.int64]
_Chunks: TypeAlias = Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]

# Images compared with all others at a time: 20 MB where there are 10,000.
_CHUNK = 500


def _done(images: int) -> None: ...


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The nearest others of each image.

    Attributes:
        ids: int64 [N, k], the nearest first.
        distances: float32 [N, k], Euclidean.
    """

    ids: Ids
    distances: NDArray[np.float32]


@dataclass(frozen=True)
class Confusion:
    """Images of one class that have neighbours of another.

    Attributes:
        of: the class of the images.
        found: the class of the neighbours.
        share: of all neighbours looked at of the images of class `of`, how many are of class `found`, 0 to 1.
        image: the image of the nearest such pair.
        neighbour: its neighbour.
    """

    of: int
    found: int
    share: float
    image: int
    neighbour: int


@dataclass(frozen=True)
class Duplicates:
    """Pairs of images that look the same.

    Attributes:
        count: how many pairs there are.
        pairs: the most similar of them, each as two images, the lesser first, and their cosine similarity.
    """

    count: int
    pairs: list[tuple[int, int, float]]


def nearest(vectors: Vectors, k: int, on_progress: Callable[[int], None] = _done) -> Neighbours:
    """Finds the k nearest others of each image, exactly.

    Args:
        vectors: float32 [N, D].
        k: at most N - 1.
        on_progress: called with numbers of images that are done; likewise below.
    """
    ids, distances = [], []
    for chunk, scores in _scores(vectors):
        taken = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        # From the differences themselves: the products above cancel where two vectors are nearly the same.
        apart = np.linalg.norm(vectors[chunk, None] - vectors[taken], axis=2)
        order = np.argsort(apart, axis=1, kind="stable")
        ids.append(np.take_along_axis(taken, order, axis=1))
        distances.append(np.take_along_axis(apart, order, axis=1))
        on_progress(len(chunk))
    return Neighbours(np.concatenate(ids), np.concatenate(distances))


def accuracy(neighbours: Neighbours, classes: Ids, k: int = lesson.K) -> float:
    """The measure of `embedder_service.model.accuracy`, 0 to 1; `k` counts the image itself."""
    return lesson.accuracy(int(_right(neighbours, classes, k - 1).sum()), len(classes), k)


def accuracy_of_classes(neighbours: Neighbours, classes: Ids, k: int = lesson.K) -> NDArray[np.float64]:
    """The same of the images of each class, float64 [C], 0 to 1."""
    shares = _right(neighbours, classes, k - 1).mean(axis=1)
    totals = np.bincount(classes, weights=shares)
    return totals / np.maximum(np.bincount(classes), 1)


def recall_at(neighbours: Neighbours, classes: Ids, k: int) -> float:
    """Recall@k as image retrieval has it: the share of images with one of their class among the k nearest, 0 to 1."""
    return float(_right(neighbours, classes, k).any(axis=1).mean())


def mean_average_precision(vectors: Vectors, classes: Ids, on_progress: Callable[[int], None] = _done) -> float:
    """mAP, 0 to 1: the mean over all images of the average precision of all others, ranked by their distance.

    The average precision of an image is the mean, over the others of its class, of the share of its class among those
    ranked no lower. Images that are alone in their class have none and are left out; where all are, the result is NaN.
    """
    precisions = []
    ranks = np.arange(1, len(vectors))
    for chunk, scores in _scores(vectors):
        # Itself is last, and left out.
        order = np.argsort(-scores, axis=1)[:, :-1]
        same = classes[order] == classes[chunk, None]
        found = same.sum(axis=1)
        precision = (same * (np.cumsum(same, axis=1) / ranks)).sum(axis=1)
        precisions.append(precision[found > 0] / found[found > 0])
        on_progress(len(chunk))
    values = np.concatenate(precisions)
    return float(values.mean()) if values.size else float("nan")


def confusions(neighbours: Neighbours, classes: Ids, k: int = lesson.K) -> list[Confusion]:
    """Returns which classes are taken for which, the most confused first; `k` counts the image itself."""
    ids, distances = neighbours.ids[:, : k - 1], neighbours.distances[:, : k - 1]
    images, columns = np.nonzero(classes[ids] != classes[:, None])
    # The nearest pair of each two classes comes first, and so is the one that `unique` gives.
    order = np.argsort(distances[images, columns], kind="stable")
    images, columns = images[order], columns[order]
    keys = classes[images] * (classes.max() + 1) + classes[ids[images, columns]]
    _, first, counts = np.unique(keys, return_index=True, return_counts=True)
    looked_at = np.bincount(classes) * ids.shape[1]
    found = []
    for pair, count in zip(first, counts, strict=True):
        image = int(images[pair])
        neighbour = int(ids[image, columns[pair]])
        of = int(classes[image])
        found.append(Confusion(of, int(classes[neighbour]), float(count / looked_at[of]), image, neighbour))
    return sorted(found, key=lambda each: (-each.share, each.of, each.found))


def near_duplicates(
    vectors: Vectors, similarity: float, most: int, on_progress: Callable[[int], None] = _done
) -> Duplicates:
    """Finds the pairs of images whose cosine similarity is at least `similarity`.

    Args:
        vectors: of length 1.
        similarity: the least, -1 to 1.
        most: pairs to return, at most.
    """
    count, kept = 0, list[tuple[int, int, float]]()
    for start in range(0, len(vectors), _CHUNK):
        similarities = vectors[start : start + _CHUNK] @ vectors[start:].T
        first, second = np.nonzero(np.triu(similarities >= similarity, k=1))
        count += len(first)
        values = similarities[first, second]
        kept += [
            (start + int(first[at]), start + int(second[at]), float(values[at])) for at in np.argsort(-values)[:most]
        ]
        kept = sorted(kept, key=lambda pair: (-pair[2], pair))[:most]
        on_progress(len(similarities))
    return Duplicates(count, kept)


def _right(neighbours: Neighbours, classes: Ids, count: int) -> NDArray[np.bool_]:
    return np.asarray(classes[neighbours.ids[:, :count]] == classes[:, None])


def _scores(vectors: Vectors) -> _Chunks:
    """Yields parts of the images, and for each of them how near all images are: larger is nearer, itself -infinity."""
    # Of |x - y|^2 = |x|^2 - 2 xy + |y|^2 what depends on y.
    halves = (vectors.astype(np.float64) ** 2).sum(axis=1).astype(np.float32) / 2
    for start in range(0, len(vectors), _CHUNK):
        chunk = np.arange(start, min(start + _CHUNK, len(vectors)))
        scores = vectors[chunk] @ vectors.T - halves
        scores[np.arange(len(chunk)), chunk] = -np.inf
        yield chunk, scores
