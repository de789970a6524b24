"""HTTP/2 by hand, for what no client does: half a message, a flood of pings, a reader that does not read (RFC 9113)."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Self

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
END_STREAM, ACK, END_HEADERS = 1, 1, 4
HEADER_TABLE_SIZE, INITIAL_WINDOW_SIZE = 1, 4
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def setting(name: int, value: int) -> bytes:
    return name.to_bytes(2, "big") + value.to_bytes(4, "big")


def call(path: str, stream: int, *metadata: tuple[str, str], flags: int = END_HEADERS) -> bytes:
    """The headers of a gRPC call, in one frame."""
    pairs = ((":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "test"), ("te", "trailers"))
    pairs += (("content-type", "application/grpc"), *metadata)
    block = b"".join(b"\0" + _text(name) + _text(value) for name, value in pairs)
    return frame(HEADERS, flags, stream, block)


def message(content: bytes, stream: int, *, compressed: bool = False, flags: int = END_STREAM) -> bytes:
    """A gRPC message that fits in a frame."""
    return frame(DATA, flags, stream, bytes([compressed]) + len(content).to_bytes(4, "big") + content)


class Connection:
    """A connection that sends what it is told, and acknowledges the server's settings unless told otherwise."""

    def __init__(self, address: str, *, speak: bool = True, acknowledge: bool = True, settings: bytes = b"") -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), 10)
        self._received = b""
        if speak:
            # Without a table, headers come as they are.
            self.send(_PREFACE, frame(SETTINGS, payload=setting(HEADER_TABLE_SIZE, 0) + settings))
            if acknowledge:
                self.until(SETTINGS)
                self.send(frame(SETTINGS, ACK))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, *frames: bytes) -> None:
        self._socket.sendall(b"".join(frames))

    def frames(self, seconds: float = 20.0) -> Iterator[tuple[int, int, int, bytes]]:
        """Kind, flags, stream and payload of each frame that comes, until the server closes the connection."""
        self._socket.settimeout(seconds)
        while True:
            while len(self._received) < 9 or len(self._received) < 9 + int.from_bytes(self._received[:3], "big"):
                try:
                    more = self._socket.recv(1 << 16)
                except ConnectionResetError:
                    return
                if not more:
                    return
                self._received += more
            end = 9 + int.from_bytes(self._received[:3], "big")
            head, payload, self._received = self._received[:9], self._received[9:end], self._received[end:]
            yield head[3], head[4], int.from_bytes(head[5:9], "big"), payload

    def until(self, kind: int, stream: int = 0) -> bytes:
        """Waits for a frame of this kind and stream, and returns its payload."""
        for found, _, of, payload in self.frames():
            if (found, of) == (kind, stream):
                return payload
        raise AssertionError("the server closed the connection")

    def status(self, stream: int) -> int:
        """Waits for the end of a call and returns its gRPC status."""
        for kind, flags, of, payload in self.frames():
            if (kind, of) == (HEADERS, stream) and flags & END_STREAM:
                value = payload.partition(b"grpc-status")[2]
                return int(value[1 : 1 + value[0]])
        raise AssertionError("the server closed the connection")

    def closed(self) -> bytes:
        """Waits until the server closes the connection, and returns its reason."""
        reason = b""
        for kind, _, _, payload in self.frames():
            if kind == GOAWAY:
                reason = payload[8:]
        return reason


def _text(text: str) -> bytes:
    """A string of HPACK, without Huffman's code."""
    encoded = text.encode()
    size = len(encoded)
    if size < 127:
        return bytes([size]) + encoded
    head, size = [127], size - 127
    while size >= 128:
        head.append(size % 128 + 128)
        size //= 128
    return bytes([*head, size]) + encoded
