"""Runs a model on the CPU with OpenVINO: by default one single-threaded stream a core, one image a batch.

On a CPU, batches gain nothing over as many single images side by side, and single images wait for nobody.
"""

from __future__ import annotations

import functools
import queue
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedder_service.model.ov import openvino as ov
from embedder_service.runtimes.compiled import cache_folder
from embedder_service.runtimes.instructions import FASTEST_FIRST, cpu_flags, native_precisions
from service_kit.cores import physical_cores
from service_kit.errors import FailedPrecondition, InvalidArgument

# The plugin would otherwise choose bf16 by itself wherever the CPU has it. What INT8 models leave in floating point is
# too little for bf16 to make them faster.
# https://docs.openvino.ai/2025/openvino-workflow/running-inference/optimize-inference/precision-control.html
_HINTS = {"f32": "f32", "bf16": "bf16", "int8": "f32"}
_MISSING = {"bf16": "bf16 arithmetic", "int8": "8-bit dot product (VNNI or AMX)"}


class OpenVinoRuntime:
    """A `Runtime` (see base.py) on the CPU."""

    name = "openvino"
    device = "CPU"
    buckets: tuple[int, ...] = (1,)

    def __init__(
        self,
        model: Path | ov.Model,
        *,
        precision: str = "f32",
        streams: int | None = None,
        threads: int | None = None,
        cache_dir: Path | None = None,
    ) -> None:
        """Compile a model.

        Args:
            model: an OpenVINO IR file, or the model itself: uint8 [?, H, W, 3] -> float32 [?, D].
            precision: "f32", or where the CPU has it "bf16", or "int8", which takes a quantized model.
            streams: images computed at once, each with two slots; one for each thread, if given, and at most one for
                each core when None.
            threads: of all streams together; one for each stream when None.
            cache_dir: where to keep compiled models, the user's cache directory when None; a file's alone is kept.

        Raises:
            FailedPrecondition: this CPU or this program does not have that precision.
            InvalidArgument: there are fewer threads than streams.
        """
        core = _core()
        require_native(precision)
        self.precision = precision
        streams = streams or min(physical_cores(), threads or physical_cores())
        if threads is not None and threads < streams:
            raise InvalidArgument(f"{threads} threads are too few for {streams} streams: give one for each at least")
        network = read_model(model) if isinstance(model, Path) else model.clone()
        _, height, width, channels = network.input(0).partial_shape
        network.reshape([1, height, width, channels])
        config: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": threads or streams,
        }
        if isinstance(model, Path):
            with cache_folder(cache_dir, _key(core, model, config)) as folder:
                kept = {"CACHE_DIR": str(folder)} if folder else {}
                compiled = core.compile_model(network, "CPU", config | kept)
        else:
            compiled = core.compile_model(network, "CPU", config)
        self._shape = tuple(compiled.input(0).shape)
        # While a stream computes, its next image is there already: it need not wait for Python.
        self.slots = 2 * streams
        self._idle: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        for _ in range(self.slots):
            self._idle.put(_Request(compiled))
        self._closing = threading.Lock()
        self._closed = False
        # OpenVINO's Python binding can deadlock when the first two runs of a process are simultaneous.
        self.run(np.zeros(self._shape, np.uint8))

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `Runtime.run`: uint8 [1, H, W, 3] -> float32 [1, D]."""
        if images.shape != self._shape or images.dtype != np.uint8:
            raise ValueError(f"the batch is {images.dtype} {images.shape}, the model takes uint8 {self._shape}")
        request = self._idle.get()
        try:
            if request is None:
                raise RuntimeError("the runtime is closed")
            return request.run(images)
        finally:
            self._idle.put(request)

    def close(self) -> None:
        """See `Runtime.close`."""
        with self._closing:
            if self._closed:
                return
            for _ in range(self.slots):
                self._idle.get()
            # Whoever waits, or comes later, is told by this and passes it on.
            self._idle.put(None)
            self._closed = True


class _Request:
    """An inference with memory of its own for input and output: handing other memory over each time takes longer."""

    def __init__(self, compiled: ov.CompiledModel) -> None:
        self._request = compiled.create_infer_request()
        self._input = self._request.get_input_tensor(0).data
        self._output = self._request.get_output_tensor(0).data

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        np.copyto(self._input, images)
        self._request.start_async()
        self._request.wait()
        return np.array(self._output, dtype=np.float32)  # overwritten by the next one


@functools.cache
def _core() -> ov.Core:
    """The one core of this process, never destroyed.

    Its CPU plugin gives the thread that loads it an alternate signal stack, and frees that when it goes. Where that
    happens on another thread, the first is left with a dangling stack, and its next signal ends the process.
    """
    return ov.Core()


def read_model(file: Path) -> ov.Model:
    """Read an OpenVINO IR."""
    return _core().read_model(file)


def _key(core: ov.Core, model: Path, config: dict[str, Any]) -> str:
    """Says all that a compiled model depends on. OpenVINO compares the content as well, at a second look."""
    files = [(str(file.resolve()), file.stat()) for file in (model, model.with_suffix(".bin"))]
    sizes = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in files]
    return repr((ov.get_version(), core.get_property("CPU", "FULL_DEVICE_NAME"), sizes, config))


@functools.cache
def _native() -> tuple[str, ...]:
    return native_precisions(_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"), cpu_flags())


def fastest(contained: Iterable[str]) -> str:
    """The fastest of these precisions that this CPU has; "f32", which every one has, if there is none."""
    return next((precision for precision in _native() if precision in set(contained)), FASTEST_FIRST[-1])


def require_native(precision: str) -> None:
    """Check that this CPU has a precision.

    Raises:
        FailedPrecondition: it has not, or there is no such precision.
    """
    if precision not in _HINTS:
        raise FailedPrecondition(
            f"the openvino runtime has no precision {precision!r}; choose one of {', '.join(_HINTS)}"
        )
    if precision not in _native():
        raise FailedPrecondition(f"this CPU has no {_MISSING[precision]}; choose the precision {_native()[0]}")
