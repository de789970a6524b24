"""One process that decodes, as its owner sees it: give it an image, get pixels, and end it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from embedder_service import decode_worker as wire
from service_kit.errors import InvalidArgument

PROGRAM = "embedder_service.decode_worker"
_START_SECONDS = 30.0
_END_SECONDS = 1.0
# Where this process finds its modules; of its environment nothing but where the interpreter finds its libraries.
_PATHS = (str(Path(__file__).parents[1]), *map(os.path.abspath, filter(None, sys.path)))
_KEPT = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")


class Lost(Exception):
    """The process is of no use any more, and has to be ended.

    Attributes:
        reason: start (it did not come up), timeout, crashed, killed (from outside), or garbled (its answer is none).
        detail: how, to follow "it ended".
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


class DecodeProcess:
    """A process that decodes, one image at a time. It ends with this process. For one thread at a time."""

    def __init__(self, shape: tuple[int, int, int], *, resize: str, max_pixels: int, memory: int) -> None:
        """Starts it, and does not wait until it has come up.

        Args:
            shape: (H, W, 3) of the pixels.
            resize: see `decode.picture`.
            max_pixels: see `decode.picture`.
            memory: bytes that it may take for an image.

        Raises:
            OSError: it cannot be started.
        """
        self._shape = shape
        self._ready = False
        # Without `site`: the paths are known.
        arguments = [str(argument) for argument in (resize, *shape[:2], max_pixels, memory)]
        command = [sys.executable, "-P", "-s", "-S", "-m", PROGRAM, *arguments]
        environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
        environment["PYTHONPATH"] = os.pathsep.join(_PATHS)
        with ExitStack() as stack:
            self._pixels = stack.enter_context(_file_in_memory())
            ours, theirs = map(stack.enter_context, socket.socketpair())
            self._process = subprocess.Popen(  # noqa: S603
                command,
                stdin=theirs.fileno(),
                stdout=self._pixels.fileno(),
                cwd="/",
                env=environment,
                start_new_session=True,
            )
            theirs.close()
            self._socket = ours
            self._resources = stack.pop_all()

    def ended(self, seconds: float = 0.0) -> Lost | None:
        """How it has ended by itself, or does within so many seconds; None: it has not."""
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        if code == -signal.SIGKILL:
            return Lost("killed", "by SIGKILL")
        how = f"by signal {-code}, {signal.strsignal(-code)}" if code < 0 else f"with exit code {code}"
        return Lost("crashed", how)

    def wait_until_ready(self) -> None:
        """Waits until it has come up.

        Raises:
            Lost: it did not.
        """
        if self._ready:
            return
        try:
            kind, _ = self._receive(time.monotonic() + _START_SECONDS)
        except Lost as lost:
            raise Lost("start", lost.detail) from lost
        if kind != wire.READY:
            raise Lost("start", "with an answer before a question")
        self._ready = True

    def decode(self, image: bytes, seconds: float) -> NDArray[np.uint8]:
        """Decodes an image.

        Returns:
            uint8 [H, W, 3], RGB.

        Raises:
            InvalidArgument: see `decode.picture`.
            Lost: that was the end of the process, or it took longer than so many seconds.
        """
        self.wait_until_ready()
        deadline = time.monotonic() + seconds
        self._socket.settimeout(seconds)
        try:
            self._socket.sendall(wire.REQUEST.pack(len(image)) + image)
        except OSError as error:
            raise self._lost(error) from error
        kind, content = self._receive(deadline)
        if kind == wire.INVALID:
            raise InvalidArgument(content.decode(errors="replace"))
        if kind != wire.PIXELS:
            raise Lost("garbled", f"with an answer of kind {kind}")
        pixels = np.empty(self._shape, np.uint8)
        # Not mapped: to touch what the process has cut off meanwhile would end this one.
        if os.preadv(self._pixels.fileno(), [pixels.data], 0) != pixels.nbytes:
            raise Lost("garbled", "without all of the pixels")
        return pixels

    def kill(self) -> None:
        """Ends it at once; a `decode` in progress raises Lost. For any thread."""
        self._process.kill()

    def end(self) -> None:
        """Ends it, and frees what it had."""
        self.kill()
        with suppress(subprocess.TimeoutExpired):  # it hangs in the system
            self._process.wait(_END_SECONDS)
        self._resources.close()

    def _receive(self, deadline: float) -> tuple[int, bytearray]:
        """Returns the kind of an answer and its content, of which no more is believed than there may be."""
        kind, length = wire.ANSWER.unpack(self._read(wire.ANSWER.size, deadline))
        if length > wire.MAX_MESSAGE:
            raise Lost("garbled", f"with an answer of kind {kind} and {length} bytes")
        return kind, self._read(length, deadline)

    def _read(self, size: int, deadline: float) -> bytearray:
        content = bytearray(size)
        missing = memoryview(content)
        while missing:
            self._socket.settimeout(max(1e-3, deadline - time.monotonic()))  # 0 would mean not to wait at all
            try:
                count = self._socket.recv_into(missing)
            except OSError as error:
                raise self._lost(error) from error
            if not count:
                raise self._lost(None)
            missing = missing[count:]
        return content

    def _lost(self, error: OSError | None) -> Lost:
        if isinstance(error, TimeoutError):
            return Lost("timeout", "because it gave no answer in time")
        return self.ended(_END_SECONDS) or Lost("garbled", "because it closed its socket")


def _file_in_memory() -> IO[bytes]:
    if sys.platform == "linux":
        return os.fdopen(os.memfd_create("pixels"), "r+b", buffering=0)
    return tempfile.TemporaryFile(buffering=0)
