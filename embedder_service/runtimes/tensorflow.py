"""Runs a bundle's SavedModel with TensorFlow, in buckets, with a replica of the model on each device.

What overlaps on a GPU: TensorFlow copies to a GPU on another stream than the one that computes, and a thread that waits
for a GPU does not hold the GIL. Each GPU has two slots, so that while the batch of one computes, the other copies its
own there and waits: the replica finds its next batch in the GPU's memory. The replica computes one batch at a time, up
to the return of the vectors to the host; a second one on the same stream would gain nothing and delay the first. The
host's memory is not pinned, for which TensorFlow offers no simple way.

All of this was tested on CPU devices, several of them in one process. It has not been measured on a GPU.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embedder_service.model.tf import tensorflow as tf
from service_kit.errors import FailedPrecondition, InvalidArgument

DEFAULT_BUCKETS = (1, 2, 4, 8, 16, 32)

# The SavedModel's function for each precision.
_FUNCTIONS = {"f32": "embed", "f16": "embed_f16"}
# Batches at a time on one device.
_SLOTS = {"GPU": 2, "CPU": 1}


class TensorFlowRuntime:
    """A `Runtime` (see base.py) on GPUs, or on the CPU. A batch goes to the replica that has the fewest."""

    name = "tensorflow"

    def __init__(
        self,
        saved_model: Path,
        *,
        precision: str = "auto",
        buckets: tuple[int, ...] = DEFAULT_BUCKETS,
        devices: Sequence[str] | None = None,
        xla: bool | None = None,
    ) -> None:
        """Load a SavedModel on each device, and run every bucket on each, so that all is compiled.

        Args:
            saved_model: the directory. Its functions `embed` and, for f16, `embed_f16` are
                uint8 [N, H, W, 3] -> float32 [N, D].
            precision: "f32", "f16" (mixed float16), or "auto": on GPUs f16 if the model has it, else f32.
            buckets: the batch sizes to allow, ascending from 1.
            devices: such as ("GPU:0", "GPU:1"), all of one kind; every GPU, or else the CPU, when None.
            xla: whether to compile with XLA, which takes its time for each bucket; on GPUs when None.

        Raises:
            FailedPrecondition: the model does not have that precision, there is no such device, or the model fails on
                it, for want of memory, say.
            InvalidArgument: the buckets do not ascend from 1, or the devices are not of one kind.
        """
        if precision not in ("auto", *_FUNCTIONS):
            raise FailedPrecondition(
                f"the tensorflow runtime has no precision {precision!r}; choose one of auto, {', '.join(_FUNCTIONS)}"
            )
        if not buckets or buckets[0] != 1 or list(buckets) != sorted(set(buckets)):
            raise InvalidArgument(f"the buckets {buckets} do not ascend from 1; give some like {DEFAULT_BUCKETS}")
        # Ampere and later would otherwise round float32 to TF32's 10 bits of mantissa.
        tf.config.experimental.enable_tensor_float_32_execution(False)
        names = _names(devices)
        self.device = _kind(names[0])
        self.buckets = tuple(buckets)
        self.slots = _SLOTS[self.device] * len(names)
        self._replicas = [_Replica(saved_model, name) for name in names]
        self._shape = self._replicas[0].shape
        self.precision = _choose(precision, self.device, self._replicas[0].functions, saved_model)
        xla = self.device == "GPU" if xla is None else xla
        # Not by `run`, whose batches cannot choose their replica.
        with ThreadPoolExecutor(len(names)) as threads:
            list(threads.map(lambda replica: replica.compile(_FUNCTIONS[self.precision], buckets, xla), self._replicas))
        self._changed = threading.Condition()
        self._closed = False

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `Runtime.run`. A RuntimeError also says when a device's memory is too small for the batch."""
        if images.shape[1:] != self._shape or len(images) not in self.buckets or images.dtype != np.uint8:
            raise ValueError(
                f"the batch is {images.dtype} {images.shape}, the model takes uint8 (N, *{self._shape}), "
                f"N one of {self.buckets}"
            )
        replica = self._take()
        try:
            return replica.run(images)
        finally:
            with self._changed:
                replica.batches -= 1
                self._changed.notify_all()

    def close(self) -> None:
        """See `Runtime.close`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not any(replica.batches for replica in self._replicas))
            self._replicas = []

    def _take(self) -> _Replica:
        """The least busy replica, once it has a slot; it counts the batch."""

        def ready() -> bool:
            return self._closed or sum(replica.batches for replica in self._replicas) < self.slots

        with self._changed:
            self._changed.wait_for(ready)
            if self._closed:
                raise RuntimeError("the runtime is closed")
            # Never beyond a device's own slots: if they were all taken on the least busy, they were on every device.
            replica = min(self._replicas, key=lambda replica: replica.batches)
            replica.batches += 1
            return replica


class _Replica:
    """The model on one device."""

    def __init__(self, saved_model: Path, device: str) -> None:
        self.batches = 0  # here, computing or waiting
        self._device = device
        with tf.device(device):  # where its variables go
            self._model = tf.saved_model.load(str(saved_model))
        self.functions = [name for name in _FUNCTIONS.values() if hasattr(self._model, name)]
        self.shape = tuple(self._model.embed.input_signature[0].shape[1:])
        self._compiled: dict[int, Callable[[tf.Tensor], tf.Tensor]] = {}
        self._compute = threading.Lock()

    def compile(self, function: str, buckets: Sequence[int], xla: bool) -> None:
        """Trace a function for each bucket, and run it, which is when XLA compiles and cuDNN chooses its algorithms."""
        with tf.device(self._device):
            traced = tf.function(getattr(self._model, function), jit_compile=xla or None, autograph=False)
            for bucket in buckets:
                shape = (bucket, *self.shape)
                self._compiled[bucket] = traced.get_concrete_function(tf.TensorSpec(shape, tf.uint8))
                try:
                    self.run(np.zeros(shape, np.uint8))
                except RuntimeError as error:
                    raise FailedPrecondition(f"the model cannot be run in batches of {bucket}: {error}") from error

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        try:
            with tf.device("CPU:0"):
                host = tf.constant(images)
            with tf.device(self._device):
                batch = tf.identity(host)  # the copy to the device
                with self._compute:
                    vectors: NDArray[np.float32] = self._compiled[len(images)](batch).numpy()
        except tf.errors.ResourceExhaustedError as error:
            raise RuntimeError(
                f"{self._device} has too little memory for a batch of {len(images)}; give smaller buckets"
            ) from error
        except tf.errors.OpError as error:
            raise RuntimeError(f"the model failed on {self._device}: {error.message}") from error
        return vectors


def _names(devices: Sequence[str] | None) -> list[str]:
    """The devices asked for, or the best there are, such as "GPU:0"."""
    there = [device.name.removeprefix("/device:") for device in tf.config.list_logical_devices()]
    there = [name for name in there if _kind(name) in _SLOTS]
    if not devices:
        return [name for name in there if _kind(name) == "GPU"] or ["CPU:0"]
    if missing := [name for name in devices if name not in there]:
        raise FailedPrecondition(f"there is no device {missing[0]!r} here; choose from {', '.join(there)}")
    if len({_kind(name) for name in devices}) > 1:
        raise InvalidArgument(f"the devices {', '.join(devices)} are of two kinds; choose GPUs or CPUs")
    return list(devices)


def _kind(device: str) -> str:
    return device.partition(":")[0]


def _choose(precision: str, kind: str, functions: Sequence[str], saved_model: Path) -> str:
    has_f16 = _FUNCTIONS["f16"] in functions
    if precision == "auto":
        return "f16" if kind == "GPU" and has_f16 else "f32"
    if precision == "f16" and not has_f16:
        raise FailedPrecondition(f"the model {saved_model} has no f16; build its bundle again, or choose f32")
    return precision
