"""Decoding in processes of its own: what an image does to its decoder, it does to no other image and not to the server.

A decoder that crashes, hangs or takes too much memory costs the image that it had, and is replaced. That image is not
tried again.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from embedder_service import metrics
from embedder_service.decode_process import DecodeProcess, Lost
from service_kit.errors import Internal, InvalidArgument, ServiceError, Unavailable
from service_kit.logs import log

_log = logging.getLogger(__name__)


class DecodePool:
    """Decodes image files, each in one of several processes. For several threads.

    Entering the context starts the processes, leaving it ends them. They do not outlive this process, however it ends;
    nor the thread that replaced one, so the threads that decode have to last.
    """

    def __init__(self, start: Callable[[], DecodeProcess], count: int, seconds: float) -> None:
        """
        Args:
            start: starts a process; raises OSError.
            count: of the processes.
            seconds: that an image may take; after that its process is killed.
        """
        self._start = start
        self._count = count
        self._seconds = seconds
        self._changed = threading.Condition()
        self._alive: set[DecodeProcess] = set()
        self._idle: deque[DecodeProcess] = deque()  # taken from the right: the one used last, which is warm
        # When processes were started: at most `count` within a second, or images that kill decoders could have the
        # server do nothing else.
        self._starts: deque[float] = deque(maxlen=count)
        self._trouble: str | None = None  # why the last process could not be started
        self._closed = False

    def __enter__(self) -> Self:
        with self._changed:
            self._fill()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def wait_until_ready(self) -> None:
        """Waits until all processes have come up; for before the first `decode`.

        Raises:
            Unavailable: one did not.
        """
        for process in self._alive:
            try:
                process.wait_until_ready()
            except Lost as lost:
                raise self._error(lost) from lost

    def decode(self, image: bytes) -> NDArray[np.uint8]:
        """Decodes an image file.

        Returns:
            uint8 [H, W, 3], RGB.

        Raises:
            InvalidArgument: see `decode.picture`; or its process crashed, or took too long.
            Internal: its process was killed from outside, or answered nonsense.
            Unavailable: no process can be started, or the pool is closed.
        """
        process = self._take()
        try:
            pixels = process.decode(image, self._seconds)
        except InvalidArgument:
            self._give_back(process)
            raise
        except Exception as error:
            lost = error if isinstance(error, Lost) else Lost("garbled", f"because of {error!r}")
            process.end()
            digest = hashlib.sha256(image).hexdigest()
            with self._changed:
                self._forget(process, lost, image_bytes=len(image), image_sha256=digest)
                with suppress(Unavailable):  # that is for the next image to say
                    self._fill()
                self._changed.notify_all()
            raise self._error(lost) from error
        self._give_back(process)
        return pixels

    def check(self) -> None:
        """Replaces processes that ended while they had nothing to do.

        Raises:
            Unavailable: there is none, and none can be started.
        """
        with self._changed:
            for process in tuple(self._idle):
                if lost := process.ended():
                    self._idle.remove(process)
                    self._forget(process, lost)
            with suppress(Unavailable):
                self._fill()
            if self._trouble and not self._alive:
                raise Unavailable(self._trouble)

    def close(self) -> None:
        """Ends the processes; images that are being decoded fail as Unavailable. Calling it again does nothing."""
        with self._changed:
            self._closed = True
            for process in self._alive:
                process.kill()  # one at work is freed by the thread that has it
            while self._idle:
                self._idle.pop().end()
            self._changed.notify_all()

    def _take(self) -> DecodeProcess:
        with self._changed:
            while not self._closed:
                while self._idle:
                    process = self._idle.pop()
                    lost = process.ended()
                    if lost is None:
                        return process
                    self._forget(process, lost)
                wait = self._fill()
                if not self._idle:
                    self._changed.wait(wait)
            raise self._stopping()

    def _give_back(self, process: DecodeProcess) -> None:
        with self._changed:
            if self._closed:
                process.end()
            else:
                self._idle.append(process)
                self._changed.notify()

    def _fill(self) -> float | None:
        """Starts what is missing. Returns the seconds until more may be started, None if nothing is missing."""
        while not self._closed and len(self._alive) < self._count:
            now = time.monotonic()
            if len(self._starts) == self._count and self._starts[0] + 1 > now:
                return self._starts[0] + 1 - now
            self._starts.append(now)
            try:
                process = self._start()
            except OSError as error:
                self._trouble = f"no decoder can be started: {error.strerror}; try another server"
                raise Unavailable(self._trouble) from error
            self._trouble = None
            self._alive.add(process)
            self._idle.appendleft(process)
        return None

    def _forget(self, process: DecodeProcess, lost: Lost, **fields: Any) -> None:
        self._alive.discard(process)
        process.end()
        if not self._closed:
            metrics.DECODERS_LOST.labels(lost.reason).inc()
            log(_log, logging.WARNING, "decoder lost", reason=lost.reason, detail=f"it ended {lost.detail}", **fields)

    def _error(self, lost: Lost) -> ServiceError:
        if self._closed:
            return self._stopping()
        match lost.reason:
            case "crashed":
                return InvalidArgument(
                    f"the image cannot be decoded: its decoder ended {lost.detail}; send it coded anew"
                )
            case "timeout":
                return InvalidArgument(
                    f"decoding the image takes longer than the limit of {self._seconds:g} s; send it scaled down"
                )
            case "start":
                return Unavailable(f"a decoder did not come up: it ended {lost.detail}; try another server")
        return Internal(f"the image was not decoded: its decoder ended {lost.detail}; the server's log has the details")

    @staticmethod
    def _stopping() -> Unavailable:
        return Unavailable("the server is stopping; try another one")
