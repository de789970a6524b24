"""What belongs to one call: its request id, and the metadata that goes back with its end."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from typing import Any

import grpc

from lookalike.errors import REQUEST_ID_KEY
from service_kit import tracing

# Printable ASCII: more could neither be metadata nor a part of a log line.
_ALLOWED = re.compile(r"[ -~]{1,128}")
_request_id: ContextVar[str] = ContextVar("lookalike_request_id", default="")
_notes: ContextVar[dict[str, Any] | None] = ContextVar("lookalike_notes", default=None)


def request_id() -> str:
    """Returns the id of the call that this code works for; empty outside of calls.

    It goes with the task of the call, the tasks that it starts and `asyncio.to_thread`, but not with `run_in_executor`.
    """
    return _request_id.get()


def begin(metadata: Iterable[tuple[str, str | bytes]]) -> None:
    """Gives the task of a call the id that its metadata brings, else a new one.

    An id that is not 1 to 128 printable ASCII characters is not taken.
    """
    for key, value in metadata:
        if key == REQUEST_ID_KEY and isinstance(value, str) and _ALLOWED.fullmatch(value):
            break
    else:
        value = f"{random.getrandbits(64):016x}"  # it names a call, and guards nothing
    _request_id.set(value)
    _notes.set({})


def note(name: str, value: float | str) -> None:
    """Notes something about the call, to be logged should it turn out slow; does nothing outside of calls."""
    if (notes := _notes.get()) is not None:
        notes[name] = value


def notes() -> Mapping[str, Any]:
    """Returns what has been noted about the call, also by the tasks that it started."""
    return _notes.get() or {}


def add_trailing_metadata(context: grpc.aio.ServicerContext[Any, Any], *pairs: tuple[str, str | bytes]) -> None:
    """Adds to the metadata that goes back with the end of a call, whether that is a reply or an error.

    The context's own `set_trailing_metadata`, and an `abort` with metadata, replace what was set before: the request id
    and whatever else. So nothing but this sets any.
    """
    context.set_trailing_metadata((*context.trailing_metadata(), *pairs))


def return_request_id(context: grpc.aio.ServicerContext[Any, Any]) -> None:
    """Has the request id go back with the end of the call."""
    add_trailing_metadata(context, (REQUEST_ID_KEY, _request_id.get()))


def outgoing_metadata() -> tuple[tuple[str, str], ...]:
    """Returns what a call to another service, made within this one, brings along: the request id and the trace."""
    current = _request_id.get()
    return (((REQUEST_ID_KEY, current),) if current else ()) + tracing.outgoing_metadata()
