"""INT8 models, by NNCF's post-training quantization. For building alone: a server never imports this.

https://docs.openvino.ai/2025/openvino-workflow/model-optimization-guide/quantizing-models-post-training.html
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import rich
from numpy.typing import NDArray

from embedder_service.model.features import Progress
from embedder_service.model.ov import openvino as ov  # before NNCF, which reports to its maker by OpenVINO's telemetry

import nncf  # isort: skip

# Calibration images. On Caltech-101 with EfficientNet-Lite0 the mean cosine was 0.9959 with 100 of them, 0.9963 with
# 200 and 0.9966 with 300.
IMAGES = 200


def quantize(model: ov.Model, images: Sequence[NDArray[np.uint8]], progress: Progress) -> ov.Model:
    """Make an INT8 model of a float32 one: uint8 [?, H, W, 3] -> float32 [?, D].

    Args:
        model: ends in a global average pooling and what follows it; left as it is.
        images: uint8 [1, H, W, 3] each, like those to be embedded; `IMAGES` of them are enough.
        progress: called for every image.
    """
    done = itertools.count(1)

    def feed(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        progress("quantize", next(done), len(images))
        return image

    with _quiet():
        return nncf.quantize(
            model.clone(),
            nncf.Dataset(images, feed),
            subset_size=len(images),
            ignored_scope=nncf.IgnoredScope(subgraphs=[_head(model)]),
            # Half the range of the first weights is given up otherwise, for CPUs whose 16-bit sums overflow; those
            # are not served INT8. Mean cosine on Caltech-101: 0.9930 with it, 0.9966 without.
            advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.DISABLE),
        )


def _head(model: ov.Model) -> nncf.Subgraph:
    """From the pooling to the end: it costs next to nothing in float32.

    In INT8 the norms of the vectors are no longer 1, and the mean cosine on Caltech-101 is 0.963 instead of 0.993.
    """
    pooling = [node for node in model.get_ordered_ops() if node.get_type_name() == "ReduceMean"][-1]
    last = model.get_results()[0].input_value(0).get_node()
    return nncf.Subgraph(inputs=[pooling.get_friendly_name()], outputs=[last.get_friendly_name()])


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep NNCF's notes and progress bars off the terminal; the bars are drawn on rich's own console."""
    nncf.set_log_level(logging.ERROR)
    console = rich.get_console()
    before, console.quiet = console.quiet, True
    try:
        yield
    finally:
        console.quiet = before
