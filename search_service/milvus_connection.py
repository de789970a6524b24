"""The connection to Milvus: every call in a thread of its own, with a timeout, retried while that can help.

Callers take turns for the threads.

While a server gives no answer a circuit has calls fail at once, before they take a thread. Milvus Lite, in this very
process, has none.

The synchronous client in a bounded pool, and not the asyncio client: building and reading messages of a thousand
vectors takes tens of milliseconds, which would stop the event loop, and the asyncio client can neither create
collections on Milvus Lite nor tell a timeout from another failure.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pymilvus import MilvusClient, MilvusException

from lookalike.channel import PING_TIMEOUT_OPTION
from search_service import metrics, milvus_local
from search_service.circuit import SUSPICIOUS_SECONDS, Circuit
from search_service.milvus_errors import translate
from search_service.milvus_security import Security
from search_service.retries import Failed, Failure, Retries
from service_kit import sharing, tracing
from service_kit.errors import Broken, DeadlineExceeded, FailedPrecondition, Unavailable
from service_kit.fair import Slots

T = TypeVar("T")
# pymilvus has no types.
Client = Any
Call = Callable[[Client, float], T]

_UPSTREAM = "milvus"
_PROBE_SECONDS = 2.0
_LEAST_TIMEOUT_SECONDS = 0.001

_GRPC_OPTIONS = {
    # By default gRPC waits up to two minutes before it tries again to reach a server that was down.
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 1_000,
    PING_TIMEOUT_OPTION: 5_000,  # pymilvus pings every 10 s
}

# They log each failed call with a stack trace, and with the caller's filter. Callers get all failures as errors.
for _name in ("pymilvus.decorators", "pymilvus.client.connection_manager"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)


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
        self._threads = threads
        self._slots = Slots(threads)
        self._retries = Retries(_UPSTREAM, attempts)
        self._circuit: Circuit | None = None
        self._pool: ThreadPoolExecutor | None = None
        # The pool may be full of calls that hang.
        self._probe_thread: ThreadPoolExecutor | None = None
        self._client: Client = None
        self._broken: Broken | None = None

    async def open(self, deadline: float) -> None:
        """Connect. Raises FailedPrecondition (wrong address, file in use), Unavailable or DeadlineExceeded."""
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="milvus")
        self._probe_thread = ThreadPoolExecutor(1, thread_name_prefix="milvus-probe")
        metrics.MILVUS_THREADS.set(self._threads)
        try:
            # Milvus Lite may have to recover a file first, and must not be opened twice meanwhile.
            remaining = deadline - time.monotonic()
            self._client = await self.call("connect", self._connect, deadline, attempt_seconds=remaining)
        except BaseException:
            await self.close()
            raise
        if not self.local:
            self._circuit = Circuit(_UPSTREAM, self.uri, self._probe, probe_seconds=_PROBE_SECONDS)

    async def close(self) -> None:
        """Disconnect, and for Milvus Lite flush and release the file. Calls in flight end by their timeouts."""
        client, self._client = self._client, None
        pools, self._pool, self._probe_thread = (self._pool, self._probe_thread), None, None
        circuit, self._circuit = self._circuit, None
        if circuit is not None:
            await circuit.aclose()
        if client is not None:
            await asyncio.to_thread(client.close)
            if self.local:
                await asyncio.to_thread(milvus_local.stop, self.uri, flush=self._broken is None)
        for pool in pools:
            if pool is not None:
                pool.shutdown(wait=False, cancel_futures=True)

    def require_answers(self) -> None:
        """Raises Unavailable while the server gives no answer."""
        if self._circuit is not None:
            self._circuit.check()

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
        with metrics.upstream(_UPSTREAM, operation), tracing.part(f"milvus {operation}"):
            return await self._retries.call(
                operation, lambda: self._attempt(operation, call, deadline, attempt_seconds), deadline
            )

    async def write(self, operation: str, call: Call[T], deadline: float, attempt_seconds: float) -> T:
        """Run a call that changes rows, as `call` does.

        On Milvus Lite none begins on a disk that is nearly full, but for deletions. After one that it may not survive
        (see `milvus_local.has_lost_track`) every call raises Broken: a new process finds all that was acknowledged.
        """

        def locally(client: Client, timeout: float) -> T:
            if operation != "delete":
                milvus_local.require_room(self.uri)
            try:
                return call(client, timeout)
            except MilvusException as error:
                if milvus_local.has_lost_track(error, operation):
                    self._broken = Broken(
                        f"Milvus Lite failed the {operation} ({error.message}) and may lack rows now: the service "
                        "ends, and finds them in the log when it is started again"
                    )
                raise

        return await self.call(operation, locally if self.local else call, deadline, attempt_seconds=attempt_seconds)

    async def _attempt(self, operation: str, call: Call[T], deadline: float, attempt_seconds: float | None) -> T:
        if self._pool is None:
            raise Unavailable("the store is closed: open it first")
        if self._broken is not None:
            raise self._broken
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise DeadlineExceeded(f"no time was left for the {operation}: allow more")
        seconds = attempt_seconds or min(self._call_timeout, remaining)
        circuit = self._circuit
        if circuit is None:
            return await self._run(self._pool, operation, call, seconds)
        try:
            circuit.check()
        except Unavailable as error:
            raise Failed(Failure(error, retriable=False)) from None
        slow = asyncio.get_running_loop().call_later(SUSPICIOUS_SECONDS, circuit.suspect)
        try:
            result = await self._run(self._pool, operation, call, seconds)
        except Failed as failed:
            if failed.failure.unanswered:
                circuit.suspect()
            else:
                circuit.answered()
            raise
        finally:
            slow.cancel()
        circuit.answered()
        return result

    async def _run(self, pool: ThreadPoolExecutor, operation: str, call: Call[T], seconds: float) -> T:
        """Runs a call in a thread. Raises Failed."""
        end = time.monotonic() + seconds
        client = self._client

        def run() -> T:
            with metrics.MILVUS_THREADS_BUSY.track_inprogress():
                # Waiting for a thread has taken its part of the time.
                return call(client, max(_LEAST_TIMEOUT_SECONDS, end - time.monotonic()))

        try:
            # The pool may be full of calls that hang, so waiting for a thread is bounded too.
            async with asyncio.timeout(seconds):
                with metrics.MILVUS_CALLS_WAITING.track_inprogress():
                    await self._slots.acquire(sharing.caller())
                return await asyncio.wrap_future(self._submit(pool, run))
        except TimeoutError as error:
            message = f"Milvus at {self.uri} did not answer the {operation} within {seconds:.1f} s: allow more time"
            raise Failed(Failure(DeadlineExceeded(message), retriable=True, unanswered=True)) from error
        except Exception as error:
            failure = translate(error, operation)
            if failure is None:
                raise
            raise Failed(failure) from error

    def _submit(self, pool: ThreadPoolExecutor, run: Callable[[], T]) -> Future[T]:
        """Runs a call in a thread, and frees its slot when that ends, however long after its caller has left."""
        loop = asyncio.get_running_loop()

        def free(_: object) -> None:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._slots.release)

        try:
            future = pool.submit(run)
        except BaseException:
            self._slots.release()
            raise
        future.add_done_callback(free)
        return future

    async def _probe(self) -> None:
        """Finds out whether the server answers, the coordinator behind its proxy too; raises where it does not."""
        pool, client = self._probe_thread, self._client
        if pool is None:
            return
        try:
            await asyncio.get_running_loop().run_in_executor(
                pool, lambda: client.list_collections(timeout=_PROBE_SECONDS)
            )
        except Exception as error:
            failure = translate(error, "probe")
            if failure is None or failure.unanswered:
                raise

    def _connect(self, _: Client, timeout: float) -> Client:
        security = self._security.options(self.uri)
        try:
            if self.local:
                Path(self.uri).parent.mkdir(parents=True, exist_ok=True)
            client = MilvusClient(
                uri=self.uri,
                **security,
                db_name=self._db_name,
                timeout=min(timeout, self._connect_timeout),
                # A shared connection would outlive its client.
                dedicated=True,
                grpc_options=_GRPC_OPTIONS,
            )
            # By default it opens a new connection at every UNAVAILABLE, one thread after the other, each for up to the
            # time of connecting and whatever the timeout of its call. gRPC connects again by itself.
            client._handler._on_rpc_error = _raise
            return client
        except Exception as error:
            if self.local:
                raise FailedPrecondition(self._why_not_local()) from error
            raise

    def _why_not_local(self) -> str:
        holder = milvus_local.holder(self.uri)
        failed = f"Milvus Lite could not open {self.uri}"
        if not os.access(self.uri, os.W_OK):
            return f"{failed}: it cannot be written to (a read-only disk, or another user's): make it writable"
        if holder is None:
            return f"{failed}: look at the rights of that directory, and whether another process uses it"
        return (
            f"{failed}: process {holder} holds it, and only one process may. Stop that process, use another path, "
            "or give several processes one Milvus server (http://host:port)"
        )


def _raise(error: Exception) -> NoReturn:
    raise error
