"""Compares backbones on the same images: what each costs, and how good its features are."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from embedder_service import decode
from embedder_service.model import features
from embedder_service.model.backbones import BACKBONES, Backbone
from embedder_service.model.manifest import Input
from embedder_service.model.weights import WeightsUnavailable
from embedder_service.runtimes.openvino import OpenVinoRuntime
from search_service.index_memory import memory_bytes
from search_service.records import CollectionVersion, IndexSpec, VectorSpace
from service_kit.errors import InvalidArgument
from workbench import measures
from workbench.errors import CommandError
from workbench.images import ImageFile
from workbench.progress import progress

IMAGENET = "imagenet"


@dataclass(frozen=True)
class Compared:
    """One backbone. What was not measured is None, and `left_out` says why.

    Attributes:
        name: key of `backbones.BACKBONES`.
        title: as its paper writes it.
        parameters: without the classifier.
        features: length of its output.
        weights: "imagenet", or the file they are from.
        images: how many were measured.
        images_per_second: read, decoded and run, in float32, one stream for each core.
        accuracy: of the features, 0 to 1; see `embedder_service.model.accuracy`.
        accuracy_pca: the same after PCA to `dims`, in length 1, as it is stored.
        dims: of that.
        index_bytes: estimate of the memory for all features and an HNSW index over them.
        index_bytes_pca: the same after PCA.
    """

    name: str
    title: str
    parameters: int
    features: int
    weights: str
    images: int = 0
    images_per_second: float | None = None
    accuracy: float | None = None
    accuracy_pca: float | None = None
    dims: int | None = None
    index_bytes: int | None = None
    index_bytes_pca: int | None = None
    left_out: str = ""


def compare(
    names: Sequence[str], weights: Mapping[str, str], files: Sequence[ImageFile], *, dims: int, k: int
) -> list[Compared]:
    """Measures backbones one after the other, with progress. One whose weights cannot be had is left out.

    Args:
        names: keys of `backbones.BACKBONES`.
        weights: weights files by name, for those that are not to have ImageNet's as Keras or a package has them.
        files: images of two classes at least; those that cannot be read are left out.
        dims: dimensions after PCA; fewer where there are fewer images or features.
        k: neighbours that the accuracy looks at, the image itself included.

    Raises:
        CommandError: there are too few images that can be read.
    """
    return [_compare(BACKBONES[name], weights.get(name, IMAGENET), files, dims, k) for name in names]


def _compare(backbone: Backbone, weights: str, files: Sequence[ImageFile], dims: int, k: int) -> Compared:
    # With TensorFlow: only when there is something to compare.
    from sklearn.decomposition import PCA

    from embedder_service.model import network
    from embedder_service.model.graph import Embedder

    origin = (backbone.name, backbone.title, backbone.parameters, backbone.features, weights)
    if weights == "random":
        raise InvalidArgument("random weights compare nothing: give imagenet or the path of a weights file")
    try:
        net, _ = network.create(backbone, weights)
    except WeightsUnavailable as error:
        return Compared(*origin, left_out=error.message)
    taken = Input(backbone.size, backbone.size, backbone.resize, decode.REVISION, backbone.preprocessing)
    runtime = OpenVinoRuntime(Embedder(net, backbone.preprocessing).to_openvino())
    try:
        with progress(backbone.title, len(files), "images") as bar:
            started = time.perf_counter()
            rows, skipped = features.extract(
                runtime, [file.path for file in files], taken, lambda *_: bar.advance(), backbone.title
            )
            seconds = time.perf_counter() - started
    finally:
        runtime.close()
    unreadable = {image.path for image in skipped}
    labels = [file.label for file in files if file.path not in unreadable]
    if len(labels) < k or len(set(labels)) < 2:
        raise CommandError(f"{len(labels)} images that can be read, in {len(set(labels))} classes, are too few")
    _, classes = np.unique(labels, return_inverse=True)
    dims = min(dims, len(rows) - 1, rows.shape[1])
    projected = PCA(dims, svd_solver="covariance_eigh").fit_transform(rows.astype(np.float64))
    projected /= np.linalg.norm(projected, axis=1, keepdims=True)
    return Compared(
        *origin,
        len(rows),
        len(files) / seconds,
        _accuracy(rows, classes, k),
        _accuracy(projected.astype(np.float32), classes, k),
        dims,
        _index_bytes(len(rows), rows.shape[1]),
        _index_bytes(len(rows), dims),
    )


def _accuracy(vectors: measures.Vectors, classes: measures.Ids, k: int) -> float:
    return measures.accuracy(measures.nearest(vectors, k - 1), classes, k)


def _index_bytes(rows: int, dims: int) -> int:
    """What the vectors and their HNSW index take of memory, with the defaults of the service."""
    space = VectorSpace("", dims)
    return memory_bytes(CollectionVersion("", 1, "", space, IndexSpec(), multi_tenant=False, created_ms=0), rows)
