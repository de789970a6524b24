"""Bearer tokens: which there are, hashed, and whose calls they come with.

The file is TOML:

    [[token]]
    name = "uploader"
    sha256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    role = "write"
    tenants = ["acme"]
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
import tomllib
from collections.abc import Iterable
from typing import Any, Self

from service_kit.errors import FailedPrecondition, Unauthenticated
from service_kit.identity import Identity, Role

_KEY = "authorization"
_PREFIX = "lookalike_"  # by which a scanner finds tokens where they do not belong
_BYTES = 32
_SELECTOR = 8  # bytes of a hash by which its entry is found
_FIELDS = {"name", "sha256", "role", "tenants"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # safe in logs and metrics
_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")  # as the search service has it
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MISSING = Unauthenticated("this server takes calls with a token only: send metadata 'authorization: Bearer TOKEN'")
_FORM = Unauthenticated("the metadata 'authorization' has another form than 'Bearer TOKEN'")
_UNKNOWN = Unauthenticated("this server does not know the token: it is wrong, or has been withdrawn")


class Tokens:
    """The tokens that a server knows, as SHA-256: who reads the file cannot call."""

    def __init__(self, entries: Iterable[tuple[bytes, Identity]]) -> None:
        """
        Args:
            entries: for each token its hash and whose it is.
        """
        # Found by a part of the hash, and then compared as a whole in constant time: how long a call takes says nothing
        # about a token, since nobody can choose tokens by their hashes.
        self._entries = {digest[:_SELECTOR]: (digest, identity) for digest, identity in entries}

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """Reads the text of a file of tokens.

        Raises:
            FailedPrecondition: it is not one; says which entry is wrong, but shows no hash.
        """
        try:
            document = tomllib.loads(content.decode())
        except ValueError as error:
            raise FailedPrecondition(f"it is no TOML: {error}") from None
        items = document.get("token")
        if document.keys() != {"token"} or not isinstance(items, list) or not items:
            raise FailedPrecondition("it has to consist of [[token]] entries, at least one")
        return cls([_entry(number, item) for number, item in enumerate(items, 1)])

    def identify(self, metadata: Iterable[tuple[str, str | bytes]]) -> Identity | Unauthenticated:
        """Returns who a call's metadata says it comes from, or what is wrong with that."""
        value = next((value for key, value in metadata if key == _KEY), None)
        if value is None:
            return _MISSING
        scheme, _, token = str(value).partition(" ")
        if scheme.lower() != "bearer":
            return _FORM
        digest = hashlib.sha256(token.strip().encode()).digest()
        known, identity = self._entries.get(digest[:_SELECTOR], (b"", None))
        return identity if identity is not None and hmac.compare_digest(known, digest) else _UNKNOWN


def new_token() -> str:
    """Returns a token that nobody can guess."""
    return _PREFIX + secrets.token_urlsafe(_BYTES)


def entry(token: str, name: str, role: Role, tenants: Iterable[str] = ()) -> str:
    """Returns the entry of a token for the file.

    Raises:
        FailedPrecondition: it would not be accepted there.
    """
    digest = hashlib.sha256(token.encode()).hexdigest()
    fields: dict[str, object] = {"name": name, "sha256": digest, "role": role.name.lower()}
    if named := list(tenants):
        fields["tenants"] = named
    # Strings and lists of them are written in TOML as in JSON.
    text = "[[token]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in fields.items())
    Tokens.parse(text.encode())
    return text


def _entry(number: int, item: Any) -> tuple[bytes, Identity]:
    fields = item if isinstance(item, dict) else {}
    name, digest, role, tenants = (fields.get(field) for field in ("name", "sha256", "role", "tenants"))

    def wrong(what: str) -> FailedPrecondition:
        return FailedPrecondition(f"entry {number} {what}")

    if unknown := fields.keys() - _FIELDS:
        raise wrong(f"has the unknown fields {', '.join(sorted(unknown))}")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise wrong("has no name of 1 to 64 letters, digits and any of '._-', starting with a letter or digit")
    if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
        raise wrong(f"({name}) has no sha256 of 64 hexadecimal digits in lower case; `lookalike token` makes entries")
    known = {each.name.lower(): each for each in Role}
    if not isinstance(role, str) or role not in known:
        raise wrong(f"({name}) has the role {role!r}, which is none of {', '.join(known)}")
    if tenants is None:
        return bytes.fromhex(digest), Identity(name, known[role])
    if not isinstance(tenants, list) or not tenants or not all(_is_tenant(each) for each in tenants):
        raise wrong(f"({name}) has tenants that are no list of names of tenants; leave them out for all tenants")
    if known[role] is Role.ADMIN:
        raise wrong(f"({name}) is an admin of some tenants, but what admins do concerns all: take the role write")
    return bytes.fromhex(digest), Identity(name, known[role], frozenset(tenants))


def _is_tenant(value: object) -> bool:
    return isinstance(value, str) and _TENANT.fullmatch(value) is not None
