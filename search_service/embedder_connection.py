"""The connection to an embedder: certificates and a token that are read again when their files change."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import grpc

from lookalike.channel import connect_aio
from lookalike.embedder.v1 import embedder_pb2_grpc
from lookalike.security import Security
from service_kit.certificates import check_expiry
from service_kit.errors import FailedPrecondition
from service_kit.reloading import Reloaded

_GRACE = 60.0  # seconds that calls get which began before a change


class EmbedderConnection:
    """A channel that is replaced by another one when the certificates it was opened with change."""

    def __init__(self, target: str, max_message_bytes: int, security: Security) -> None:
        """
        Raises:
            FailedPrecondition: a file is not what it should be, or a token would be sent in plaintext.
        """
        self._target = target
        self._max_message_bytes = max_message_bytes
        self._security = security
        self._tasks: set[asyncio.Task[None]] = set()
        files = [each for each in (security.client_cert, security.client_key, security.ca) if each is not None]
        try:
            self._bearer = security.bearer()
            self._files = Reloaded("embedder certificates", files, self._check) if files else None
            self._channel = self._open()
        except (ValueError, OSError) as error:
            raise FailedPrecondition(f"the embedder at {target} cannot be called: {error}") from None
        if self._files is not None:
            self._opened_with = self._files.value
            self._start(self._files.watch())
        self._stub = embedder_pb2_grpc.EmbedderServiceStub(self._channel)

    @property
    def stub(self) -> Any:
        """What to call now."""
        if self._files is not None and self._files.value is not self._opened_with:
            self._opened_with = self._files.value
            with suppress(ValueError, OSError):  # they change again at this moment, and will be looked at again
                channel = self._open()
                self._start(self._channel.close(_GRACE))
                self._channel = channel
                self._stub = embedder_pb2_grpc.EmbedderServiceStub(channel)
        return self._stub

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What each call brings along."""
        return self._bearer.metadata()

    async def aclose(self) -> None:
        """Closes the connection."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._channel.close()

    def _open(self) -> grpc.aio.Channel:
        return connect_aio(
            self._target, security=self._security, max_message_bytes=self._max_message_bytes, retry=False
        )

    def _check(self, contents: Sequence[bytes]) -> object:
        """Makes sure that a channel can be opened with the files; what it returns only differs from what was."""
        try:
            self._security.credentials()
        except (ValueError, OSError) as error:
            raise FailedPrecondition(str(error)) from None
        if self._security.client_cert is not None:
            check_expiry(contents[0], "embedder client")
        return object()

    def _start(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
