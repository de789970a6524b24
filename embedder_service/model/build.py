"""Builds a model bundle: backbone, PCA fitted on real images, TensorFlow and OpenVINO graphs, the precisions that pass
the gate, manifest, checksums."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from embedder_service import decode
from embedder_service.model import backbones, bundle, checksums, features, manifest, network, quantize
from embedder_service.model.accuracy import K, accuracy_of
from embedder_service.model.backbones import Backbone
from embedder_service.model.bundle import Bundle
from embedder_service.model.features import Progress, Skipped
from embedder_service.model.gate import Gate
from embedder_service.model.graph import Embedder
from embedder_service.model.manifest import Input, Manifest, Pca, Precision
from embedder_service.model.ov import openvino as ov
from embedder_service.runtimes.openvino import OpenVinoRuntime, read_model, require_native
from service_kit.errors import FailedPrecondition, InvalidArgument

__all__ = ["Built", "Gate", "Progress", "Skipped", "TooFewImages", "build"]

_POOLING = "average"
_NORMALISATION = "l2"
# Images on which OpenVINO's float32 is compared with TensorFlow's, at most.
_SAMPLES = 16
_NO_IMAGES = "there are no readable images to measure it with"
_TOOLS = ("tensorflow", "keras", "openvino", "nncf", "scikit-learn", "numpy", "pillow")


@dataclass(frozen=True)
class Built:
    """What `build` made, the images it left out, and by name the precisions it left out, each with the reason."""

    bundle: Bundle
    skipped: list[Skipped]
    left_out: dict[str, str]


class TooFewImages(InvalidArgument):
    """There are fewer readable images, `readable`, than the PCA is to have dimensions."""

    def __init__(self, message: str, readable: int) -> None:
        super().__init__(message)
        self.readable = readable


@dataclass(frozen=True)
class _Reference:
    """What the precisions are measured on: images, their classes, and their float32 embeddings, float32 [N, D]."""

    paths: Sequence[Path]
    classes: Sequence[str] | None
    vectors: NDArray[np.float32]

    def accuracy(self, vectors: NDArray[np.float32]) -> float | None:
        """The accuracy of float32 [N, D]; None where there are no classes, or not the neighbours it takes."""
        return accuracy_of(vectors, self.classes) if self.classes and len(vectors) >= K else None


def build(
    backbone: str,
    weights: str,
    image_paths: Sequence[Path],
    dims: int | None,
    out: Path,
    progress: Progress,
    *,
    weights_sha256: str | None = None,
    classes: Sequence[str] | None = None,
    gate: Gate = Gate(),
) -> Built:
    """Build a bundle and put it at `out`, whole or not at all. A bundle that is there already is replaced.

    Args:
        backbone: a name from `backbones.BACKBONES`.
        weights: "imagenet", "random" or the path of a file; see `network.create`.
        image_paths: the images to fit the PCA on; names and order do not matter. Unreadable ones are skipped.
        dims: length of an embedding, or None to leave the PCA out.
        out: the bundle's directory.
        progress: called as the work goes on, with the stage, the steps done and the steps there are.
        weights_sha256: what the file of the weights must have to be read; see `network.create`.
        classes: the class of each image, to measure the accuracy of each precision; None if there are none.
        gate: what a precision may lose and still be kept; float32 always is.

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
    class_of = dict(zip(image_paths, classes, strict=True)) if classes else {}
    taken = Input(chosen.size, chosen.size, chosen.resize, decode.REVISION, chosen.preprocessing)

    net, origin = network.create(chosen, weights, sha256=weights_sha256)
    embedder = Embedder(net, chosen.preprocessing)
    rows, skipped = _extract(OpenVinoRuntime(embedder.to_openvino()), paths, taken, progress)
    fitted = None
    if dims is not None:
        _check_enough(len(rows), dims, skipped)
        fitted = _fit(rows, dims, progress)
        embedder = Embedder(net, chosen.preprocessing, fitted.mean_, fitted.components_)
    unreadable = {image.path for image in skipped}
    paths = [path for path in paths if path not in unreadable]
    reference = _Reference(paths, [class_of[path] for path in paths] if class_of else None, _project(rows, fitted))

    out.parent.mkdir(parents=True, exist_ok=True)
    # A sibling, so that the move at the end stays on one file system and cannot stop half-way.
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as temporary:
        folder = Path(temporary) / "new"
        folder.mkdir()
        progress("export", 0, 1)
        f16 = _measure_f16(embedder, taken, reference, gate)
        _export(folder, embedder, fitted, f16=isinstance(f16, Precision))
        f32, pattern_vector = _measure_f32(folder, embedder, taken, reference)
        progress("export", 1, 1)
        others, left_out = _further_precisions(folder, taken, reference, f32, gate, progress)
        if isinstance(f16, Precision):
            others["f16"] = f16
        else:
            left_out["f16"] = f16
        described = _describe(
            chosen, origin, taken, fitted, {"f32": f32} | others, pattern_vector, bundle.digest_of(files)
        )
        (folder / bundle.MANIFEST).write_text(described.to_json(), encoding="utf-8")
        checksums.write(folder)
        if out.exists():
            os.rename(out, Path(temporary) / "old")
        os.rename(folder, out)
    return Built(bundle.load(out), skipped, left_out)


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


def _extract(
    runtime: OpenVinoRuntime, paths: Sequence[Path], taken: Input, progress: Progress, stage: str = "features"
) -> tuple[NDArray[np.float32], list[Skipped]]:
    try:
        return features.extract(runtime, paths, taken, progress, stage)
    finally:
        runtime.close()


def _fit(rows: NDArray[np.float32], dims: int, progress: Progress) -> PCA:
    progress("PCA", 0, 1)
    # By the covariance: no more memory than features x features beside the data, and the same result every time.
    fitted = PCA(dims, svd_solver="covariance_eigh").fit(rows.astype(np.float64))
    progress("PCA", 1, 1)
    return fitted


def _project(rows: NDArray[np.float32], fitted: PCA | None) -> NDArray[np.float32]:
    """The embeddings of normalised features, as the graph computes them: float32 [N, F] -> float32 [N, D]."""
    if fitted is None:
        return rows
    mean, components = fitted.mean_.astype(np.float32), fitted.components_.astype(np.float32)
    vectors: NDArray[np.float32] = (rows - mean) @ components.T
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def _export(folder: Path, embedder: Embedder, fitted: PCA | None, *, f16: bool) -> None:
    embedder.save(folder / bundle.SAVED_MODEL, f16=f16)
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


def _measure_f32(
    folder: Path, embedder: Embedder, taken: Input, reference: _Reference
) -> tuple[Precision, NDArray[np.float32]]:
    """Compare the exported OpenVINO model with TensorFlow; also the embedding of the pattern, float32 [D]."""
    runtime = OpenVinoRuntime(read_model(folder / bundle.OPENVINO_F32))
    pattern = bundle.pattern_image(taken.height, taken.width)
    losses = [
        1.0 - float(np.vdot(runtime.run(image), embedder.embed(image).numpy()))
        for image in (pattern, *(features.read(path, taken) for path in reference.paths[:_SAMPLES]))
    ]
    vector = runtime.run(pattern)[0]
    runtime.close()
    return _precision(bundle.OPENVINO_F32, np.asarray(losses), reference.accuracy(reference.vectors)), vector


def _measure_f16(embedder: Embedder, taken: Input, reference: _Reference, gate: Gate) -> Precision | str:
    """Compare TensorFlow's mixed float16, which is for GPUs, with float32 on a few images; or why it is left out."""
    images = [features.read(path, taken) for path in reference.paths[:_SAMPLES]]
    if not images:
        return _NO_IMAGES
    losses = np.array([1.0 - float(np.vdot(embedder.embed_f16(image), embedder.embed(image))) for image in images])
    if not np.isfinite(losses).all():
        return "its vectors are not finite: the network overflows it"
    measured = _precision(bundle.SAVED_MODEL, losses, None)
    return gate.objection(1 - measured.mean_loss, None) or measured


def _further_precisions(
    folder: Path, taken: Input, reference: _Reference, f32: Precision, gate: Gate, progress: Progress
) -> tuple[dict[str, Precision], dict[str, str]]:
    """Make and measure what is faster than float32: what passes the gate, and why the rest does not."""
    kept, left_out = dict[str, Precision](), dict[str, str]()
    for name, model in (("bf16", bundle.OPENVINO_F32), ("int8", bundle.OPENVINO_INT8)):
        try:
            require_native(name)
        except FailedPrecondition as error:
            left_out[name] = f"it cannot be measured here: {error.message}"
            continue
        if not reference.paths:
            left_out[name] = _NO_IMAGES
            continue
        if model == bundle.OPENVINO_INT8:
            _quantize(folder, taken, reference.paths[: quantize.IMAGES], progress)
        measured = _measure(folder, model, name, taken, reference, progress)
        if objection := gate.objection(1 - measured.mean_loss, measured.accuracy_loss(f32)):
            left_out[name] = objection
        else:
            kept[name] = measured
    if "int8" not in kept:
        for suffix in (".xml", ".bin"):
            (folder / bundle.OPENVINO_INT8).with_suffix(suffix).unlink(missing_ok=True)
    return kept, left_out


def _quantize(folder: Path, taken: Input, paths: Sequence[Path], progress: Progress) -> None:
    images = [features.read(path, taken) for path in paths]
    model = quantize.quantize(read_model(folder / bundle.OPENVINO_F32), images, progress)
    ov.save_model(model, folder / bundle.OPENVINO_INT8, compress_to_fp16=False)


def _measure(folder: Path, model: str, name: str, taken: Input, reference: _Reference, progress: Progress) -> Precision:
    """Compare a model, run in a precision, with float32 on all images."""
    runtime = OpenVinoRuntime(read_model(folder / model), precision=name)
    vectors, _ = _extract(runtime, reference.paths, taken, progress, f"measure {name}")
    losses = 1.0 - (vectors * reference.vectors).sum(axis=1)
    return _precision(model, losses, reference.accuracy(vectors))


def _precision(model: str, losses: NDArray[np.floating], accuracy: float | None) -> Precision:
    # Rounding can put a cosine a hair above 1.
    mean, worst = max(0.0, float(losses.mean())), max(0.0, float(losses.max()))
    return Precision(model, len(losses), mean, worst, accuracy)


def _describe(
    backbone: Backbone,
    origin: manifest.Weights,
    taken: Input,
    fitted: PCA | None,
    precisions: dict[str, Precision],
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
        precisions=precisions,
        pattern_vector=[float(value) for value in pattern_vector],
        images_digest=images_digest,
        built_with={tool: metadata.version(tool) for tool in _TOOLS},
    )
