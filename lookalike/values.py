"""Between JSON-like Python values and the Value of the contract, which keeps integers integers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import cast

import numpy as np

from lookalike.search.v1 import search_pb2 as pb
from lookalike.types import JsonValue

_INT64 = range(-(2**63), 2**63)


def to_value(value: JsonValue) -> pb.Value:
    """Returns the message for a value; numpy's numbers are taken as Python's.

    Raises:
        ValueError: an integer is beyond 64 bits, or a number is not finite.
        TypeError: there is something that JSON lacks.
    """
    match value:
        case None:
            return pb.Value(null_value=True)
        case bool() | np.bool_():
            return pb.Value(bool_value=bool(value))
        case str():
            return pb.Value(string_value=value)
        case Integral():
            if int(value) not in _INT64:
                raise ValueError(f"integer {value} does not fit in 64 bits")
            return pb.Value(int_value=int(value))
        case Real():
            if not math.isfinite(value):
                raise ValueError(f"number {value} is not finite")
            return pb.Value(double_value=float(value))
        case Mapping():
            return pb.Value(map_value=pb.MapValue(fields=to_fields(value)))
        case Sequence() if not isinstance(value, (bytes, bytearray)):
            return pb.Value(list_value=pb.ListValue(values=[to_value(element) for element in value]))
        case _:
            raise TypeError(f"a value of type {type(value).__name__} cannot be stored; use what JSON has")


def to_fields(values: Mapping[str, JsonValue]) -> dict[str, pb.Value]:
    """Returns the messages of the members of an object."""
    return {name: to_value(value) for name, value in values.items()}


def from_value(value: pb.Value) -> JsonValue:
    """Returns the Python value of a message; one of a kind that this package does not know reads as None."""
    match value.WhichOneof("kind"):
        case "list_value":
            return [from_value(element) for element in value.list_value.values]
        case "map_value":
            return from_fields(value.map_value.fields)
        case None | "null_value":
            return None
        case kind:
            return cast(JsonValue, getattr(value, kind))


def from_fields(fields: Mapping[str, pb.Value]) -> dict[str, JsonValue]:
    """Returns the members of an object."""
    return {name: from_value(value) for name, value in fields.items()}
