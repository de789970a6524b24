"""Filters: their values arrive unchanged, and nothing reaches out of them. Milvus Lite's own parser is the judge."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from milvus_lite.search.filter import parse_expr
from milvus_lite.search.filter.ast import And, CmpOp, FloatLit, InOp, IntLit, StringLit
from milvus_lite.search.filter.exceptions import FilterError

from search_service.filters import Filter, Value, literal, render
from service_kit.errors import InvalidArgument

utf8 = st.text(st.characters(exclude_categories=["Cs"]))


def refused(expression: str, values: dict[str, Value] | None = None, **limits: int) -> str:
    with pytest.raises(InvalidArgument) as caught:
        render(Filter(expression, values or {}), **limits)
    return caught.value.message


@given(utf8)
def test_any_string_reaches_milvus_as_it_is(text: str) -> None:
    parsed = parse_expr(render(Filter("id == {s}", {"s": text})))
    assert isinstance(parsed, CmpOp)
    assert isinstance(parsed.right, StringLit)
    assert parsed.right.value == text


@given(st.lists(utf8, min_size=1, max_size=5))
def test_any_list_of_strings_reaches_milvus_as_it_is(texts: list[str]) -> None:
    parsed = parse_expr(render(Filter("id in {l}", {"l": texts})))
    assert isinstance(parsed, InOp)
    assert [element.value for element in parsed.values.elements] == texts


@given(st.integers(0, 2**63 - 1))
def test_integers_reach_milvus_as_they_are(number: int) -> None:
    parsed = parse_expr(render(Filter("updated_ms == {n}", {"n": number})))
    assert isinstance(parsed, CmpOp)
    assert parsed.right == IntLit(number, pos=parsed.right.pos)


@given(st.floats(min_value=0, allow_nan=False, allow_infinity=False))
def test_floats_reach_milvus_as_they_are(number: float) -> None:
    parsed = parse_expr(render(Filter("updated_ms == {n}", {"n": number})))
    assert isinstance(parsed, CmpOp)
    assert parsed.right == FloatLit(number, pos=parsed.right.pos)


_PIECES = st.sampled_from(
    [
        "(",
        ")",
        "[",
        "]",
        '"',
        "'",
        "\\",
        "\n",
        " ",
        " or ",
        " and ",
        "not ",
        "id",
        "==",
        "{s}",
        "tenant",
        '"a"',
        "1",
        "--",
    ]
)


@settings(max_examples=500)
@given(st.lists(_PIECES | utf8, max_size=12).map("".join), utf8)
def test_whatever_a_caller_writes_stays_inside_its_parentheses(expression: str, text: str) -> None:
    values: dict[str, Value] = {"s": text} if "{s}" in expression else {}
    try:
        parsed = parse_expr(f'(tenant == "acme") and ({render(Filter(expression, values))})')
    except (InvalidArgument, FilterError):
        return
    assert isinstance(parsed, And)
    assert len(parsed.operands) == 2
    assert parsed.operands[0] == parse_expr('(tenant == "acme")')


@pytest.mark.parametrize(
    ("value", "rendered"),
    [(None, "null"), (True, "true"), (False, "false"), (-7, "-7"), (0.5, "0.5"), ([1, "a", True], '[1, "a", true]')],
)
def test_values_have_literals(value: Value, rendered: str) -> None:
    assert literal(value) == rendered


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), 2**63, -(2**63) - 1, "\ud800", [None], [[1]], {"a": 1}, b"a"]
)
def test_values_without_a_literal_are_refused_by_name(value: Value) -> None:
    assert "'v'" in refused("id == {v}", {"v": value})


def test_a_placeholder_may_be_a_key_and_may_occur_twice() -> None:
    condition = Filter('attributes[{k}] == {v} or attributes["b"] == {v}', {"k": 'a"', "v": 1})
    assert render(condition) == 'attributes["a\\""] == 1 or attributes["b"] == 1'


def test_braces_in_strings_are_text() -> None:
    assert render(Filter("id == '{s}'")) == "id == '{s}'"


def test_a_placeholder_does_not_grow_together_with_the_word_before_it() -> None:
    assert render(Filter("id in{l}", {"l": ["a"]})) == 'id in ["a"]'


@pytest.mark.parametrize(
    ("expression", "complaint"),
    [
        ("id == 'a') or (id != 'a'", "position 10"),
        ("(id == 'a'", "position 1 "),
        ("id in ['a')", "position 11"),
        ("id == 'a", "position 7"),
        ('id == "a\\"', "position 7"),
        ("id == 'a\nb'", "position 7"),
        ("id == é", "position 7"),
        ("id == {1}", "position 7"),
        ("id == }", "position 7"),
        ("updated_ms / 0 == 1", "divides"),
        ("updated_ms % 0 == 1", "divides"),
        ("id == 'a' # b", "position 11"),
        ("id == 'a'; drop", "position 10"),
        ("", "empty"),
        (" \n", "empty"),
    ],
)
def test_what_cannot_be_kept_apart_is_refused_with_its_place(expression: str, complaint: str) -> None:
    assert complaint in refused(expression)


def test_missing_and_unused_values_are_named() -> None:
    assert "{a}" in refused("id == {a}")
    assert ": a, b:" in refused("id == {c}", {"a": 1, "b": 2, "c": 3})


def test_length_and_depth_have_limits() -> None:
    assert "more than 10" in refused("id == 'aaaaaaa'", max_bytes=10)
    assert "more than 20" in refused("id == {s}", {"s": "é" * 10}, max_bytes=20)
    assert "deeper than 3" in refused("((((id == 'a'))))", max_depth=3)
    assert render(Filter("(((id == 'a')))"), max_depth=3)
