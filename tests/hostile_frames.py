"""What no gRPC client sends: HTTP/2 frames, made from a number, whose timeouts, lengths, flags or paths are wrong."""

from __future__ import annotations

import random
import socket
import struct

_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _CONTINUATION = 0, 1, 3, 4, 6, 9
_END_STREAM, _END_HEADERS = 1, 4
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_TIMEOUTS = [b"", b"abc", b"-1S", b"99999999999S", b"99999999H", b"1x", b"0n", b"1 S", b"1S", b"\xff"]
# All of them UTF-8: what is not ends the loop of grpc.aio, and so the server, as `test_server.py` tells.
_PATHS = [b"", b"/", b"no slash", b"/a/b/c/d", b"/" + b"x" * 5000, b"/\x01\x7f/%00", b"*"]


def send_hostile_frames(address: str, path: str, number: int) -> None:
    """Sends them on a connection of their own, reads a little of an answer if one comes, and hangs up."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.settimeout(0.05)
        try:
            connection.sendall(_frames(random.Random(f"frames {number}"), path.encode()))
            connection.recv(1 << 16)
        except (TimeoutError, ConnectionError):
            pass  # it need not answer


def call_frames(path: bytes) -> bytes:
    """A call of a method by its path, with an empty message."""
    headers = {b":method": b"POST", b":scheme": b"http", b":path": path, b":authority": b"localhost"}
    headers |= {b"te": b"trailers", b"content-type": b"application/grpc"}
    block = b"".join(b"\0" + _text(name) + _text(value) for name, value in headers.items())
    return (
        _PREFACE
        + _frame(_SETTINGS, 0, 0, b"")
        + _frame(_HEADERS, _END_HEADERS, 1, block)
        + _frame(_DATA, _END_STREAM, 1, bytes(5))
    )


def _frames(chance: random.Random, path: bytes) -> bytes:
    headers = {
        b":method": chance.choice((b"POST", b"POST", b"POST", b"GET", b"\x01")),
        b":scheme": b"http",
        b":path": path if chance.random() < 0.8 else chance.choice(_PATHS),
        b":authority": b"localhost",
        b"te": b"trailers",
        b"content-type": chance.choice(
            (b"application/grpc", b"application/grpc", b"application/grpc+json", b"text/html")
        ),
        b"grpc-timeout": chance.choice(_TIMEOUTS),
        b"grpc-encoding": chance.choice((b"identity", b"gzip", b"nothing")),
    }
    block = b"".join(b"\0" + _text(name) + _text(value) for name, value in headers.items() if chance.random() < 0.97)
    message = chance.randbytes(chance.choice((0, 1, 10, 1000)))
    length = len(message) if chance.random() < 0.5 else chance.choice((0, 1, 1 << 20, (1 << 32) - 1))
    body = bytes((chance.choice((0, 0, 0, 1, 7)),)) + struct.pack(">I", length) + message
    frames = [
        _frame(_SETTINGS, 0, 0, b""),
        _frame(_HEADERS, _END_HEADERS if chance.random() < 0.95 else 0, 1, block),
        _frame(_DATA, chance.choice((0, _END_STREAM)), 1, body * chance.choice((1, 1, 3))),
    ]
    if chance.random() < 0.3:
        frames.append(_frame(_RST_STREAM, 0, 1, struct.pack(">I", chance.choice((0, 8, 999)))))
    if chance.random() < 0.1:
        kind, stream = chance.choice((_PING, _CONTINUATION, 200, _SETTINGS)), chance.choice((0, 1, 2, 7))
        frames.insert(chance.randrange(4), _frame(kind, chance.randrange(256), stream, chance.randbytes(9)))
    sent = _PREFACE + b"".join(frames)
    return sent if chance.random() < 0.9 else sent[: chance.randrange(len(sent))]


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def _text(text: bytes) -> bytes:
    """A string of HPACK (RFC 7541), as it is."""
    if len(text) < 127:
        return bytes((len(text),)) + text
    rest, length = len(text) - 127, b"\x7f"
    while rest >= 128:
        length += bytes((rest % 128 + 128,))
        rest //= 128
    return length + bytes((rest,)) + text
