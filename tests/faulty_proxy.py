"""A TCP proxy on loopback that is a bad network when told to: slow, silent, forgetful, cutting, refusing."""

from __future__ import annotations

import asyncio
import math
import socket
import struct
from collections.abc import Callable
from threading import Thread
from typing import Self

_PIECE_BYTES = 16 << 10
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: a close sends RST instead of FIN


class FaultyProxy:
    """Forwards connections to `target` for as long as the context lasts; faults are switched while it runs.

    Attributes:
        address: HOST:PORT to connect to.
        delay: seconds that each piece of data waits, in either direction.
        bandwidth: bytes a second of each connection, in each direction.
        cut_after: bytes after which each connection is reset, wherever in a message that is.
    """

    def __init__(self, target: str) -> None:
        host, _, port = target.removeprefix("http://").rpartition(":")
        self._target = host, int(port)
        self.delay = 0.0
        self.bandwidth = math.inf
        self.cut_after = math.inf
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, daemon=True)
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Server | None = None
        self._port = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        self._thread.start()
        self._passing = asyncio.Event()
        self._run(self._passing.set)
        self.accept()
        return self

    def __exit__(self, *_: object) -> None:
        self.refuse()
        self.reset()
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def silence(self) -> None:
        """From now on nothing gets through, in either direction, not even the end of a connection."""
        self._run(self._passing.clear)

    def speak(self) -> None:
        """What was held up gets through, as after the retransmissions of TCP."""
        self._run(self._passing.set)

    def forget(self) -> None:
        """The present connections are silent for good, as behind a firewall that has forgotten them. New ones work."""
        self._run(lambda: [setattr(connection, "forgotten", True) for connection in self._connections])

    def reset(self) -> None:
        """Resets the present connections."""
        self._run(lambda: [connection.reset() for connection in [*self._connections]])

    def refuse(self) -> None:
        """Refuses new connections; the present ones go on."""

        def close() -> None:
            if self._listener:
                self._listener.close()
                self._listener = None

        self._run(close)

    def accept(self) -> None:
        """Takes new connections again, on the same port."""

        async def listen() -> None:
            self._listener = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
            self._port = self._listener.sockets[0].getsockname()[1]

        asyncio.run_coroutine_threadsafe(listen(), self._loop).result(10)

    def _run(self, action: Callable[[], object]) -> None:
        async def run() -> None:
            action()

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(10)

    async def _end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        try:
            await self._passing.wait()
            try:
                there = await asyncio.open_connection(*self._target)
            except OSError:
                _Connection(writer).reset()
                return
            connection = _Connection(writer, there[1])
            self._connections.add(connection)
            try:
                await asyncio.gather(
                    self._forward(connection, reader, there[1]), self._forward(connection, there[0], writer)
                )
            finally:
                self._connections.discard(connection)
                connection.close()
        except (asyncio.CancelledError, ConnectionError):
            pass  # the end of the proxy, or of the connection
        finally:
            self._tasks.discard(task)

    async def _forward(
        self, connection: _Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while True:
            data = await reader.read(_PIECE_BYTES)
            await asyncio.sleep(self.delay + len(data) / self.bandwidth)
            await self._passing.wait()
            if connection.forgotten and data:
                continue
            connection.passed += len(data)
            if connection.passed > self.cut_after:
                writer.write(data[: len(data) // 2])
                await writer.drain()
                connection.reset()
                return
            if not data:
                if not connection.forgotten:
                    writer.write_eof()
                return
            writer.write(data)
            await writer.drain()


class _Connection:
    def __init__(self, *writers: asyncio.StreamWriter) -> None:
        self._writers = writers
        self.passed = 0
        self.forgotten = False

    def reset(self) -> None:
        for writer in self._writers:
            sock = writer.get_extra_info("socket")
            if sock is not None and sock.fileno() >= 0:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()

    def close(self) -> None:
        for writer in self._writers:
            writer.close()
