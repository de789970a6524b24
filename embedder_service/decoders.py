"""The threads that decode: as many images ahead of the model as keep it busy, and no more."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from embedder_service.batcher import Batcher
from embedder_service.jobs import DECODE, QUEUE, Job
from embedder_service.lanes import LaneQueue
from service_kit.errors import Internal, ServiceError, Unavailable
from service_kit.logs import log

_log = logging.getLogger(__name__)


class Decoders:
    """Decodes the images that wait, and hands them to the batcher.

    Images wait encoded, which takes a tenth of the memory, and are decoded in the order of their lanes. A bad one
    never gets into a batch.
    """

    def __init__(self, decode: Callable[[bytes], NDArray[np.uint8]], batcher: Batcher, threads: int) -> None:
        """
        Args:
            decode: image file -> uint8 [H, W, 3]; raises InvalidArgument; called from several threads.
            batcher: gets the decoded images; its queue's bound is how far decoding goes ahead.
            threads: images decoded at the same time.
        """
        self._decode = decode
        self._batcher = batcher
        self._waiting: LaneQueue[Job] = LaneQueue()
        self._threads = [threading.Thread(target=self._work, name=f"decode-{n}", daemon=True) for n in range(threads)]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Images that wait to be decoded."""
        return len(self._waiting)

    def put(self, job: Job) -> None:
        """Takes an image on; the job is settled some time."""
        job.enter(QUEUE)
        if not self._waiting.put(job, job.lane, job.caller):
            job.settle(Unavailable("the server is stopping; try another one"))

    def discard(self, job: Job) -> None:
        """Forgets an image that nobody wants any more."""
        self._waiting.discard(job, job.lane, job.caller)

    def close(self) -> None:
        """Fails what waits, and ends the threads. The batcher must be closed before."""
        for job in self._waiting.close():
            job.settle(Unavailable("the server stopped before the image was embedded; try another one"))
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        # The place first: an image that comes while this thread waits for one may go before others.
        while self._batcher.reserve():
            if not (jobs := self._waiting.take()):
                return
            self._try(*jobs)

    def _try(self, job: Job) -> None:
        outcome = None
        try:
            if job.wanted():
                job.enter(DECODE)
                job.pixels = self._decode(job.image)
        except ServiceError as error:
            outcome = error
        except Exception:
            log(_log, logging.ERROR, "decoding failed")
            outcome = Internal("the image could not be decoded; the server's log has the details")
        if job.pixels is None:
            self._batcher.give_back()
            job.settle(outcome)
        else:
            self._batcher.put(job, reserved=True)
