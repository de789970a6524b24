"""Who makes a call, and what they may do."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from enum import IntEnum


class Role(IntEnum):
    """What a caller may do; each role includes those below it."""

    READ = 1  # search, get, count, scan, describe; embed
    WRITE = 2  # upsert and delete rows
    ADMIN = 3  # create, switch and delete collections and their versions


@dataclass(frozen=True, slots=True)
class Identity:
    """A caller.

    Attributes:
        name: what logs and limits call it; never its token.
        role: the most it may do.
        tenants: the tenants whose rows it may reach; None means all, and collections without tenants.
    """

    name: str
    role: Role
    tenants: frozenset[str] | None = None


# Who calls a server that asks nobody for a token.
ANYBODY = Identity("anybody", Role.ADMIN)
# Who has shown no token that the server knows; its calls are refused.
UNKNOWN = Identity("unknown", Role.READ, frozenset())
_current: ContextVar[Identity] = ContextVar("lookalike_identity", default=ANYBODY)


def current() -> Identity:
    """Returns who makes the call that this code works for."""
    return _current.get()


def begin(identity: Identity) -> None:
    """Notes in the task of a call who makes it."""
    _current.set(identity)
