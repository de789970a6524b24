"""Calls of both services that are wrong in every way their descriptors allow, made from a number: the same number, the
same call. Half of them are sound calls with something done to them. A new RPC, or field, comes by itself.
"""

from __future__ import annotations

import base64
import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.json_format import ParseDict
from google.protobuf.message_factory import GetMessageClass
from hostile_images import encoded, hostile_image, real_images
from PIL import Image

from lookalike.embedder.v1 import embedder_pb2
from lookalike.search.v1 import search_pb2

METHODS: list[MethodDescriptor] = [
    method
    for service in (
        search_pb2.DESCRIPTOR.services_by_name["SearchService"],
        embedder_pb2.DESCRIPTOR.services_by_name["EmbedderService"],
    )
    for method in service.methods
]
# What the calls may do anything to. Most have one of them, or there would be nothing behind the first check.
COLLECTIONS = ["fuzzed", "fuzzed_tenants"]
DEPTH = 4
FILTERS = [
    'attributes["n"] > {n}',
    'attributes["n"] in {n}',
    'id in {ids} and not attributes["x"] like "%a"',
    'exists attributes["n"] or updated_ms < 5',
    "((((" * 50,
    "id == 'a' or " * 200 + "id == 'b'",
    'json_contains(attributes["x"], {n})',
    "1 == 'a'",
    'attributes["n"] == 99999999999999999999999',
]
WORDS: dict[str, list[str]] = {
    "name": COLLECTIONS,
    "collection": COLLECTIONS,
    "tenant": ["", "", "acme", "bolt", "a/b", "tenant\n"],
    "id": ["a", "b", "c", "é/\\\"'"],
    "ids": ["a", "b", "c"],
    "surplus_ids": ["a", "b"],
    "model_fingerprint": ["mine", "mine", "another"],
    "expected_fingerprint": ["", "another"],
    "expression": FILTERS,
    "key": ["n", "x", "ids"],
    "attributes": ["n", "x"],
}
STRINGS = [
    "",
    "\0",
    "a" * 70_000,
    "𝄞" * 300,
    "‮\ud7ff￿",
    "%s%n{0}{n}",
    "../../etc/passwd",
    "' or 1 == 1 or '",
    "\n\r\t\x1b[2J",
]
FLOATS = [0.0, -0.0, 1.0, -1.0, float("nan"), float("inf"), float("-inf"), 1e-45, 3.4e38, 1e308, 5e-324, 0.5]
INTEGERS = [
    0,
    1,
    2,
    4,
    10,
    -1,
    127,
    1000,
    1 << 15,
    1 << 31,
    (1 << 31) - 1,
    1 << 32,
    (1 << 63) - 1,
    1 << 63,
    (1 << 64) - 1,
]

_VARINTS = {
    getattr(FieldDescriptor, f"TYPE_{name}")
    for name in ("INT32", "INT64", "UINT32", "UINT64", "SINT32", "SINT64", "BOOL", "ENUM")
}
_WIRE_TYPES = {
    FieldDescriptor.TYPE_DOUBLE: 1,
    FieldDescriptor.TYPE_FIXED64: 1,
    FieldDescriptor.TYPE_SFIXED64: 1,
    FieldDescriptor.TYPE_FLOAT: 5,
    FieldDescriptor.TYPE_FIXED32: 5,
    FieldDescriptor.TYPE_SFIXED32: 5,
}


@dataclass(frozen=True)
class HostileCall:
    """A call: its method, messages as they go over the wire, metadata, and when it is given up.

    It is cancelled after some seconds, if any. To `hold` it is not to say that no more messages follow.
    """

    method: MethodDescriptor
    messages: tuple[bytes, ...]
    metadata: tuple[tuple[str, str | bytes], ...]
    timeout: float | None
    cancel_after: float | None
    hold: bool

    @property
    def path(self) -> str:
        return f"/{self.method.containing_service.full_name}/{self.method.name}"


def hostile_call(number: int, seed: int = 0) -> HostileCall:
    chance = random.Random(f"{seed} {number}")
    sound = sound_calls()
    if chance.random() < 0.5:
        name = chance.choice(list(sound))
        method = next(method for method in METHODS if method.name == name)
        messages = list(chance.choice(sound[name]))
        for _ in range(chance.choice((0, 1, 1, 2, 5))):
            n = chance.randrange(len(messages))
            messages[n] = _mutated(chance, method.input_type, messages[n])
    else:
        method = chance.choice(METHODS)
        messages = [_message(chance, method.input_type, DEPTH)]
    if method.client_streaming:
        messages *= chance.choice((0, 1, 1, 2, 20))
        messages += [_message(chance, method.input_type, DEPTH) for _ in range(chance.choice((0, 0, 1, 3)))]
    if chance.random() < 0.05:
        messages = [message[: chance.randrange(len(message) + 1)] for message in messages]
    timeout = chance.choice((*[20] * 20, 1, 0.05, 0.001, 1e-9))
    return HostileCall(
        method,
        tuple(messages),
        tuple(_metadata(chance)),
        timeout,
        cancel_after=chance.choice((0, 0.001, 0.02)) if chance.random() < 0.1 else None,
        hold=timeout <= 1 and chance.random() < 0.3,
    )


@cache
def sound_calls() -> dict[str, list[tuple[bytes, ...]]]:
    """Calls in which nothing is wrong, by method: each the messages it sends."""
    image = next(data for format, data in real_images() if format == "JPEG")
    space = {"modelFingerprint": "mine", "dimension": 4}
    where: dict[str, Any] = {"expression": 'attributes["n"] > {n}', "values": {"n": {"intValue": "1"}}}

    def vector(n: int) -> dict[str, Any]:
        return {"values": [1, n, 0, 2], "modelFingerprint": "mine"}

    def item(n: int) -> dict[str, Any]:
        attributes = {"n": {"intValue": str(n)}, "x": {"listValue": {"values": [{"stringValue": "a"}]}}}
        return {"id": "abc"[n % 3], "vector": vector(n), "attributes": attributes, "source": "/a"}

    params = {"topK": 5, "offset": 1, "filter": where, "readYourWrites": False, "output": {"includeVector": True}}
    sound: dict[str, list[list[dict[str, Any]]]] = {
        "CreateCollection": [[{"name": "fuzzed", "space": space}]],
        "DescribeCollection": [[{"name": "fuzzed"}]],
        "ListCollections": [[{}]],
        "DeleteCollection": [[{"name": "fuzzed", "version": 2}]],
        "CreateCollectionVersion": [[{"name": "fuzzed", "space": space, "index": {"type": "INDEX_TYPE_FLAT"}}]],
        "SwitchCollectionVersion": [[{"name": "fuzzed", "version": 2}]],
        "FillCollectionVersion": [
            [{"name": "fuzzed", "version": 2, "items": [{"item": item(1), "updateTime": "2026-01-01T00:00:00Z"}]}]
        ],
        "Upsert": [[{"collection": "fuzzed", "items": [item(n) for n in range(5)]}]],
        "UpsertStream": [[{"collection": "fuzzed", "sequence": str(n), "item": item(n)} for n in range(5)]],
        "Get": [[{"collection": "fuzzed", "ids": ["a", "b"], "output": {"attributes": ["n"]}}]],
        "Delete": [[{"collection": "fuzzed", "ids": {"ids": ["c"]}}], [{"collection": "fuzzed", "filter": where}]],
        "Count": [[{"collection": "fuzzed", "filter": where}]],
        "Scan": [[{"collection": "fuzzed", "filter": where}], [{"collection": "fuzzed"}]],
        "Search": [
            [{"collection": "fuzzed", "query": query, "params": params}]
            for query in ({"vector": vector(1)}, {"id": "a"})
        ],
        "SearchBatch": [
            [{"collection": "fuzzed", "queries": [{"vector": vector(1)}, {"id": "a"}], "params": {"exact": True}}]
        ],
        "GetModel": [[{}]],
        "Embed": [[{"image": _base64(image)}]],
        "EmbedBatch": [[{"images": [_base64(image)] * 3}]],
        "EmbedStream": [[{"correlationId": str(n), "image": _base64(image), "timeout": "5s"} for n in range(3)]],
    }
    types = {method.name: GetMessageClass(method.input_type) for method in METHODS}
    return {
        name: [tuple(ParseDict(each, types[name]()).SerializeToString() for each in call) for call in calls]
        for name, calls in sound.items()
    }


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


# ---- On the wire


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def _tagged(number: int, wire_type: int, payload: bytes) -> bytes:
    length = _varint(len(payload)) if wire_type == 2 else b""
    return _varint(number << 3 | wire_type) + length + payload


def _message(chance: random.Random, descriptor: Descriptor, depth: int) -> bytes:
    """A message of a type: some of its fields, of a oneof perhaps several, each with a value that may be hostile."""
    parts = []
    for field in descriptor.fields:
        if chance.random() < (0.75 if field.name in WORDS else 0.4):
            repeats = chance.choice((1, 1, 2, 5)) if field.is_repeated else 1
            parts += [_field(chance, field, depth) for _ in range(repeats)]
    if chance.random() < 0.03:
        parts.append(_unknown(chance))
    if chance.random() < 0.1:
        chance.shuffle(parts)
    return b"".join(parts)


def _field(chance: random.Random, field: FieldDescriptor, depth: int) -> bytes:
    if chance.random() < 0.01:  # not what its type says
        return _tagged(field.number, chance.choice((0, 1, 2, 5)), chance.randbytes(chance.choice((0, 1, 4, 8))))
    if field.type in _WIRE_TYPES:
        wire_type = _WIRE_TYPES[field.type]
        form = {FieldDescriptor.TYPE_DOUBLE: "<d", FieldDescriptor.TYPE_FLOAT: "<f"}.get(field.type, "")

        def number() -> bytes:
            value = chance.choice(FLOATS) if chance.random() < 0.2 else chance.uniform(-2, 2)
            if form == "<f" and abs(value) > 3.4e38:
                value = float("inf")
            return struct.pack(form, value) if form else chance.randbytes(8 if wire_type == 1 else 4)

        if field.is_repeated and chance.random() < 0.9:  # a whole vector, mostly of the right length
            count = chance.choice((4, 4, 4, 4, 4, 0, 1, 3, 5, 1000))
            return _tagged(field.number, 2, b"".join(number() for _ in range(count)))
        return _tagged(field.number, wire_type, number())
    if field.type in _VARINTS:
        hostile = chance.random() < 0.25
        if field.type == FieldDescriptor.TYPE_ENUM and not hostile:
            value = chance.choice(field.enum_type.values).number
        else:
            value = chance.choice(INTEGERS) if hostile else chance.randrange(5)
        return _tagged(field.number, 0, _varint(value))
    if field.message_type is not None:
        return _tagged(field.number, 2, _nested(chance, field, depth))
    data = _bytes(chance) if field.type == FieldDescriptor.TYPE_BYTES else _text(chance, field.name)
    return _tagged(field.number, 2, data)


def _nested(chance: random.Random, field: FieldDescriptor, depth: int) -> bytes:
    if depth:
        return _message(chance, field.message_type, depth - 1)
    inner = next((each for each in field.message_type.fields if each.message_type is not None), None)
    if inner is None or chance.random() < 0.9:
        return b""
    # As deep as it goes: a value in a list in a value, beyond what a parser follows.
    message = b""
    for _ in range(chance.choice((30, 99, 500))):
        message = _tagged(inner.number, 2, message)
    return message


def _text(chance: random.Random, name: str) -> bytes:
    kind = chance.random()
    if kind < 0.85 and name in WORDS:
        return chance.choice(WORDS[name]).encode()
    if kind < 0.97:
        return chance.choice(STRINGS).encode(errors="surrogatepass")
    return b"\xff\xc0\x80" + chance.randbytes(chance.randrange(20))  # no UTF-8


def _bytes(chance: random.Random) -> bytes:
    kind = chance.random()
    if kind < 0.3:
        return chance.choice(_small_images())
    if kind < 0.4:
        return hostile_image(chance.randrange(1000))
    return chance.randbytes(chance.choice((0, 1, 100, 5000)))


@cache
def _small_images() -> list[bytes]:
    return [encoded(Image.new("RGB", (8, 8), (n, 0, 0)), "PNG") for n in (0, 255)]


def _unknown(chance: random.Random) -> bytes:
    number = chance.choice((15, 99, 19_000, (1 << 29) - 1, 0))
    return _tagged(number, chance.choice((0, 1, 2, 3, 4, 5, 6, 7)), chance.randbytes(chance.choice((0, 1, 8, 100))))


def _mutated(chance: random.Random, descriptor: Descriptor, message: bytes) -> bytes:
    def more(message: bytes) -> bytes:
        """More fields behind what is there: the last one of a kind counts, a nested message is merged."""
        field = chance.choice(descriptor.fields) if descriptor.fields else None
        return message + (_field(chance, field, DEPTH) if field else _unknown(chance))

    def unknown(message: bytes) -> bytes:
        return message + _unknown(chance)

    def flipped(message: bytes) -> bytes:
        data = bytearray(message or b"\0")
        for _ in range(chance.choice((1, 1, 3))):
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        return bytes(data)

    def cut(message: bytes) -> bytes:
        return message[: chance.randrange(len(message) + 1)]

    def repeated(message: bytes) -> bytes:
        return message * chance.choice((2, 10, 50))

    def inserted(message: bytes) -> bytes:
        at = chance.randrange(len(message) + 1)
        return message[:at] + chance.randbytes(chance.choice((1, 2, 8))) + message[at:]

    ways: list[Callable[[bytes], bytes]] = [more, more, more, more, unknown, flipped, flipped, cut, repeated, inserted]
    return chance.choice(ways)(message)


def _metadata(chance: random.Random) -> Iterator[tuple[str, str | bytes]]:
    if chance.random() < 0.2:
        yield "lookalike-request-id", chance.choice(("", "x" * 128, "x" * 129, "x" * 4000, "a b c", "%00", "id"))
    if chance.random() < 0.1:
        yield "lookalike-timings", chance.choice(("1", "", "2", "yes" * 100))
    if chance.random() < 0.05:
        yield "lookalike-request-id-bin", chance.randbytes(chance.choice((0, 1, 200)))
    if chance.random() < 0.05:
        yield "traceparent", chance.choice(("00-" + "0" * 32 + "-" + "0" * 16 + "-01", "x" * 1000, "00-"))
    if chance.random() < 0.05:
        yield "x-any", "y" * chance.choice((10, 1000, 7000))
    if chance.random() < 0.03:
        yield "grpc-tags-bin", chance.randbytes(50)
    if chance.random() < 0.03:
        yield "authorization", chance.choice(("Bearer x", "Basic " + "A" * 3000, ""))
