"""Names: of collections for callers, of their versions in Milvus, and of rows."""

from __future__ import annotations

import re

from service_kit.errors import InvalidArgument

MAX_ID_BYTES = 512
MAX_TENANT_BYTES = 128
MAX_NAME_BYTES = 128
TENANT_SEPARATOR = "/"

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,127}")
_FINGERPRINT = re.compile(r"[A-Za-z0-9][A-Za-z0-9:._-]{0,127}")
_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
# Unambiguous, because neither a collection's name nor a fingerprint's prefix can hold "__".
_PHYSICAL_NAME = re.compile(r"(?P<name>[A-Za-z][A-Za-z0-9_]*)__[A-Za-z0-9]{1,8}__v(?P<number>[1-9][0-9]*)")


def check_collection_name(name: str) -> str:
    """Return `name`, or raise InvalidArgument when it is no collection name."""
    if not _NAME.fullmatch(name) or "__" in name:
        raise InvalidArgument(
            f"collection name {name[:160]!r} is not allowed: use 1 to 128 ASCII letters, digits and underscores, "
            "starting with a letter, without two underscores in a row"
        )
    return name


def check_fingerprint(fingerprint: str) -> str:
    """Return `fingerprint`, or raise InvalidArgument when it cannot name a vector space."""
    if not _FINGERPRINT.fullmatch(fingerprint):
        raise InvalidArgument(
            f"model fingerprint {fingerprint[:160]!r} is not allowed: use 1 to 128 ASCII letters, digits and any of "
            "':._-', starting with a letter or digit; the embedder reports it with every vector"
        )
    return fingerprint


def check_tenant(tenant: str, *, multi_tenant: bool) -> str:
    """Return `tenant`, or raise InvalidArgument: multi-tenant collections need one, and others take none."""
    if not multi_tenant:
        if tenant:
            raise InvalidArgument(
                f"the collection is not multi-tenant, but tenant {tenant[:160]!r} was given: leave it out"
            )
        return tenant
    if not _TENANT.fullmatch(tenant):
        raise InvalidArgument(
            f"tenant {tenant[:160]!r} is not allowed: the collection is multi-tenant, and a tenant is 1 to 128 ASCII "
            "letters, digits and any of '._-', starting with a letter or digit"
        )
    return tenant


def check_id(row_id: str) -> str:
    """Return `row_id`, or raise InvalidArgument when it is empty, too long, not UTF-8 or holds a NUL."""
    try:
        size = len(row_id.encode())
    except UnicodeEncodeError as error:
        raise InvalidArgument(f"id {row_id!r} holds a lone surrogate: ids must be valid UTF-8") from error
    if not 1 <= size <= MAX_ID_BYTES:
        raise InvalidArgument(f"id {row_id[:80]!r} has {size} bytes: ids have 1 to {MAX_ID_BYTES} bytes of UTF-8")
    if "\0" in row_id:
        raise InvalidArgument(f"id {row_id[:80]!r} holds a NUL character, which Milvus does not keep: leave it out")
    return row_id


def id_fault(row_id: str) -> InvalidArgument | None:
    """Return what is wrong with an id, or None."""
    try:
        check_id(row_id)
    except InvalidArgument as error:
        return error
    return None


def physical_name(name: str, fingerprint: str, number: int) -> str:
    """The Milvus collection of one version: `<name>__<first 8 letters and digits of the fingerprint>__v<number>`."""
    prefix = re.sub("[^A-Za-z0-9]", "", fingerprint)[:8]
    return f"{name}__{prefix}__v{number}"


def parse_physical_name(physical: str) -> tuple[str, int] | None:
    """The collection's name and the version's number, or None when the Milvus collection is not one of ours."""
    match = _PHYSICAL_NAME.fullmatch(physical)
    if match is None or "__" in match["name"]:
        return None
    return match["name"], int(match["number"])


def primary_key(row_id: str, tenant: str) -> str:
    """The primary key of a row: the caller's id, behind `<tenant>/` in a multi-tenant collection."""
    return f"{tenant}{TENANT_SEPARATOR}{row_id}" if tenant else row_id


def row_id_of(key: str, *, multi_tenant: bool) -> str:
    """The caller's id of a primary key. A tenant holds no '/', so the first one ends it."""
    return key.partition(TENANT_SEPARATOR)[2] if multi_tenant else key


def tenant_of(key: str, *, multi_tenant: bool) -> str:
    """The tenant of a primary key; empty in a collection without tenants."""
    return key.partition(TENANT_SEPARATOR)[0] if multi_tenant else ""
