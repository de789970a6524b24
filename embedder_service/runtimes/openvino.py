"""Runs a model on the CPU with OpenVINO: one single-threaded stream a core, one image a batch.

On a CPU, batches gain nothing over as many single images side by side, and single images wait for nobody.
"""

from __future__ import annotations

import functools
import queue
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedder_service.model.ov import openvino as ov
from embedder_service.runtimes.cores import available_cores
from service_kit.errors import FailedPrecondition

# The plugin would otherwise choose bf16 by itself wherever the CPU has it.
# https://docs.openvino.ai/2025/openvino-workflow/running-inference/optimize-inference/precision-control.html
_HINTS = {"f32": "f32", "bf16": "bf16"}


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
        cache_dir: Path | None = None,
    ) -> None:
        """Compile a model.

        Args:
            model: an OpenVINO IR file, or the model itself: uint8 [?, H, W, 3] -> float32 [?, D].
            precision: "f32", or "bf16" where the CPU has it.
            streams: images computed at once; the number of cores available when None.
            cache_dir: where to keep the compiled model, so that the next start is quicker.

        Raises:
            FailedPrecondition: this CPU or this program does not have that precision.
        """
        core = _core()
        _check_precision(core, precision)
        self.precision = precision
        self.slots = streams or available_cores()
        network = core.read_model(model) if isinstance(model, Path) else model.clone()
        _, height, width, channels = network.input(0).partial_shape
        network.reshape([1, height, width, channels])
        config: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "NUM_STREAMS": self.slots,
            "INFERENCE_NUM_THREADS": self.slots,
        }
        if cache_dir is not None:
            config["CACHE_DIR"] = str(cache_dir)
        compiled = core.compile_model(network, "CPU", config)
        self._shape = tuple(compiled.input(0).shape)
        self._idle: queue.SimpleQueue[ov.InferRequest | None] = queue.SimpleQueue()
        for _ in range(self.slots):
            self._idle.put(compiled.create_infer_request())
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
            request.infer([np.ascontiguousarray(images)], share_inputs=True)
            # The request's buffer is overwritten by its next batch.
            return np.array(request.get_output_tensor(0).data, dtype=np.float32)
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


@functools.cache
def _core() -> ov.Core:
    """The one core of this process, never destroyed.

    Its CPU plugin gives the thread that loads it an alternate signal stack, and frees that when it goes. Where that
    happens on another thread, the first is left with a dangling stack, and its next signal ends the process.
    """
    return ov.Core()


def _check_precision(core: ov.Core, precision: str) -> None:
    if precision not in _HINTS:
        raise FailedPrecondition(
            f"the openvino runtime has no precision {precision!r}; choose one of {', '.join(_HINTS)}"
        )
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise FailedPrecondition("this CPU has no bf16 arithmetic; choose the precision f32")
