"""What a model bundle says of itself: manifest.json as a typed value, and the fingerprint of its vector space."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
import typing
from dataclasses import dataclass
from typing import Any

from embedder_service import decode, resizing
from service_kit.errors import FailedPrecondition

SCHEMA_VERSION = 2
# Tells a manifest of ours from any other manifest.json.
KIND = "lookalike-model-bundle"


@dataclass(frozen=True)
class Weights:
    """Where the backbone's weights came from.

    `sha256` is over the arrays in the model's order, not over a file: the same weights, downloaded or from a local file
    of another format, make the same vectors.
    """

    source: str  # "imagenet", "file" or "random"
    sha256: str


@dataclass(frozen=True)
class Input:
    """How an image becomes the graph's input, uint8 [N, height, width, 3], RGB."""

    height: int
    width: int
    resize: str
    decode_revision: int
    preprocessing: str


@dataclass(frozen=True)
class Pca:
    """The projection after the first normalisation; `sha256` is over mean and components."""

    dims: int
    images: int
    explained_variance_ratio: float
    sha256: str


@dataclass(frozen=True)
class Precision:
    """One precision the bundle was measured in, on `images` of the build's images.

    `model` is what to run, relative to the bundle. `loss` is 1 - cosine similarity: of f32 to TensorFlow's float32, of
    the others to f32. `accuracy`, 0 to 1, is that of `accuracy.py` over all images; None where they have no classes.
    """

    model: str
    images: int
    mean_loss: float
    max_loss: float
    accuracy: float | None

    def accuracy_loss(self, f32: Precision) -> float | None:
        """How much less accurate than `f32` it is, in percentage points; None where that was not measured."""
        return None if f32.accuracy is None or self.accuracy is None else 100 * (f32.accuracy - self.accuracy)


@dataclass(frozen=True)
class Manifest:
    """manifest.json. `fingerprint` names the vector space: bundles with the same one give comparable vectors."""

    fingerprint: str
    backbone: str
    weights: Weights
    input: Input
    pooling: str
    features: int  # length of the backbone's pooled output
    normalisation: str
    pca: Pca | None  # None: the normalised features themselves
    precisions: dict[str, Precision]
    pattern_vector: list[float]  # float32 embedding of `pattern_image`, to prove an installation
    images_digest: str  # `images_digest` of the files the bundle was built with
    built_with: dict[str, str]  # versions, for the record

    @property
    def dims(self) -> int:
        """Length of an embedding."""
        return self.features if self.pca is None else self.pca.dims

    @property
    def random(self) -> bool:
        """Whether the weights are random, so that the vectors mean nothing."""
        return self.weights.source == "random"

    def accuracy_loss(self, precision: str) -> float | None:
        """How much less accurate than f32 a precision is, in percentage points; None where that was not measured."""
        f32, other = self.precisions.get("f32"), self.precisions.get(precision)
        return other.accuracy_loss(f32) if f32 and other else None

    def to_json(self) -> str:
        """The text of manifest.json."""
        head = {"kind": KIND, "schema_version": SCHEMA_VERSION}
        return json.dumps(head | dataclasses.asdict(self), indent=2) + "\n"


def fingerprint(
    *, backbone: str, weights: Weights, input: Input, pooling: str, normalisation: str, pca: Pca | None
) -> str:
    """SHA-256 in hex over everything that changes the vectors, and nothing else.

    Where the weights came from and how much variance the PCA explains do not; versions do not by themselves.
    """
    space = {
        "backbone": backbone,
        "weights": weights.sha256,
        "input": dataclasses.asdict(input),
        "pooling": pooling,
        "normalisation": normalisation,
        "pca": None if pca is None else {"dims": pca.dims, "sha256": pca.sha256},
    }
    canonical = json.dumps(space, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def parse(text: str, where: str) -> Manifest:
    """Read the text of a manifest.json.

    Raises:
        FailedPrecondition: it is not a bundle's manifest, of a newer schema, damaged, or of another decoder. `where` is
            named in the message.
    """
    try:
        data = json.loads(text)
    except ValueError as error:
        raise FailedPrecondition(f"{where} is not JSON ({error}); build the bundle again") from error
    if not isinstance(data, dict) or data.pop("kind", None) != KIND:
        raise FailedPrecondition(
            f"{where} does not describe a model bundle; point to one made by `lookalike bundle build`"
        )
    schema = data.pop("schema_version", None)
    if schema != SCHEMA_VERSION:
        raise FailedPrecondition(
            f"{where} has schema version {schema}, this program reads {SCHEMA_VERSION}; "
            "use the version that built it, or build the bundle again"
        )
    try:
        manifest = typing.cast(Manifest, _typed(Manifest, data, "manifest"))
    except TypeError as error:
        raise FailedPrecondition(f"{where} is damaged: {error}; build the bundle again") from error
    _check(manifest, where)
    return manifest


def _check(manifest: Manifest, where: str) -> None:
    expected = fingerprint(
        backbone=manifest.backbone,
        weights=manifest.weights,
        input=manifest.input,
        pooling=manifest.pooling,
        normalisation=manifest.normalisation,
        pca=manifest.pca,
    )
    if manifest.fingerprint != expected:
        raise FailedPrecondition(
            f"{where} was edited: its fields give the fingerprint {expected}, it says {manifest.fingerprint}; "
            "build the bundle again"
        )
    if manifest.input.resize not in resizing.FILTERS or manifest.input.decode_revision != decode.REVISION:
        raise FailedPrecondition(
            f"{where} asks for decoding with filter {manifest.input.resize!r}, revision "
            f"{manifest.input.decode_revision}; this program has {', '.join(resizing.FILTERS)}, revision "
            f"{decode.REVISION}: its vectors would differ, build the bundle again"
        )


def _typed(kind: Any, value: Any, name: str) -> Any:
    """`value`, decoded from JSON, as the type `kind`; TypeError naming the field when it does not fit."""
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        if not isinstance(value, dict) or value.keys() != hints.keys():
            given = sorted(value) if isinstance(value, dict) else value
            raise TypeError(f"{name} should have the fields {sorted(hints)}, it has {given}")
        return typing.cast(Any, kind)(**{key: _typed(hints[key], value[key], f"{name}.{key}") for key in hints})
    if isinstance(kind, types.UnionType):
        return None if value is None else _typed(typing.get_args(kind)[0], value, name)
    container, arguments = typing.get_origin(kind), typing.get_args(kind)
    if container is list and isinstance(value, list):
        return [_typed(arguments[0], item, f"{name}[{index}]") for index, item in enumerate(value)]
    if container is dict and isinstance(value, dict):
        return {key: _typed(arguments[1], item, f"{name}.{key}") for key, item in value.items()}
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise TypeError(f"{name} should be of type {getattr(kind, '__name__', kind)}, it is {value!r}")
    return value
