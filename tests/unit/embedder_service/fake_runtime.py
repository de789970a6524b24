"""A runtime without a model: deterministic, blocks on demand, fails on demand."""

import io
import math
import threading
from functools import partial

import numpy as np
from PIL import Image

from embedder_service.decode import decode

SHAPE = (2, 2, 3)
REAL_DECODE = partial(decode, height=SHAPE[0], width=SHAPE[1], resize="bicubic", max_pixels=100)


def image(value: int):
    return np.full(SHAPE, value, np.uint8)


def png(value: int, size=(4, 4)):
    """A PNG file in one grey."""
    file = io.BytesIO()
    Image.new("RGB", size, (value,) * 3).save(file, "PNG")
    return file.getvalue()


class FakeRuntime:
    """The vector of an image is its first pixel. `batches` lists what ran, by the first value of each image."""

    name = "fake"
    device = "CPU"
    precision = "f32"

    def __init__(self, slots=1, buckets=(1,)):
        self.slots = slots
        self.buckets = buckets
        self.batches = []
        self.poison = {}  # first value of an image -> what to raise on it
        self.undefined = set()  # first values of images whose vectors are not finite
        self.broken = False
        self._runs = math.inf  # that may go on
        self._allowed = threading.Condition()
        self._started = threading.Semaphore(0)
        self._lock = threading.Lock()

    def block(self):
        """Makes runs wait until `release`."""
        self._runs = 0

    def release(self, runs=math.inf):
        """Lets some runs, or all, go on."""
        with self._allowed:
            self._runs += runs
            self._allowed.notify_all()

    def wait_for_run(self):
        """Blocks until one more run has begun."""
        assert self._started.acquire(timeout=10), "the model was not run"

    def run(self, images):
        values = [int(value) for value in images[:, 0, 0, 0]]
        with self._lock:
            self.batches.append(values)
        self._started.release()
        with self._allowed:
            assert self._allowed.wait_for(lambda: self._runs > 0, 10), "nobody released the model"
            self._runs -= 1
        for value in values:
            if value in self.poison:
                raise self.poison[value]
        if self.broken:
            raise RuntimeError("device lost")
        vectors = images[:, 0, 0, :].astype(np.float32)
        vectors[[value in self.undefined for value in values]] = np.nan
        return vectors

    def close(self):
        pass
