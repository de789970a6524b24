"""The way of an image through the embedder: admit, decode, wait for the model, run."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from embedder_service import metrics
from embedder_service.admission import Admission
from embedder_service.batcher import Batcher
from service_kit.errors import DeadlineExceeded, Internal, InvalidArgument, ServiceError
from service_kit.logs import log

_DECODED = metrics.STAGE.labels("decode")
_TOTAL = metrics.STAGE.labels("total")
_OUTCOMES: dict[type[ServiceError], str] = {InvalidArgument: "invalid", DeadlineExceeded: "expired"}
_log = logging.getLogger(__name__)

Vector = NDArray[np.float32]


class Pipeline:
    """Embeds encoded images. For use on one event loop, on which nothing heavy runs.

    Deadlines are times of the event loop, in seconds; None is none. Cancelling a call drops what has not run yet.
    """

    def __init__(
        self,
        admission: Admission,
        decode: Callable[[bytes], NDArray[np.uint8]],
        batcher: Batcher,
        *,
        decode_threads: int,
        max_image_bytes: int,
    ) -> None:
        """
        Args:
            admission: bounds what is in progress.
            decode: image file -> uint8 [H, W, 3]; raises InvalidArgument; called from several threads.
            batcher: runs the model; the pipeline closes it.
            decode_threads: images decoded at the same time.
            max_image_bytes: largest encoded image accepted.
        """
        self._admission = admission
        self._decode = decode
        self._batcher = batcher
        self._max_image_bytes = max_image_bytes
        self._decoders = ThreadPoolExecutor(decode_threads, thread_name_prefix="decode")
        metrics.QUEUE_DEPTH.set_function(lambda: admission.images)

    async def embed(self, image: bytes, deadline: float | None = None) -> Vector:
        """Embeds one image file.

        Returns:
            float32 [D], of L2 norm 1.

        Raises:
            InvalidArgument: the bytes are no image, are damaged, or exceed a limit.
            ResourceExhausted: the queue is full.
            DeadlineExceeded: the deadline passed first.
            Internal: the model failed on this image.
            Unavailable: the model fails on every image, or the server is stopping.
        """
        with self._admission.admit(1, len(image)):
            return await self._embed(image, deadline)

    async def embed_many(self, images: Sequence[bytes], deadline: float | None = None) -> list[Vector | ServiceError]:
        """Embeds at least one image file; an image that fails does so alone.

        Returns:
            for each image, in order: float32 [D], or one of the errors of `embed`.

        Raises:
            ResourceExhausted: the queue has no room for all of them; none is embedded.
        """

        async def outcome(image: bytes) -> Vector | ServiceError:
            try:
                return await self._embed(image, deadline)
            except ServiceError as error:
                return error

        with self._admission.admit(len(images), sum(map(len, images))):
            return await asyncio.gather(*map(outcome, images))

    async def warm_up(self) -> None:
        """Makes the first request as fast as the later ones."""
        await self._batcher.warm_up()

    async def check(self) -> None:
        """Finds out whether images can be embedded now.

        Raises:
            Unavailable: the model is stuck or fails on every image.
        """
        await self._batcher.check()

    async def close(self) -> None:
        """Ends the threads; images that still wait fail as Unavailable. Calling it again does nothing."""
        await self._batcher.close()
        self._decoders.shutdown()

    async def _embed(self, image: bytes, deadline: float | None) -> Vector:
        loop = asyncio.get_running_loop()
        started = loop.time()
        metrics.IMAGE_SIZE.observe(len(image))
        result = "cancelled"
        try:
            pixels = await self._pixels(image, deadline)
            _DECODED.observe(loop.time() - started)
            vector = await self._batcher.embed(pixels, deadline)
            result = "ok"
            return vector
        except ServiceError as error:
            result = _OUTCOMES.get(type(error), "failed")
            raise
        except Exception:
            result = "failed"
            log(_log, logging.ERROR, "embedding failed")
            raise Internal("the image could not be embedded; the server's log has the details") from None
        finally:
            metrics.IMAGES.labels(result).inc()
            _TOTAL.observe(loop.time() - started)

    async def _pixels(self, image: bytes, deadline: float | None) -> NDArray[np.uint8]:
        if len(image) > self._max_image_bytes:
            raise InvalidArgument(
                f"the image has {len(image)} bytes, above the limit of {self._max_image_bytes}; send it scaled down"
            )
        loop = asyncio.get_running_loop()
        if deadline is not None and deadline <= loop.time():
            raise DeadlineExceeded("the deadline had passed when the image came")
        try:
            # Leaving this block early takes the image out of the queue of the decoders.
            async with asyncio.timeout_at(deadline):
                return await loop.run_in_executor(self._decoders, self._decode, image)
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed before the image was decoded") from None
