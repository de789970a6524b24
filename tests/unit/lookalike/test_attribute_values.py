"""Attributes survive the way to a message, over the wire, and back, with their types."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lookalike.search.v1 import search_pb2 as pb
from lookalike.values import from_fields, to_fields, to_value

_scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
_values = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=12
)


def _types(value):
    """Describes a value with the types of all its parts: 1 == 1.0 == True, but they are not the same attribute."""
    if isinstance(value, dict):
        return {name: _types(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_types(part) for part in value]
    return type(value)


@given(st.dictionaries(st.text(), _values, max_size=5))
def test_attributes_come_back_as_they_were(attributes):
    message = pb.Record(attributes=to_fields(attributes))
    received = pb.Record.FromString(message.SerializeToString())
    back = from_fields(received.attributes)
    assert back == attributes
    assert _types(back) == _types(attributes)


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (True, "bool_value", True),
        (np.bool_(True), "bool_value", True),
        (1, "int_value", 1),
        (np.int64(1), "int_value", 1),
        (1.0, "double_value", 1.0),
        (np.float32(0.5), "double_value", 0.5),
        ("1", "string_value", "1"),
        (None, "null_value", True),
    ],
)
def test_each_type_has_its_own_kind(value, kind, expected):
    message = to_value(value)
    assert message.WhichOneof("kind") == kind
    assert getattr(message, kind) == expected


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1])
def test_integers_beyond_64_bits_are_refused_with_their_value(value):
    with pytest.raises(ValueError, match=str(value)):
        to_value(value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused(value):
    with pytest.raises(ValueError, match="not finite"):
        to_value({"deep": [value]})


@pytest.mark.parametrize("value", [b"bytes", {1, 2}, object()])
def test_what_json_lacks_is_refused_with_its_type(value):
    with pytest.raises(TypeError, match=type(value).__name__):
        to_value(value)
