"""For whom a call works: the name by which what is scarce is shared. It gives no rights.

The search service shares by identity and tenant, and tells the embedder for whom it asks, as metadata.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any, TypeAlias

from service_kit import identity

CALLER_KEY = "lookalike-caller"
MAX_NAME_CHARACTERS = 256

Metadata: TypeAlias = Iterable[tuple[str, str | bytes]]
# Names the caller of a call by its request, None for a stream of requests, and its metadata.
CallerOf: TypeAlias = Callable[[Any, Metadata], str]

_UNPRINTABLE = re.compile(r"[^ -~]")
_caller: ContextVar[str] = ContextVar("lookalike_caller", default="")


def caller() -> str:
    """Returns the name of the caller that this code works for; empty outside of calls.

    It goes with a call's task, as its request id does.
    """
    return _caller.get()


def begin(name: str) -> None:
    """Notes in the task of a call, or in one that works for it, for whom that is."""
    _caller.set(name)


def by_tenant(request: Any, metadata: Metadata) -> str:
    """Names a caller by its identity and the tenant of its request, if it has one."""
    return of_tenant(getattr(request, "tenant", ""))


def of_tenant(tenant: str) -> str:
    """Returns the name of the present identity's work for a tenant."""
    name = identity.current().name
    return _short(f"{name}/{tenant}") if tenant else name


def by_metadata(request: Any, metadata: Metadata) -> str:
    """Names a caller as it says in its metadata, or else by its identity."""
    for key, value in metadata:
        if key == CALLER_KEY and isinstance(value, str) and value:
            return _short(value)
    return identity.current().name


def outgoing_metadata() -> tuple[tuple[str, str], ...]:
    """Returns what tells another service for whom it is asked."""
    return ((CALLER_KEY, _short(caller())),) if caller() else ()


def _short(name: str) -> str:
    """A name that can be metadata and a part of a message."""
    return _UNPRINTABLE.sub("?", name[:MAX_NAME_CHARACTERS])
