"""The connection to Milvus: every call in a thread of its own, with a timeout, retried while that can help.

The synchronous client in a bounded pool, and not the asyncio client: building and reading messages of a thousand
vectors takes tens of milliseconds, which would stop the event loop, and the asyncio client can neither create
collections on Milvus Lite nor tell a timeout from another failure.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from pymilvus import MilvusClient

from search_service import metrics, milvus_local
from search_service.milvus_errors import Failure, translate
from search_service.milvus_security import Security
from service_kit.errors import DeadlineExceeded, FailedPrecondition, Unavailable

T = TypeVar("T")
# pymilvus has no types.
Client = Any
Call = Callable[[Client, float], T]

_UPSTREAM = "milvus"
_FIRST_BACKOFF_SECONDS = 0.2
_LONGEST_BACKOFF_SECONDS = 5.0

# By default gRPC waits up to two minutes before it tries again to reach a server that was down.
_GRPC_OPTIONS = {"grpc.initial_reconnect_backoff_ms": 100, "grpc.max_reconnect_backoff_ms": 1_000}

# They log each failed call with a stack trace, and with the caller's filter. Callers get all failures as errors.
for _name in ("pymilvus.decorators", "pymilvus.client.connection_manager"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)


class _Failed(Exception):
    """The outcome of one attempt. It does not leave this file."""

    def __init__(self, failure: Failure) -> None:
        super().__init__()
        self.failure = failure


class MilvusConnection:
    """One client of Milvus and the threads that its calls run in."""

    def __init__(
        self,
        uri: str,
        *,
        security: Security,
        db_name: str,
        connect_timeout: float,
        call_timeout: float,
        attempts: int,
        threads: int,
    ) -> None:
        self.uri = uri
        self.local = milvus_local.is_local(uri)
        self._security = security
        self._db_name = db_name
        self._connect_timeout = connect_timeout
        self._call_timeout = call_timeout
        self._attempts = attempts
        self._threads = threads
        self._pool: ThreadPoolExecutor | None = None
        self._client: Client = None

    async def open(self, deadline: float) -> None:
        """Connect. Raises FailedPrecondition (wrong address, file in use), Unavailable or DeadlineExceeded."""
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="milvus")
        try:
            # Milvus Lite may have to recover a file first, and must not be opened twice meanwhile.
            remaining = deadline - time.monotonic()
            self._client = await self.call("connect", self._connect, deadline, attempt_seconds=remaining)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Disconnect, and for Milvus Lite flush and release the file. Calls in flight end by their timeouts."""
        client, self._client = self._client, None
        pool, self._pool = self._pool, None
        if client is not None:
            await asyncio.to_thread(client.close)
            if self.local:
                await asyncio.to_thread(milvus_local.stop, self.uri)
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)

    async def call(self, operation: str, call: Call[T], deadline: float, *, attempt_seconds: float | None = None) -> T:
        """Run `call(client, timeout)` in a thread, again with full jitter while Milvus is only passingly unable.

        Args:
            operation: what is being done, for messages.
            call: gets the client, and the timeout in seconds that it must give to every call of pymilvus.
            deadline: on the scale of `time.monotonic()`. No attempt starts after it.
            attempt_seconds: how long one attempt may take, even past the deadline: for what must not be left half done.
                The default ends with the deadline, or earlier.

        Raises:
            ServiceError: as `search_service.milvus_errors` tells.
        """
        with metrics.upstream(_UPSTREAM, operation):
            return await self._retried(operation, call, deadline, attempt_seconds)

    async def _retried(self, operation: str, call: Call[T], deadline: float, attempt_seconds: float | None) -> T:
        for attempt in range(1, self._attempts + 1):
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise DeadlineExceeded(f"no time was left for the {operation}: allow more")
            try:
                return await self._attempt(operation, call, attempt_seconds or min(self._call_timeout, remaining))
            except _Failed as failed:
                # https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
                longest = min(_LONGEST_BACKOFF_SECONDS, _FIRST_BACKOFF_SECONDS * 2 ** (attempt - 1))
                pause = random.uniform(0, longest)  # noqa: S311 - no secret depends on it
                last = attempt == self._attempts or time.monotonic() + pause >= deadline
                if last or not failed.failure.retriable:
                    raise failed.failure.error from failed.__cause__
            metrics.RETRIES.labels(_UPSTREAM).inc()
            await asyncio.sleep(pause)
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def _attempt(self, operation: str, call: Call[T], seconds: float) -> T:
        if self._pool is None:
            raise Unavailable("the store is closed: open it first")
        try:
            # The pool may be full of calls that hang, so waiting for a thread is bounded too.
            async with asyncio.timeout(seconds):
                return await asyncio.get_running_loop().run_in_executor(self._pool, call, self._client, seconds)
        except TimeoutError as error:
            message = f"Milvus at {self.uri} did not answer the {operation} within {seconds:.1f} s: allow more time"
            raise _Failed(Failure(DeadlineExceeded(message), retriable=True)) from error
        except Exception as error:
            failure = translate(error, operation)
            if failure is None:
                raise
            raise _Failed(failure) from error

    def _connect(self, _: Client, timeout: float) -> Client:
        security = self._security.options(self.uri)
        try:
            if self.local:
                Path(self.uri).parent.mkdir(parents=True, exist_ok=True)
            return MilvusClient(
                uri=self.uri,
                **security,
                db_name=self._db_name,
                timeout=min(timeout, self._connect_timeout),
                # A shared connection would outlive its client.
                dedicated=True,
                grpc_options=_GRPC_OPTIONS,
            )
        except Exception as error:
            if self.local:
                raise FailedPrecondition(self._why_not_local()) from error
            raise

    def _why_not_local(self) -> str:
        holder = milvus_local.holder(self.uri)
        failed = f"Milvus Lite could not open {self.uri}"
        if holder is None:
            return f"{failed}: look at the rights of that directory, and whether another process uses it"
        return (
            f"{failed}: process {holder} holds it, and only one process may. Stop that process, use another path, "
            "or give several processes one Milvus server (http://host:port)"
        )
