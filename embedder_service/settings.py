"""The settings of the embedder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from embedder_service.decode import DEFAULT_MAX_PIXELS
from embedder_service.runtimes import NAMES
from service_kit.errors import InvalidArgument
from service_kit.settings import ServerSettings, setting

PREFIX = "LOOKALIKE_EMBEDDER"


@dataclass(frozen=True)
class EmbedderSettings(ServerSettings):
    """Serves the embedder: image bytes in, vectors out."""

    address: str = setting("127.0.0.1:50051", "HOST:PORT to serve gRPC on; port 0 takes any free one.")
    metrics_address: str = setting(
        "127.0.0.1:9101", "HOST:PORT to serve Prometheus metrics on; port 0 takes any free one."
    )
    bundle: Path = setting(Path("bundle"), "Directory of the model bundle.")
    bundle_sha256: str | None = setting(
        None, "SHA-256 that the bundle's SHA256SUMS must have, in hex; any bundle whose files match it if unset."
    )
    runtime: str = setting("openvino", "What runs the model.", choices=NAMES)
    precision: str = setting(
        "auto",
        "Arithmetic of the model; auto is the fastest that the bundle was measured in and the processor has.",
        choices=("auto", "f32", "bf16", "f16", "int8"),
    )
    streams: int | None = setting(None, "Images computed at once (openvino); one for every core if unset.", min=1)
    threads: int | None = setting(None, "Threads of all streams (openvino); one for every stream if unset.", min=1)
    buckets: str | None = setting(None, "Batch sizes to allow (tensorflow), such as 1,2,4,8,16,32, the default.")
    devices: str | None = setting(
        None, "Where to run, such as GPU:0,GPU:1 (tensorflow); every GPU, or else the CPU, if unset."
    )
    xla: bool | None = setting(None, "Compile the model with XLA (tensorflow); on GPUs if unset.")
    cache_dir: Path | None = setting(
        None, "Directory to keep compiled models in, for a faster start (openvino); the user's cache if unset."
    )
    decode_threads: int | None = setting(None, "Images decoded at the same time; one for every core if unset.", min=1)
    decode_isolation: str = setting(
        "process",
        "Where images are decoded: in processes of their own, as many as there are threads, so that one that crashes, "
        "hangs or grows costs one image; or in the threads.",
        choices=("process", "thread"),
    )
    decode_timeout: float = setting(
        10.0, "Seconds that decoding one image may take (process); one that takes longer is INVALID_ARGUMENT.", min=0.1
    )
    decode_memory: int | None = setting(
        None,
        "Bytes that a process may take for one image (process); what images within the limits can need if unset.",
        min=16 << 20,
    )
    queue_images: int = setting(512, "Images held from admission to reply; more are RESOURCE_EXHAUSTED.", min=1)
    queue_bytes: int = setting(256 << 20, "Bytes of images held from admission to reply.", min=1 << 10)
    queue_seconds: float = setting(
        5.0, "Seconds of work, by the speed measured, that interactive images may find before them.", min=0
    )
    bulk_share: float = setting(0.75, "Share of the queue's images and bytes that bulk work may hold, up to 1.", min=0)
    caller_share: float = setting(
        0.5, "Share of the queue's images and bytes that one caller may hold while there are others, up to 1.", min=0
    )
    max_image_bytes: int = setting(16 << 20, "Largest encoded image accepted, in bytes.", min=1 << 10)
    max_image_pixels: int = setting(
        DEFAULT_MAX_PIXELS, "Largest image accepted, in pixels; a decoder takes up to 12 bytes for each.", min=1
    )
    max_batch_images: int = setting(256, "Images in one EmbedBatch at most.", min=1)
    max_stream_in_flight: int = setting(64, "Images of one EmbedStream read and not answered at most.", min=1)
    stall_timeout: float = setting(
        60.0, "Seconds after which a batch that still runs is stuck, and the process ends.", min=1
    )


def decode_memory(settings: EmbedderSettings) -> int:
    """Returns the bytes that a process may take for one image: those set, or what `decode` says that it can need.

    Beside its pixels, the file is there up to three times.
    """
    return settings.decode_memory or 12 * settings.max_image_pixels + 4 * settings.max_image_bytes + (64 << 20)


def parse_buckets(text: str | None) -> tuple[int, ...] | None:
    """Returns the batch sizes of the setting `buckets`.

    Raises:
        InvalidArgument: they are not numbers.
    """
    try:
        return tuple(map(int, text.split(","))) if text else None
    except ValueError:
        raise InvalidArgument(f"buckets={text!r} are not numbers; give some like 1,2,4,8") from None


def validate(settings: EmbedderSettings) -> None:
    """Checks the settings against each other.

    Raises:
        InvalidArgument: a request within one limit could never pass another one.
    """
    for name in ("bulk_share", "caller_share"):
        if (share := getattr(settings, name)) > 1:
            raise InvalidArgument(f"{name}={share} is above 1, which is all of the queue")
    for smaller, value, larger, limit in (
        (
            "max_batch_images",
            settings.max_batch_images,
            "queue_images",
            int(settings.queue_images * settings.bulk_share),
        ),
        ("max_image_bytes", settings.max_image_bytes, "max_message_bytes", settings.max_message_bytes),
        (
            "max_message_bytes",
            settings.max_message_bytes,
            "queue_bytes",
            int(settings.queue_bytes * settings.bulk_share),
        ),
    ):
        if value > limit:
            where = f"{larger}={getattr(settings, larger)}"
            if larger.startswith("queue"):
                where = f"bulk_share={settings.bulk_share} of {where}"
            raise InvalidArgument(
                f"{smaller}={value} is above {where}, so that requests it allows could never be served; "
                f"lower --{smaller.replace('_', '-')} or raise --{larger.replace('_', '-')}"
            )
