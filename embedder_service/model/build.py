"""Builds a model bundle: backbone, PCA fitted on real images, TensorFlow and OpenVINO graphs, manifest, checksums."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from embedder_service import decode
from embedder_service.model import backbones, bundle, checksums, features, manifest, network
from embedder_service.model.backbones import Backbone
from embedder_service.model.bundle import Bundle
from embedder_service.model.features import Progress, Skipped
from embedder_service.model.graph import Embedder
from embedder_service.model.manifest import Input, Manifest, Pca, Precision
from embedder_service.model.ov import openvino as ov
from embedder_service.runtimes.openvino import OpenVinoRuntime
from service_kit.errors import FailedPrecondition, InvalidArgument

__all__ = ["Built", "Progress", "Skipped", "TooFewImages", "build"]

_POOLING = "average"
_NORMALISATION = "l2"
# Images on which a precision is compared with TensorFlow's float32, at most.
_SAMPLES = 16
_TOOLS = ("tensorflow", "keras", "openvino", "scikit-learn", "numpy", "pillow")


@dataclass(frozen=True)
class Built:
    """What `build` made, and the images it left out."""

    bundle: Bundle
    skipped: list[Skipped]


class TooFewImages(InvalidArgument):
    """There are fewer readable images, `readable`, than the PCA is to have dimensions."""

    def __init__(self, message: str, readable: int) -> None:
        super().__init__(message)
        self.readable = readable


def build(
    backbone: str, weights: str, image_paths: Sequence[Path], dims: int | None, out: Path, progress: Progress
) -> Built:
    """Build a bundle and put it at `out`, whole or not at all. A bundle that is there already is replaced.

    Args:
        backbone: a name from `backbones.BACKBONES`.
        weights: "imagenet", "random" or the path of a file; see `network.create`.
        image_paths: the images to fit the PCA on; names and order do not matter. Unreadable ones are skipped.
        dims: length of an embedding, or None to leave the PCA out.
        out: the bundle's directory.
        progress: called as the work goes on, with the stage, the steps done and the steps there are.

    Raises:
        InvalidArgument: no such backbone, or `dims` out of range.
        TooFewImages: fewer readable images than `dims`.
        FailedPrecondition: `out` is there and is something else than a bundle.
        WeightsUnavailable: see `network.create`.
    """
    chosen = backbones.find(backbone)
    if dims is not None and not 1 <= dims <= chosen.features:
        raise InvalidArgument(
            f"dims is {dims}; {backbone} has {chosen.features} features, choose 1 to {chosen.features}"
        )
    _check_enough(len(image_paths), dims, [])
    out = out.resolve()
    _check_replaceable(out)
    files = bundle.file_digests(image_paths)
    paths = [path for _, path in files]
    taken = Input(chosen.size, chosen.size, chosen.resize, decode.REVISION, chosen.preprocessing)

    net, origin = network.create(chosen, weights)
    embedder = Embedder(net, chosen.preprocessing)
    fitted, skipped = None, list[Skipped]()
    if dims is not None:
        fitted, skipped = _fit(embedder.to_openvino(), paths, taken, dims, progress)
        embedder = Embedder(net, chosen.preprocessing, fitted.mean_, fitted.components_)

    out.parent.mkdir(parents=True, exist_ok=True)
    # A sibling, so that the move at the end stays on one file system and cannot stop half-way.
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as temporary:
        folder = Path(temporary) / "new"
        folder.mkdir()
        progress("export", 0, 1)
        _export(folder, embedder, fitted)
        precision, pattern_vector = _measure(folder, embedder, taken, paths)
        described = _describe(chosen, origin, taken, fitted, precision, pattern_vector, bundle.digest_of(files))
        (folder / bundle.MANIFEST).write_text(described.to_json(), encoding="utf-8")
        checksums.write(folder)
        if out.exists():
            os.rename(out, Path(temporary) / "old")
        os.rename(folder, out)
        progress("export", 1, 1)
    return Built(bundle.load(out), skipped)


def _check_enough(images: int, dims: int | None, skipped: list[Skipped]) -> None:
    if dims is None or images >= dims:
        return
    unreadable = ""
    if skipped:
        unreadable = f" ({len(skipped)} more could not be read; the first: {skipped[0].path}: {skipped[0].reason})"
    raise TooFewImages(
        f"{images} readable images are too few to fit {dims} dimensions{unreadable}; "
        f"give at least {dims} images, or choose at most {images} dimensions",
        images,
    )


def _check_replaceable(out: Path) -> None:
    if out.exists() and not bundle.is_bundle(out) and not (out.is_dir() and not any(out.iterdir())):
        raise FailedPrecondition(
            f"{out} is there already and is not a model bundle; choose another place, or remove it"
        )


def _fit(
    model: ov.Model, paths: Sequence[Path], taken: Input, dims: int, progress: Progress
) -> tuple[PCA, list[Skipped]]:
    runtime = OpenVinoRuntime(model)
    rows, skipped = features.extract(runtime, paths, taken, progress)
    runtime.close()
    _check_enough(len(rows), dims, skipped)
    progress("PCA", 0, 1)
    # By the covariance: no more memory than features x features beside the data, and the same result every time.
    fitted = PCA(dims, svd_solver="covariance_eigh").fit(rows.astype(np.float64))
    progress("PCA", 1, 1)
    return fitted, skipped


def _export(folder: Path, embedder: Embedder, fitted: PCA | None) -> None:
    embedder.save(folder / bundle.SAVED_MODEL)
    model_file = folder / bundle.OPENVINO_F32
    model_file.parent.mkdir()
    ov.save_model(embedder.to_openvino(), model_file, compress_to_fp16=False)
    if fitted is not None:
        np.savez(
            folder / bundle.PCA,
            mean=fitted.mean_.astype(np.float32),
            components=fitted.components_.astype(np.float32),
            explained_variance=fitted.explained_variance_,
            explained_variance_ratio=fitted.explained_variance_ratio_,
        )


def _measure(
    folder: Path, embedder: Embedder, taken: Input, paths: Iterable[Path]
) -> tuple[Precision, NDArray[np.float32]]:
    """Compare the exported OpenVINO model with TensorFlow; also the embedding of the pattern, float32 [D]."""
    runtime = OpenVinoRuntime(folder / bundle.OPENVINO_F32)
    pattern = bundle.pattern_image(taken.height, taken.width)
    losses = [
        1.0 - float(np.vdot(runtime.run(image), embedder.embed(image).numpy()))
        for image in (pattern, *islice(_readable(paths, taken), _SAMPLES))
    ]
    vector = runtime.run(pattern)[0]
    runtime.close()
    # Rounding can put a cosine a hair above 1.
    mean, worst = max(0.0, float(np.mean(losses))), max(0.0, max(losses))
    return Precision(bundle.OPENVINO_F32, len(losses), mean, worst), vector


def _readable(paths: Iterable[Path], taken: Input) -> Iterator[NDArray[np.uint8]]:
    for path in paths:
        try:
            yield features.read(path, taken)
        except (InvalidArgument, OSError):
            continue


def _describe(
    backbone: Backbone,
    origin: manifest.Weights,
    taken: Input,
    fitted: PCA | None,
    precision: Precision,
    pattern_vector: NDArray[np.float32],
    images_digest: str,
) -> Manifest:
    pca = None
    if fitted is not None:
        pca = Pca(
            dims=int(fitted.n_components_),
            images=int(fitted.n_samples_),
            explained_variance_ratio=float(fitted.explained_variance_ratio_.sum()),
            sha256=network.digest([fitted.mean_, fitted.components_]),
        )
    return Manifest(
        fingerprint=manifest.fingerprint(
            backbone=backbone.name,
            weights=origin,
            input=taken,
            pooling=_POOLING,
            normalisation=_NORMALISATION,
            pca=pca,
        ),
        backbone=backbone.name,
        weights=origin,
        input=taken,
        pooling=_POOLING,
        features=backbone.features,
        normalisation=_NORMALISATION,
        pca=pca,
        precisions={"f32": precision},
        pattern_vector=[float(value) for value in pattern_vector],
        images_digest=images_digest,
        built_with={tool: metadata.version(tool) for tool in _TOOLS},
    )
