"""TensorFlow and Keras, imported quietly: `from embedder_service.model.tf import keras, tensorflow`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def _without_chatter() -> Iterator[None]:
    """Keep the notes that TensorFlow's libraries write while they are loaded off the terminal.

    They come before any log level is heeded, so the file descriptor itself is turned away for these seconds. What goes
    wrong is raised all the same. To see everything, set TF_CPP_MIN_LOG_LEVEL=0.
    """
    if os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3") != "3":
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


# Keras takes its backend from here or from a file in the home directory; the graph exported here is TensorFlow's.
os.environ["KERAS_BACKEND"] = "tensorflow"

# TensorFlow would otherwise take all memory of every GPU at its first use.
# https://www.tensorflow.org/guide/gpu#limiting_gpu_memory_growth
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")

with _without_chatter():
    import keras
    import tensorflow

__all__ = ["keras", "tensorflow"]
