"""The runtimes, and the one function that loads whichever is asked for, importing no other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from embedder_service.model.bundle import Bundle
from embedder_service.runtimes.base import Runtime
from service_kit.errors import FailedPrecondition, InvalidArgument

NAMES = ("openvino", "tensorflow")

__all__ = ["NAMES", "Runtime", "load_runtime"]


def load_runtime(
    bundle: Bundle,
    name: str = "openvino",
    *,
    precision: str = "auto",
    streams: int | None = None,
    threads: int | None = None,
    cache_dir: Path | None = None,
    buckets: tuple[int, ...] | None = None,
    devices: Sequence[str] | None = None,
    xla: bool | None = None,
) -> Runtime:
    """Load a bundle's model.

    Args:
        bundle: which model.
        name: one of `NAMES`.
        precision: "f32"; with openvino, on a CPU that has them, "bf16" and "int8"; with tensorflow "f16"; or "auto",
            the fastest of those that the bundle says it was measured in.
        streams: openvino only: images computed at once; the number of cores available when None.
        threads: openvino only: threads of all streams together; one for each stream when None.
        cache_dir: openvino only: where to keep compiled models; the user's cache directory when None.
        buckets: tensorflow only: the batch sizes to allow, ascending from 1.
        devices: tensorflow only: such as ("GPU:0", "GPU:1"); every GPU, or else the CPU, when None.
        xla: tensorflow only: whether to compile with XLA; on GPUs when None.

    Raises:
        InvalidArgument: there is no runtime of that name, or streams, threads, buckets or devices are not as they must
            be.
        FailedPrecondition: the precision or a device cannot be had, or the runtime's package is not installed.
    """
    try:
        if name == "openvino":
            from embedder_service.runtimes.openvino import OpenVinoRuntime, fastest

            if precision == "auto":
                precision = fastest(bundle.manifest.precisions)
            path = bundle.openvino_model(precision)
            return OpenVinoRuntime(path, precision=precision, streams=streams, threads=threads, cache_dir=cache_dir)
        if name == "tensorflow":
            from embedder_service.runtimes.tensorflow import DEFAULT_BUCKETS, TensorFlowRuntime

            buckets = buckets or DEFAULT_BUCKETS
            return TensorFlowRuntime(bundle.saved_model, precision=precision, buckets=buckets, devices=devices, xla=xla)
    except ModuleNotFoundError as error:
        raise FailedPrecondition(
            f"the {name} runtime needs the package {error.name}, which is not installed: "
            f"pip install 'lookalike[{'embedder' if name == 'openvino' else 'gpu'}]'"
        ) from error
    raise InvalidArgument(f"there is no runtime {name!r}; choose one of {', '.join(NAMES)}")
