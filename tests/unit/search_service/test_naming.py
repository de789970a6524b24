"""Names of collections, versions, tenants and rows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_service.naming import (
    check_collection_name,
    check_fingerprint,
    check_id,
    check_tenant,
    parse_physical_name,
    physical_name,
    primary_key,
    row_id_of,
)
from service_kit.errors import InvalidArgument


@pytest.mark.parametrize("name", ["a", "Photos_2024", "x" * 128, "trailing_"])
def test_collection_names_of_letters_digits_and_single_underscores_are_allowed(name: str) -> None:
    assert check_collection_name(name) == name


@pytest.mark.parametrize("name", ["", "1a", "_a", "a-b", "a b", "a__b", "x" * 129, "é", "a\n", "a/b"])
def test_other_collection_names_are_refused_with_the_rule(name: str) -> None:
    with pytest.raises(InvalidArgument, match="letters, digits and underscores"):
        check_collection_name(name)


@pytest.mark.parametrize("name", ["photos", "a_", "a_b_", "v1"])
@pytest.mark.parametrize("fingerprint", ["0123456789abcdef", "sha256:ff", "a", "x-_-1"])
def test_a_physical_name_tells_its_collection_and_version(name: str, fingerprint: str) -> None:
    physical = physical_name(name, check_fingerprint(fingerprint), 12)
    assert physical.replace("_", "").isalnum()
    assert parse_physical_name(physical) == (name, 12)


@pytest.mark.parametrize("physical", ["photos", "a__b", "a__b__1", "a__b__v0", "a__b__c__v1", "__b__v1", "a__b-c__v1"])
def test_collections_of_others_are_not_taken_for_ours(physical: str) -> None:
    assert parse_physical_name(physical) is None


@pytest.mark.parametrize("fingerprint", ["", "a b", "é", "x" * 129, ":a"])
def test_fingerprints_that_cannot_be_kept_are_refused(fingerprint: str) -> None:
    with pytest.raises(InvalidArgument, match="fingerprint"):
        check_fingerprint(fingerprint)


@pytest.mark.parametrize("tenant", ["", "a/b", "a b", "x" * 129, 'a"b'])
def test_a_multi_tenant_collection_needs_a_plain_tenant(tenant: str) -> None:
    with pytest.raises(InvalidArgument, match="tenant"):
        check_tenant(tenant, multi_tenant=True)


def test_a_tenant_is_refused_where_the_collection_has_none() -> None:
    with pytest.raises(InvalidArgument, match="not multi-tenant"):
        check_tenant("acme", multi_tenant=False)


@pytest.mark.parametrize("row_id", ["a", "é" * 256, "x" * 512, "a/b\\c\"'\n\t😀"])
def test_ids_of_up_to_512_bytes_are_allowed(row_id: str) -> None:
    assert check_id(row_id) == row_id


@pytest.mark.parametrize("row_id", ["", "x" * 513, "é" * 257, "a\0b", "\ud800"])
def test_empty_long_and_unstorable_ids_are_refused(row_id: str) -> None:
    with pytest.raises(InvalidArgument, match="id"):
        check_id(row_id)


@given(st.text(min_size=1), st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,9}", fullmatch=True))
def test_an_id_survives_the_primary_key(row_id: str, tenant: str) -> None:
    assert row_id_of(primary_key(row_id, tenant), multi_tenant=True) == row_id
    assert row_id_of(primary_key(row_id, ""), multi_tenant=False) == row_id
