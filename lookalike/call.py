"""One call to a service, as both kinds of client make it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """What to send, and what the reply means.

    Attributes:
        method: the RPC's name in the contract.
        request: the message to send.
        result: makes a reply, or each reply of a stream, into what the caller gets.
    """

    method: str
    request: Message
    result: Callable[[Any], T]
