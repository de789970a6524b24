"""Measures a model on a folder of images with classes, and the ways to search its vectors: what the report shows."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embedder_service.model import features
from embedder_service.model.bundle import PCA as PCA_FILE
from embedder_service.model.bundle import Bundle
from embedder_service.model.feature_graph import feature_graph
from embedder_service.model.features import Skipped
from embedder_service.runtimes.openvino import OpenVinoRuntime
from workbench import lesson, measures, tsne
from workbench.errors import CommandError
from workbench.images import ImageFile
from workbench.index_comparison import TOP_K, Comparison, Effort, Measured
from workbench.measures import Confusion, Ids, Neighbours, Vectors
from workbench.progress import progress

RECALL_AT = (1, 5, 10)
_SAME = 0.98  # cosine similarity of two images that are taken for the same
_MOST_DUPLICATES = 24
_MOST_CONFUSIONS = 20


@dataclass(frozen=True)
class Thoroughness:
    """How much to measure: all of it, or what takes a minute."""

    mapped: int = 4000  # images that t-SNE lays out
    effort: Effort = field(default_factory=Effort)

    @classmethod
    def quick(cls) -> Thoroughness:
        """Fewer images laid out, and fewer queries."""
        return cls(1000, Effort(200, 0.5))


@dataclass(frozen=True)
class Embedded:
    """The images and their vectors, all in the same order.

    Attributes:
        files: the images that could be read.
        skipped: the others.
        names: the classes, by number.
        classes: int64 [N], the number of the class of each.
        features: float32 [N, F], of length 1, before the PCA.
        vectors: float32 [N, D], of length 1: what the services store.
        seconds: that reading the images and computing their features took.
    """

    files: Sequence[ImageFile]
    skipped: Sequence[Skipped]
    names: Sequence[str]
    classes: Ids
    features: Vectors
    vectors: Vectors
    seconds: float


@dataclass(frozen=True)
class PcaSize:
    """A PCA of the features, fitted on these images, to one of the lesson's numbers of dimensions.

    Attributes:
        explained_variance: the share of the variance that is left, 0 to 1.
        fit_seconds: to fit it.
        project_seconds: to project all images.
        accuracy: of the projections as they are, by Euclidean distance: what the lesson measures; 0 to 1.
        accuracy_normalised: of the same divided by their lengths, as the services store them. None in one dimension,
            where only signs would be left.
        lesson: the lesson's accuracy, 0 to 1.
    """

    dims: int
    explained_variance: float
    fit_seconds: float
    project_seconds: float
    accuracy: float
    accuracy_normalised: float | None
    lesson: float


@dataclass(frozen=True)
class Retrieval:
    """Measures of retrieval of the same images by some vectors; see `workbench.measures`."""

    vectors: str
    dims: int
    accuracy: float
    mean_average_precision: float
    recall_at: Mapping[int, float]


@dataclass(frozen=True, eq=False)
class Layout:
    """Some of the images laid out by t-SNE: `images` are their numbers, int64 [M], `points` float64 [M, 2]."""

    images: Ids
    points: NDArray[np.float64]


@dataclass
class Evaluation:
    """All that was measured without the services, as it comes.

    `seconds` says what the stages took, by name; `pca_left_out` why sizes of the lesson are missing.
    """

    embedded: Embedded
    k: int
    pca: list[PcaSize] = field(default_factory=list)
    pca_left_out: dict[int, str] = field(default_factory=dict)
    retrieval: list[Retrieval] = field(default_factory=list)
    neighbours: Neighbours = field(init=False)
    class_accuracy: dict[str, float] = field(default_factory=dict)
    confusions: list[Confusion] = field(default_factory=list)
    duplicates: measures.Duplicates = field(init=False)
    indexes: list[Measured] = field(default_factory=list)
    layout: Layout = field(init=False)
    seconds: dict[str, float] = field(default_factory=dict)

    least_similarity = _SAME


def embed(bundle: Bundle, files: Sequence[ImageFile]) -> Embedded:
    """Computes the features of all images with the bundle's backbone, in float32, and projects them by its PCA.

    Raises:
        CommandError: there is nothing to measure: too few images can be read, or they have one class.
    """
    with _running(bundle) as runtime, progress("Computing features", len(files), "images") as bar:
        started = time.perf_counter()
        rows, skipped = features.extract(
            runtime, [file.path for file in files], bundle.manifest.input, lambda *_: bar.advance()
        )
        seconds = time.perf_counter() - started
    unreadable = {image.path for image in skipped}
    read = [file for file in files if file.path not in unreadable]
    names, classes = np.unique([file.label for file in read], return_inverse=True)
    if len(names) < 2:
        raise CommandError("an evaluation needs images of two classes at least, each in a folder of its own")
    return Embedded(read, skipped, names.tolist(), classes.astype(np.int64), rows, _projected(bundle, rows), seconds)


def evaluate(embedded: Embedded, logs: Path, *, k: int, seed: int, thoroughness: Thoroughness) -> Evaluation:
    """Measures all there is to measure, with progress.

    Args:
        embedded: what is measured.
        logs: directory for what the service that is compared writes.
        k: neighbours that the accuracy looks at, the image itself included.
        seed: of the choice of queries, and of t-SNE.
        thoroughness: how much.

    Raises:
        CommandError: there are fewer images than neighbours, or the service cannot be run.
        LookalikeError: a call of the service failed.
    """
    if len(embedded.files) < k:
        raise CommandError(f"{len(embedded.files)} images have no {k - 1} neighbours each: give more, or a lower --k")
    done = Evaluation(embedded, k)
    done.seconds["features"] = embedded.seconds
    with _timed(done, "pca"):
        _sweep(done)
    with _timed(done, "measures"):
        _measure(done)
    with _timed(done, "indexes"):
        _compare(done, logs, thoroughness.effort, seed)
    with _timed(done, "t_sne"):
        _lay_out(done, thoroughness.mapped, seed)
    return done


@contextmanager
def _running(bundle: Bundle) -> Iterator[OpenVinoRuntime]:
    runtime = OpenVinoRuntime(feature_graph(bundle))
    try:
        yield runtime
    finally:
        runtime.close()


@contextmanager
def _timed(done: Evaluation, stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    done.seconds[stage] = time.perf_counter() - started


def _projected(bundle: Bundle, rows: Vectors) -> Vectors:
    if bundle.manifest.pca is None:
        return rows
    with np.load(bundle.path / PCA_FILE, allow_pickle=False) as pca:
        return _unit((rows - pca["mean"]) @ pca["components"].T)


def _unit(vectors: Vectors) -> Vectors:
    # A vector of zeros stays one.
    unit: Vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.float32(1e-12))
    return unit


def _sweep(done: Evaluation) -> None:
    from sklearn.decomposition import PCA

    rows, classes, k = done.embedded.features, done.embedded.classes, done.k
    most = min(rows.shape)
    exact = rows.astype(np.float64)
    with progress("PCA", len(lesson.ACCURACY_PERCENT), "sizes") as bar:
        for dims, percent in lesson.ACCURACY_PERCENT.items():
            if dims > most:
                done.pca_left_out[dims] = f"there are {len(rows):,} images of {rows.shape[1]:,} features"
                bar.advance()
                continue
            begun = time.perf_counter()
            fitted = PCA(dims, svd_solver="covariance_eigh").fit(exact)
            fit = time.perf_counter()
            projected = fitted.transform(exact).astype(np.float32)
            end = time.perf_counter()
            done.pca.append(
                PcaSize(
                    dims,
                    float(fitted.explained_variance_ratio_.sum()),
                    fit - begun,
                    end - fit,
                    _accuracy(projected, classes, k),
                    _accuracy(_unit(projected), classes, k) if dims > 1 else None,
                    percent / 100,
                )
            )
            bar.advance()


def _accuracy(vectors: Vectors, classes: Ids, k: int) -> float:
    return measures.accuracy(measures.nearest(vectors, k - 1), classes, k)


def _measure(done: Evaluation) -> None:
    embedded, k = done.embedded, done.k
    count = len(embedded.files)
    wanted = min(max(TOP_K, k - 1), count - 1)
    kinds = [("features", embedded.features), ("as stored", embedded.vectors)]
    with progress("Ranking", (2 * len(kinds) + 1) * count, "images") as bar:
        for name, vectors in kinds:
            done.neighbours = measures.nearest(vectors, wanted, bar.advance)  # those of the last are kept
            done.retrieval.append(
                Retrieval(
                    name,
                    vectors.shape[1],
                    measures.accuracy(done.neighbours, embedded.classes, k),
                    measures.mean_average_precision(vectors, embedded.classes, bar.advance),
                    {at: measures.recall_at(done.neighbours, embedded.classes, at) for at in RECALL_AT},
                )
            )
        done.duplicates = measures.near_duplicates(embedded.vectors, _SAME, _MOST_DUPLICATES, bar.advance)
    shares = measures.accuracy_of_classes(done.neighbours, embedded.classes, k)
    done.class_accuracy = dict(zip(embedded.names, shares.tolist(), strict=True))
    done.confusions = measures.confusions(done.neighbours, embedded.classes, k)[:_MOST_CONFUSIONS]


def _compare(done: Evaluation, logs: Path, effort: Effort, seed: int) -> None:
    comparison = Comparison(done.embedded.features, done.embedded.vectors, logs, effort, seed)
    with progress("Comparing indexes", len(comparison.ways), "ways to search") as bar:
        for measure in comparison.ways:
            done.indexes.append(measure())
            bar.advance()


def _lay_out(done: Evaluation, most: int, seed: int) -> None:
    count = len(done.embedded.files)
    chosen = np.sort(np.random.default_rng(seed).permutation(count)[:most])
    with progress("t-SNE", tsne.ITERATIONS, "iterations") as bar:
        done.layout = Layout(chosen, tsne.layout(done.embedded.vectors[chosen], seed, bar.advance))


def sample(count: int, most: int, seed: int) -> list[int]:
    """Returns the numbers of some images, chosen at random, the same every time."""
    return [int(number) for number in np.random.default_rng(seed).permutation(count)[:most]]
