"""The model alone: the runtime of a bundle on pixels that are decoded already, without a server."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import resource
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.load import OK, Calls, Measured
from benchmarks.processes import CpuClock, Sampler
from embedder_service.model.manifest import Input

T = TypeVar("T")
# Pixels take 150 kB an image; a few hundred of them do not fit into any cache either.
_MOST_IMAGES = 256


@dataclass(frozen=True)
class Bare:
    """What the runtime does by itself.

    Attributes:
        slots: batches that it runs at once, each of one image here.
        alone: one thread, so that an image has a core to itself.
        full: as many threads as there are slots.
        load_seconds: from reading the bundle to the first embedding.
        rss_max: most memory held, in bytes, with the images.
        vectors: float32 [N, D], the embeddings of the first images.
    """

    slots: int
    alone: Measured
    full: Measured
    load_seconds: float
    rss_max: int
    vectors: NDArray[np.float32]


def measure(bundle: Path, precision: str, images: Sequence[Path], seconds: float, warm_up: float, vectors: int) -> Bare:
    """Measures a bundle's runtime in a process of its own.

    Args:
        bundle: the model bundle.
        precision: in which arithmetic.
        images: the image files.
        seconds: how long to measure, with one thread and with all.
        warm_up: seconds before each.
        vectors: how many embeddings to return.

    Raises:
        FailedPrecondition: the bundle or the CPU does not have that precision.
    """
    return _in_own_process(_measure, bundle, precision, images, seconds, warm_up, vectors)


def open_loop(bundle: Path, precision: str, images: Sequence[Path], due: NDArray[np.float64]) -> Calls:
    """Runs single images that come at set times, in a process of its own: the queue that no server can do without.

    Args:
        bundle: the model bundle.
        precision: in which arithmetic.
        images: the image files.
        due: float64 [N], ascending, in seconds from the start.

    Raises:
        FailedPrecondition: the bundle or the CPU does not have that precision.
    """
    return _in_own_process(_open_loop, bundle, precision, images, due)


@dataclass(frozen=True)
class Decoding:
    """What decoding does by itself; as `Bare`, with as many images at once as there are cores for `full`."""

    threads: int
    alone: Measured
    full: Measured
    start_seconds: float
    rss_max: int


def decoding(bundle: Path, isolation: str, images: Sequence[Path], seconds: float, warm_up: float) -> Decoding:
    """Measures decoding for a bundle's model, in threads or in processes, without a server or a model.

    Args:
        bundle: the model bundle.
        isolation: as the embedder's setting `decode_isolation`.
        images: the image files.
        seconds: how long to measure, with one image at once and with several.
        warm_up: seconds before each.
    """
    return _in_own_process(_decoding, bundle, isolation, images, seconds, warm_up)


def _in_own_process(function: Callable[..., T], *args: object) -> T:
    """Runs a function in a process of its own."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as process:
        return process.submit(function, *args).result()


def _measure(
    bundle: Path, precision: str, images: Sequence[Path], seconds: float, warm_up: float, vectors: int
) -> Bare:
    from embedder_service.model import bundle as bundles
    from embedder_service.runtimes import load_runtime

    with tempfile.TemporaryDirectory() as cache:  # empty: a model that was compiled before would load sooner
        started = time.monotonic()
        opened = bundles.load(bundle)
        runtime = load_runtime(opened, precision=precision, cache_dir=Path(cache))
        load_seconds = time.monotonic() - started
    pixels = _pixels(images, opened.manifest.input)
    found = np.concatenate([runtime.run(image) for image in pixels[:vectors]])

    def run(threads: int) -> Measured:
        return _closed_loop(lambda number: runtime.run(pixels[number % len(pixels)]), threads, seconds, warm_up)

    alone, full = run(1), run(runtime.slots)
    runtime.close()
    rss_max = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10  # Linux counts in KiB
    return Bare(runtime.slots, alone, full, load_seconds, rss_max, found)


def _decoding(bundle: Path, isolation: str, images: Sequence[Path], seconds: float, warm_up: float) -> Decoding:
    from embedder_service import main
    from embedder_service.model import bundle as bundles
    from embedder_service.settings import EmbedderSettings
    from service_kit.cores import available_cores

    settings, manifest = EmbedderSettings(decode_isolation=isolation), bundles.load(bundle).manifest
    files = [path.read_bytes() for path in images]
    started = time.monotonic()
    with ExitStack() as stack:
        decode = main.decode_here(settings, manifest)
        if isolation == "process":
            pool = stack.enter_context(main.decode_pool(settings, manifest))
            pool.wait_until_ready()
            decode = pool.decode
        start_seconds = time.monotonic() - started
        sampler = stack.enter_context(Sampler(os.getpid()))

        def run(threads: int) -> Measured:
            return _closed_loop(
                lambda number: decode(files[number % len(files)]), threads, seconds, warm_up, os.getpid()
            )

        threads = available_cores()
        alone, full = run(1), run(threads)
    return Decoding(threads, alone, full, start_seconds, sampler.rss_max)


def _open_loop(bundle: Path, precision: str, images: Sequence[Path], due: NDArray[np.float64]) -> Calls:
    from embedder_service.model import bundle as bundles
    from embedder_service.runtimes import load_runtime

    opened = bundles.load(bundle)
    runtime = load_runtime(opened, precision=precision)
    pixels = _pixels(images, opened.manifest.input)
    numbers = itertools.count()
    due = time.monotonic() + due

    def take_the_next_again_and_again() -> list[tuple[float, float, float]]:
        times = []
        while (number := next(numbers)) < len(due):
            time.sleep(max(0.0, due[number] - time.monotonic()))
            sent = time.monotonic()
            runtime.run(pixels[number % len(pixels)])
            times.append((due[number], sent, time.monotonic()))
        return times

    with ThreadPoolExecutor(runtime.slots) as pool:
        takers = [pool.submit(take_the_next_again_and_again) for _ in range(runtime.slots)]
        planned, sent, ended = np.array([times for taker in takers for times in taker.result()]).reshape(-1, 3).T
    runtime.close()
    return Calls(planned, sent, ended, np.full(len(due), OK))


def _pixels(images: Sequence[Path], taken: Input) -> list[NDArray[np.uint8]]:
    """Reads images as the model takes them, uint8 [1, H, W, 3] each."""
    from embedder_service.model.features import read

    return [read(path, taken) for path in images[:_MOST_IMAGES]]


def _closed_loop(
    run: Callable[[int], object], threads: int, seconds: float, warm_up: float, server: int | None = None
) -> Measured:
    """`load.closed_loop`, with threads for callers."""
    numbers, clock, stopping = itertools.count(), CpuClock(server), threading.Event()

    def call_again_and_again() -> list[tuple[float, float]]:
        times = []
        while not stopping.is_set():
            sent = time.monotonic()
            run(next(numbers))
            times.append((sent, time.monotonic()))
        return times

    with ThreadPoolExecutor(threads) as pool:
        callers = [pool.submit(call_again_and_again) for _ in range(threads)]
        try:
            wait(callers, warm_up, FIRST_EXCEPTION)  # returns early only if one of them failed
            begin, before = time.monotonic(), clock.read()
            wait(callers, seconds, FIRST_EXCEPTION)
            end, after = time.monotonic(), clock.read()
        finally:
            stopping.set()
        sent, ended = np.array([times for caller in callers for times in caller.result()], np.float64).reshape(-1, 2).T
    calls = Calls(sent, sent, ended, np.full(len(sent), OK))
    return Measured.cut(begin, end, calls, after - before)
