"""Ids in the filters of tenants: compared with texts they mean the id, and anything else is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from milvus_lite.search.filter import parse_expr
from milvus_lite.search.filter.ast import InOp

from search_service.filter_ids import with_keys
from search_service.filters import Filter, render
from service_kit.errors import InvalidArgument


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ('id == "a"', 'id == "acme/a"'),
        ("id != 'a'", "id != 'acme/a'"),
        ('"a"==id', '"acme/a"==id'),
        ('"a" <= id', '"acme/a" <= id'),
        ('"a" < id < "b"', '"acme/a" < id < "acme/b"'),
        ('id in ["a", "b"]', 'id in ["acme/a", "acme/b"]'),
        ('id not in ["a"]', 'id not in ["acme/a"]'),
        ('id like "a%"', 'id like "acme/a%"'),
        ('not (id > "a") and source == "a"', 'not (id > "acme/a") and source == "a"'),
        ('id == "a" || id=="b"', 'id == "acme/a" || id=="acme/b"'),
        ('attributes["id"] == "a"', 'attributes["id"] == "a"'),
        ('source == "id == \\"a\\""', 'source == "id == \\"a\\""'),
    ],
)
def test_what_an_id_is_compared_with_becomes_a_key(expression: str, expected: str) -> None:
    assert with_keys(expression, "acme") == expected


@pytest.mark.parametrize(
    "expression",
    [
        "id == source",
        "source == id",
        'id + "b" == "ab"',
        '"ab" == id + "b"',
        'attributes["a"] == id',
        '(id) == "a"',
        'id == ("a")',
        "id in []",
        "id in [1]",
        'id in ["a", source]',
        "id like source",
        "id is null",
        "json_contains(id, 1)",
        'json_contains(attributes["a"], id)',
        'id =! "a"',
        'id == r"a"',
        "id",
        "id ==",
        "id not",
        'id in [["a"], "b"]',
    ],
)
def test_any_other_use_of_an_id_is_refused(expression: str) -> None:
    with pytest.raises(InvalidArgument, match="compare `id` with texts"):
        with_keys(expression, "acme")


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=4))
def test_any_ids_arrive_behind_their_tenant(ids: list[str]) -> None:
    parsed = parse_expr(with_keys(render(Filter("id in {ids}", {"ids": ids})), "acme"))
    assert isinstance(parsed, InOp)
    assert [element.value for element in parsed.values.elements] == [f"acme/{each}" for each in ids]
