"""Makes a backbone with its weights, from wherever they are asked for."""

from __future__ import annotations

import hashlib
import math
import os
import queue
import socket
import threading
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embedder_service.model import checksums
from embedder_service.model import weights as lite0_weights
from embedder_service.model.backbones import Backbone
from embedder_service.model.efficientnet_lite0 import efficientnet_lite0, load_state_dict
from embedder_service.model.manifest import Weights
from embedder_service.model.tf import keras
from embedder_service.model.weights import WeightsUnavailable

_KERAS_URL = "https://storage.googleapis.com/tensorflow/keras-applications/"
_REACH_SECONDS = 8.0
_STALL_SECONDS = 30.0


def create(
    backbone: Backbone, weights: str, seed: int = 0, *, sha256: str | None = None
) -> tuple[keras.Model, Weights]:
    """Make a backbone: float32 [N, size, size, 3], preprocessed -> float32 [N, features].

    Args:
        backbone: which one.
        weights: "imagenet", "random", or the path of a weights file of that very network without its classifier:
            Keras's .h5, .weights.h5 or .keras, and for EfficientNet-Lite0 also its .pth.
        seed: of the random weights.
        sha256: what the file must have, in hex, to be read at all; not checked when None. That of EfficientNet-Lite0's
            .pth is known, and always checked.

    Raises:
        WeightsUnavailable: they cannot be downloaded, are not installed, cannot be read, have another checksum, or are
            another network's.
    """
    model = _empty(backbone)
    if weights == "random":
        _randomise(model, seed)
    else:
        _load_file(backbone, model, _imagenet(backbone) if weights == "imagenet" else Path(weights), sha256)
    source = weights if weights in ("imagenet", "random") else "file"
    return model, Weights(source, digest(model.get_weights()))


def digest(arrays: list[NDArray[np.float32]]) -> str:
    """SHA-256 in hex over shapes and values, in order."""
    total = hashlib.sha256()
    for array in arrays:
        total.update(f"{array.shape}".encode())
        total.update(np.ascontiguousarray(array, dtype="<f4").data)
    return total.hexdigest()


def _empty(backbone: Backbone) -> keras.Model:
    if backbone.keras_weights is None:
        return efficientnet_lite0(backbone.size)
    application = getattr(keras.applications, backbone.title)
    return application(include_top=False, weights=None, input_shape=(backbone.size, backbone.size, 3), pooling="avg")


def _imagenet(backbone: Backbone) -> Path:
    """The file of the ImageNet weights, downloaded if need be."""
    if backbone.keras_weights is None:
        return lite0_weights.lite0_file()
    name = backbone.keras_weights.rsplit("/", 1)[1]
    url = _KERAS_URL + backbone.keras_weights
    # Where `keras.applications` keeps them, too.
    home = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras")
    try:
        if not (home / "models" / name).exists():
            _reach(url)
        with _socket_timeout(_STALL_SECONDS):
            return Path(
                keras.utils.get_file(
                    name, url, cache_dir=str(home), cache_subdir="models", file_hash=backbone.keras_md5
                )
            )
    except Exception as error:  # Keras raises plain Exception when a download fails.
        reason = " ".join(str(getattr(error, "reason", error)).split()) or type(error).__name__
        raise WeightsUnavailable(
            f"ImageNet weights for {backbone.name} could not be downloaded ({reason}); connect this machine, or give a "
            "local file with --weights PATH"
        ) from error


def _reach(url: str) -> None:
    """Ask for the headers of `url`, for a few seconds in all.

    A socket's timeout holds for each of a host's addresses in turn: where a firewall drops packets, a host with many
    takes minutes to fail. Hence a thread that is not waited for.
    """
    outcome: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()

    def ask() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")  # noqa: S310 - https, above
            urllib.request.urlopen(request, timeout=_REACH_SECONDS).close()  # noqa: S310
            outcome.put(None)
        except Exception as error:
            outcome.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        error = outcome.get(timeout=_REACH_SECONDS)
    except queue.Empty:
        raise TimeoutError(f"{url} did not answer within {_REACH_SECONDS:.0f} s") from None
    if error is not None:
        raise error


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    # The only handle there is: Keras passes no timeout to urllib.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _load_file(backbone: Backbone, model: keras.Model, path: Path, sha256: str | None) -> None:
    if not path.is_file():
        raise WeightsUnavailable(f'there is no weights file {path}; give "imagenet", "random" or the path of a file')
    if sha256 is not None and (found := checksums.sha256(path)) != sha256.lower():
        raise WeightsUnavailable(f"the weights file {path} has SHA-256 {found}, expected {sha256}; it was not read")
    if path.suffix == ".pth" and backbone.keras_weights is None:
        load_state_dict(model, lite0_weights.read_lite0(path))
        return
    # Keras leaves out what it does not find in the file, with a warning at most. What was not loaded still is NaN.
    model.set_weights([np.full(array.shape, np.nan, array.dtype) for array in model.get_weights()])
    try:
        with warnings.catch_warnings(action="ignore"):
            model.load_weights(path)
        missing = sum(bool(np.isnan(array).any()) for array in model.get_weights())
        if missing:
            raise ValueError(f"{missing} of the {len(model.weights)} arrays are not in it")
    except Exception as error:  # h5py, zipfile and Keras each raise their own.
        raise WeightsUnavailable(
            f"the weights file {path} does not fit {backbone.name} without its classifier: "
            f"{' '.join(str(error).split())}"
        ) from error


def _randomise(model: keras.Model, seed: int) -> None:
    """He-normal kernels (https://arxiv.org/abs/1502.01852) from a generator of our own, the rest as Keras starts it."""
    generator = np.random.default_rng(seed)
    for layer in model.layers:
        for variable in layer.weights:
            if "kernel" in variable.name:
                depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
                fan_in = math.prod(variable.shape[: 2 if depthwise else 3])
                variable.assign(generator.standard_normal(variable.shape) * math.sqrt(2.0 / fan_in))
