"""Files that are read again when they change, while the process runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from prometheus_client import Gauge

from service_kit.errors import FailedPrecondition
from service_kit.logs import log

T = TypeVar("T")
_SECONDS = 1.0  # between two looks
_SUCCESSFUL = Gauge(
    "server_reload_successful", "Whether the files are as they are used (1), or broken and not used (0).", ["files"]
)
_log = logging.getLogger(__name__)


class Reloaded(Generic[T]):
    """What some files hold. Files that change into something broken leave what was there.

    Looks at what is in them, and not at their times: a secret that Kubernetes mounts changes by a link to a directory.

    Attributes:
        value: what they hold.
    """

    value: T

    def __init__(self, what: str, files: Sequence[Path], parse: Callable[[Sequence[bytes]], T]) -> None:
        """
        Args:
            what: how messages and metrics call it.
            files: whose contents make the value together.
            parse: makes it; raises FailedPrecondition where they are broken.

        Raises:
            FailedPrecondition: they cannot be read, or are broken.
        """
        self._what = what
        self._files = files
        self._parse = parse
        self._fault = ""
        self._contents = self._read()
        self.value = self._parsed(self._contents)
        _SUCCESSFUL.labels(what).set(1)

    async def watch(self) -> None:
        """Looks at the files again and again. Never returns."""
        while True:
            await asyncio.sleep(_SECONDS)
            await asyncio.to_thread(self.refresh)

    def refresh(self) -> bool:
        """Takes over what is in the files now, if it is whole; returns whether there was something new."""
        try:
            contents = self._read()
            changed = contents != self._contents
            if changed:
                value = self._parsed(contents)
                if contents != self._read():  # they are being written: there will be another look
                    return False
                self._contents, self.value = contents, value
        except FailedPrecondition as error:
            if error.message != self._fault:
                log(
                    _log, logging.WARNING, "files are broken, the old ones hold", files=self._what, reason=error.message
                )
            self._fault = error.message
            _SUCCESSFUL.labels(self._what).set(0)
            return False
        if changed:
            log(_log, logging.INFO, "files are read again", files=self._what)
        self._fault = ""
        _SUCCESSFUL.labels(self._what).set(1)
        return changed

    def _read(self) -> list[bytes]:
        try:
            return [file.read_bytes() for file in self._files]
        except OSError as error:
            raise FailedPrecondition(
                f"the file of the {self._what}, {error.filename}, cannot be read: {error.strerror}"
            ) from None

    def _parsed(self, contents: Sequence[bytes]) -> T:
        try:
            return self._parse(contents)
        except FailedPrecondition as error:
            names = ", ".join(map(str, self._files))
            raise FailedPrecondition(f"the {self._what} in {names} cannot be used: {error.message}") from None
