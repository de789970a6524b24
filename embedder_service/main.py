"""The embedder as a process: puts the parts together and serves."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial

import numpy as np
from numpy.typing import NDArray

from embedder_service import metrics, rpc
from embedder_service.admission import Admission
from embedder_service.batcher import Batcher
from embedder_service.decode import decode as decode_image
from embedder_service.decode_pool import DecodePool
from embedder_service.decode_process import DecodeProcess
from embedder_service.model import bundle
from embedder_service.model.manifest import Manifest
from embedder_service.pipeline import Pipeline
from embedder_service.runtimes import Runtime, load_runtime
from embedder_service.settings import PREFIX, EmbedderSettings, decode_memory, parse_buckets, validate
from lookalike.embedder.v1 import embedder_pb2, embedder_pb2_grpc
from service_kit import process, sharing
from service_kit.cores import available_cores
from service_kit.errors import Broken
from service_kit.logs import log
from service_kit.server import Server

Decode = Callable[[bytes], NDArray[np.uint8]]
_log = logging.getLogger("embedder_service.main")  # __name__ is "__main__" when run with -m


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the embedder until a signal ends it; returns the exit code."""
    return process.run(EmbedderSettings, PREFIX, serve, argv)


async def serve(settings: EmbedderSettings) -> int:
    """Loads the model, warms it up, and serves it until SIGTERM or SIGINT.

    Raises:
        ServiceError: the settings contradict each other, or the bundle cannot be served with them.
        OSError: an address cannot be bound.
    """
    validate(settings)
    started = time.monotonic()
    manifest, runtime = load(settings)
    with ExitStack() as stack:
        stack.callback(runtime.close)
        pool = stack.enter_context(decode_pool(settings, manifest)) if settings.decode_isolation == "process" else None
        # The turns of two callers fill the model.
        turns = max(1, runtime.slots * runtime.buckets[-1] // 2)
        server = Server(settings, rpc.ACCESS, caller_of=sharing.by_metadata, turns=turns)
        decode = pool.decode if pool else decode_here(settings, manifest)
        pipeline = build_pipeline(settings, manifest, runtime, decode, server.fail)

        async def check() -> None:
            await pipeline.check()
            if pool:
                pool.check()

        try:
            await pipeline.warm_up()
            if pool:
                await asyncio.to_thread(pool.wait_until_ready)
            metrics.MODEL_LOAD.set(time.monotonic() - started)
            servicer = rpc.EmbedderServicer(
                pipeline, describe_model(manifest, runtime), describe_limits(settings), server.draining
            )
            embedder_pb2_grpc.add_EmbedderServiceServicer_to_server(servicer, server.grpc)
            return await server.run([rpc.SERVICE], check)
        finally:
            if pool:
                pool.close()  # first, for the pipeline waits for what is being decoded
            await pipeline.close()


def load(settings: EmbedderSettings) -> tuple[Manifest, Runtime]:
    """Opens the bundle and loads its model, and says so in the log and the metrics."""
    opened = bundle.load(settings.bundle)
    opened.verify_checksums(settings.bundle_sha256)
    manifest = opened.manifest
    runtime = load_runtime(
        opened,
        settings.runtime,
        precision=settings.precision,
        streams=settings.streams,
        threads=settings.threads,
        cache_dir=settings.cache_dir,
        buckets=parse_buckets(settings.buckets),
        devices=settings.devices.split(",") if settings.devices else None,
        xla=settings.xla,
    )
    labels = {
        "model": manifest.backbone,
        "fingerprint": manifest.fingerprint,
        "dim": str(manifest.dims),
        "runtime": runtime.name,
        "precision": runtime.precision,
        "device": runtime.device,
    }
    metrics.MODEL_INFO.labels(**labels).set(1)
    log(_log, logging.INFO, "model loaded", **labels, slots=runtime.slots, buckets=runtime.buckets)
    if manifest.random:
        log(_log, logging.WARNING, "the model has random weights: it is for tests alone, its vectors mean nothing")
    return manifest, runtime


def decode_pool(settings: EmbedderSettings, manifest: Manifest) -> DecodePool:
    """Returns the processes that decode images for the model, not started yet."""
    size = manifest.input
    start = partial(
        DecodeProcess,
        (size.height, size.width, 3),
        resize=size.resize,
        max_pixels=settings.max_image_pixels,
        memory=decode_memory(settings),
    )
    return DecodePool(start, _decode_threads(settings), settings.decode_timeout)


def decode_here(settings: EmbedderSettings, manifest: Manifest) -> Decode:
    """Returns the function that decodes images for the model in this process."""
    size = manifest.input
    return partial(
        decode_image,
        height=size.height,
        width=size.width,
        resize=size.resize,
        max_pixels=settings.max_image_pixels,
    )


def build_pipeline(
    settings: EmbedderSettings,
    manifest: Manifest,
    runtime: Runtime,
    decode: Decode,
    on_lost: Callable[[Broken], None],
) -> Pipeline:
    """Puts the transport-free core together; `on_lost` is called if the model is lost for good."""
    size = manifest.input
    decode_threads = _decode_threads(settings)
    metrics.QUEUE_CAPACITY.set(settings.queue_images)
    return Pipeline(
        Admission(
            settings.queue_images,
            settings.queue_bytes,
            max_seconds=settings.queue_seconds,
            bulk_share=settings.bulk_share,
            caller_share=settings.caller_share,
        ),
        decode,
        Batcher(
            runtime,
            (size.height, size.width, 3),
            ahead=decode_threads,
            stall_timeout=settings.stall_timeout,
            on_lost=on_lost,
        ),
        decode_threads=decode_threads,
        max_image_bytes=settings.max_image_bytes,
    )


def _decode_threads(settings: EmbedderSettings) -> int:
    return settings.decode_threads or available_cores()


def describe_model(manifest: Manifest, runtime: Runtime) -> embedder_pb2.Model:
    """Returns what GetModel says of the model."""
    return embedder_pb2.Model(
        fingerprint=manifest.fingerprint,
        dimension=manifest.dims,
        backbone=manifest.backbone,
        weights_source=manifest.weights.source,
        weights_sha256=manifest.weights.sha256,
        input_height=manifest.input.height,
        input_width=manifest.input.width,
        feature_length=manifest.features,
        pca_images=manifest.pca.images if manifest.pca else 0,
        explained_variance_ratio=manifest.pca.explained_variance_ratio if manifest.pca else 1.0,
        runtime=runtime.name,
        device=runtime.device,
        precision=_precision(runtime.precision),
        precision_losses=[
            embedder_pb2.PrecisionLoss(
                precision=_precision(name),
                mean_cosine=1 - measured.mean_loss,
                accuracy_loss_points=manifest.accuracy_loss(name),
            )
            for name, measured in manifest.precisions.items()
        ],
    )


def describe_limits(settings: EmbedderSettings) -> embedder_pb2.Limits:
    """Returns what GetModel says of the limits."""
    return embedder_pb2.Limits(
        max_image_bytes=settings.max_image_bytes,
        max_image_pixels=settings.max_image_pixels,
        max_batch_images=settings.max_batch_images,
        max_message_bytes=settings.max_message_bytes,
        max_stream_in_flight=settings.max_stream_in_flight,
        max_metadata_bytes=settings.max_metadata_bytes,
        max_caller_calls=settings.max_caller_rpcs,
        request_seconds=settings.request_timeout,
        stream_idle_seconds=settings.stream_idle_timeout,
    )


def _precision(name: str) -> embedder_pb2.Precision.ValueType:
    return embedder_pb2.Precision.Value(f"PRECISION_{name.upper()}")


if __name__ == "__main__":
    sys.exit(main())
