"""Rows as arrays and tables."""

import sys
from datetime import UTC, datetime

import grpc
import numpy as np
import pandas as pd
import pytest

from lookalike import (
    Embedding,
    Hit,
    Hits,
    LookalikeError,
    Record,
    UpsertOutcome,
    UpsertResult,
    to_numpy,
    to_pandas,
)

TIME = datetime(2024, 2, 29, 12, 30, 0, 123000, tzinfo=UTC)
BEYOND_DOUBLES = 2**62 + 1


def record(name, attributes=None, vector=None, tenant=""):
    embedding = None if vector is None else Embedding(vector, "mine")
    return Record(name, attributes or {}, f"/{name}", "ab", TIME, embedding, tenant)


def test_figures_of_hits_are_arrays():
    hits = Hits([Hit(record("a"), 0.9, 0.4), Hit(record("b"), 0.5, 1.0)])
    assert hits.ids == ["a", "b"]
    np.testing.assert_array_equal(hits.similarities, np.array([0.9, 0.5], np.float32), strict=True)
    np.testing.assert_array_equal(hits.distances, np.array([0.4, 1.0], np.float32), strict=True)
    assert Hits().similarities.shape == (0,)


def test_vectors_are_one_matrix():
    rows = [record("a", vector=[1, 0]), Hit(record("b", vector=[0, 1]), 1.0, 0.0), Embedding([0.6, 0.8], "mine")]
    np.testing.assert_array_equal(to_numpy(iter(rows)), np.array([[1, 0], [0, 1], [0.6, 0.8]], np.float32), strict=True)
    assert to_numpy([]).shape == (0, 0)


def test_a_matrix_has_no_gaps_and_one_model():
    with pytest.raises(ValueError, match="row 'b' has no vector: fetch rows with include_vector=True"):
        to_numpy([record("a", vector=[1, 0]), record("b")])
    with pytest.raises(ValueError, match="vectors of 2 models cannot be compared: mine, yours"):
        to_numpy([Embedding([1, 0], "yours"), Embedding([1, 0], "mine")])
    with pytest.raises(LookalikeError, match="not an image"):
        to_numpy([Embedding([1, 0], "mine"), LookalikeError(grpc.StatusCode.INVALID_ARGUMENT, "not an image")])


def test_records_are_a_table_in_which_integers_stay_integers():
    rows = [
        record("a", {"n": BEYOND_DOUBLES, "x": 1.0, "ok": True, "mixed": 1, "tags": ["p", "q"]}, [1, 0]),
        record("b", {"x": 0.5, "mixed": "one", "label": "cat"}),
    ]
    table = to_pandas(iter(rows))
    assert list(table["id"]) == ["a", "b"]
    assert list(table["update_time"]) == [pd.Timestamp(TIME)] * 2
    assert isinstance(table["update_time"].dtype, pd.DatetimeTZDtype)
    assert table["attributes.n"].dtype == "Int64"
    assert table["attributes.n"][0] == BEYOND_DOUBLES
    assert pd.isna(table["attributes.n"][1])
    assert [str(table[f"attributes.{name}"].dtype) for name in ("x", "ok", "label")] == ["Float64", "boolean", "string"]
    assert list(table["attributes.mixed"]) == [1, "one"]
    assert table["attributes.tags"][0] == ["p", "q"]
    np.testing.assert_array_equal(table["vector"][0], np.array([1, 0], np.float32), strict=True)
    assert table["vector"][1] is None
    assert "tenant" not in table
    assert list(to_pandas([record("a", tenant="me")])["tenant"]) == ["me"]


def test_hits_are_a_table_and_without_any_it_has_its_columns():
    hits = Hits([Hit(record("a", {"year": 1991}), 0.9, 0.4, ("b", "c")), Hit(record("d"), 0.5, 1.0)])
    table = to_pandas(hits)
    assert list(table.columns[:4]) == ["id", "similarity", "distance", "folded_ids"]
    assert list(table["folded_ids"]) == [("b", "c"), ()]
    np.testing.assert_array_equal(table["similarity"].to_numpy(), hits.similarities, strict=True)
    pd.testing.assert_frame_equal(to_pandas(list(hits)), table)
    empty = to_pandas(Hits())
    assert len(empty) == 0
    assert list(empty.columns) == list(table.columns.drop("attributes.year"))
    assert isinstance(empty["update_time"].dtype, pd.DatetimeTZDtype)
    assert list(to_pandas([]).columns) == ["id"]


def test_results_of_upserts_are_a_table():
    error = LookalikeError(grpc.StatusCode.INVALID_ARGUMENT, "not an image")
    table = to_pandas([UpsertResult("a", UpsertOutcome.STORED), UpsertResult("b", UpsertOutcome.FAILED, error)])
    assert list(table["outcome"]) == ["STORED", "FAILED"]
    assert pd.isna(table["error"][0])
    assert table["error"][1] == "INVALID_ARGUMENT: not an image"


def test_without_pandas_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"pip install 'lookalike\[pandas\]'"):
        to_pandas([])
