"""The Prometheus metrics of the embedder. The calls themselves are counted by `service_kit.interceptor`."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

IMAGES = Counter(
    "embedder_images_total",
    "Images admitted, by what became of them: ok, invalid, expired, cancelled or failed.",
    ["outcome"],
)
REJECTED = Counter(
    "embedder_rejected_images_total",
    "Images refused because the queue was full of images, of bytes, or of seconds of work: for all (seconds), for a "
    "caller's deadline, or for one caller while there are others (share).",
    ["reason"],
)
EXPIRED = Counter(
    "embedder_expired_images_total",
    "Images that nobody waited for any more (a deadline passed, a caller went away), by the stage they were in: admit, "
    "queue, decode or run. Only in run had the model begun with them.",
    ["stage"],
)
DEDUPLICATED = Counter(
    "embedder_deduplicated_images_total", "Images that got the vector of an equal one that was in progress already."
)
DECODERS_LOST = Counter(
    "embedder_decoders_lost_total",
    "Processes that decoded and were replaced, by reason: timeout, crashed, killed (from outside: by the system when "
    "memory is short), garbled (an answer that is none), or start (it did not come up).",
    ["reason"],
)
# Depth and capacity bound the same thing, so that their ratio reaches 1 exactly when images are refused.
QUEUE_DEPTH = Gauge("embedder_queue_depth", "Images admitted and not answered yet.")
QUEUE_CAPACITY = Gauge("embedder_queue_capacity", "Images that may be admitted and not answered yet.")
INFLIGHT = Gauge("embedder_inflight_images", "Images that the model is running on now.")
QUEUE_WAIT = Histogram(
    "embedder_queue_wait_seconds", "Time an image waited for a decoder and for the model.", buckets=_SECONDS
)
BATCH_IMAGES = Histogram(
    "embedder_batch_images", "Images in a batch, without padding.", buckets=(1, 2, 4, 8, 16, 32, 64, 128)
)
STAGE = Histogram(
    "embedder_stage_duration_seconds",
    "Time an image spent in a stage: admit, queue (for a decoder and for the model), decode, run, or in all (total).",
    ["stage"],
    buckets=_SECONDS,
)
IMAGE_SIZE = Histogram(
    "embedder_image_size_bytes", "Encoded size of the images admitted.", buckets=[4**n << 10 for n in range(9)]
)
MODEL_INFO = Gauge(
    "embedder_model_info", "The model that is served; always 1.",
    ["model", "fingerprint", "dim", "runtime", "precision", "device"],
)  # fmt: skip
MODEL_LOAD = Gauge("embedder_model_load_duration_seconds", "Time from reading the bundle to the end of the warm-up.")
