"""What can go wrong in Milvus, as errors a caller can act on: one table for each family of failures.

Each kind of failure says what the caller gets, whether it is tried again (`search_service.retries`), and whether it
raises the suspicion that Milvus is down (`search_service.circuit`).

pymilvus raises three families: `MilvusException` with the code of the server, subclasses of it for its own checks, and
raw `grpc.RpcError`. Codes are those of the server (https://github.com/milvus-io/milvus, pkg/util/merr) except where
Milvus Lite has its own. Codes 1 and 65535 say nothing, so there the text decides.
"""

from __future__ import annotations

from dataclasses import dataclass

import grpc
from pymilvus import exceptions as pymilvus

from search_service.retries import Failure
from service_kit.errors import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    ServiceError,
    Unavailable,
    Unimplemented,
)

RETRY_AFTER_SECONDS = 1.0


class TooLarge(ResourceExhausted):
    """A message exceeds a limit of Milvus: the same in parts may pass."""


@dataclass(frozen=True, slots=True)
class _Kind:
    error: type[ServiceError]
    retriable: bool = False
    advice: str = ""
    unanswered: bool = False


_DOWN = _Kind(Unavailable, retriable=True, advice="try again later", unanswered=True)
# Milvus is there, but a part of it is not, or not yet.
_NOT_READY = _Kind(Unavailable, retriable=True, advice="try again later")
_SLOW = _Kind(
    DeadlineExceeded, retriable=True, advice="allow more time, or look at the load of Milvus", unanswered=True
)
_TOO_LARGE = _Kind(TooLarge, advice="send or ask for less at a time")
_BUSY = _Kind(ResourceExhausted, retriable=True, advice="slow down and try again")
_FULL = _Kind(ResourceExhausted, advice="Milvus is out of memory, disk or quota: free some, or raise the quota")
_INVALID = _Kind(InvalidArgument)
_MISSING = _Kind(NotFound)
_EXISTS = _Kind(AlreadyExists)
_DENIED = _Kind(FailedPrecondition, advice="check the Milvus token of this service and its rights")
_UNSUPPORTED = _Kind(Unimplemented, advice="use another option, or a newer Milvus server")
_CONFIGURATION = _Kind(FailedPrecondition, advice="check the Milvus address in the settings")
_UNTRUSTED = _Kind(FailedPrecondition, advice="check the TLS settings of this service and the certificate of Milvus")
_UNKNOWN = _Kind(Internal, advice="look into the log of Milvus")

_BY_CODE: dict[int, _Kind] = {
    2: _DOWN,  # also pymilvus' own, when it cannot connect
    3: _FULL,  # memory
    4: _BUSY,  # too many requests
    6: _INVALID,  # Milvus Lite: illegal argument, for filters, fields and schemas
    7: _FULL,  # disk
    8: _BUSY,  # rate limit
    9: _FULL,  # quota, writes denied
    10: _UNSUPPORTED,
    12: _BUSY,  # resources insufficient
    26: _UNSUPPORTED,  # Milvus Lite: the index needs a library that is not installed
    100: _MISSING,  # collection
    101: _NOT_READY,  # collection not loaded
    102: _FULL,  # number of collections
    103: _NOT_READY,  # not fully loaded
    105: _INVALID,  # schema
    106: _NOT_READY,  # recovering
    200: _MISSING,  # partition
    201: _NOT_READY,
    202: _NOT_READY,
    250: _FULL,
    401: _NOT_READY,  # replica
    502: _NOT_READY,
    503: _NOT_READY,  # channel
    601: _NOT_READY,  # segment not loaded
    700: _MISSING,  # index
    701: _UNSUPPORTED,
    800: _MISSING,  # database
    902: _NOT_READY,  # node offline
    903: _NOT_READY,
    905: _NOT_READY,
    1100: _INVALID,
    1101: _INVALID,
    1102: _INVALID,
    1400: _DENIED,
    1401: _DENIED,
    1600: _MISSING,  # alias
    1601: _EXISTS,
    1602: _EXISTS,
    1700: _INVALID,  # unknown field
    1800: _DENIED,
    1807: _BUSY,
    2001: _UNSUPPORTED,
    3000: _UNSUPPORTED,
    10000: _NOT_READY,  # cancelled inside the server
    10001: _SLOW,
}

# In order: the first text found in the message decides.
_BY_TEXT: tuple[tuple[str, _Kind], ...] = (
    ("cannot parse expression", _INVALID),
    ("failed to create query plan", _INVALID),
    ("maximum recursion depth", _Kind(InvalidArgument, advice="the filter nests too deep: simplify it")),
    ("too large to convert", _Kind(InvalidArgument, advice="use numbers of at most 64 bits in the filter")),
    ("already exist", _EXISTS),
    ("rate limit", _BUSY),
    ("no space left on device", _FULL),  # Milvus Lite
    ("empty grpc client", _NOT_READY),  # a part of the server does not reach another
    ("closed channel", _DOWN),
    ("should create connection", _DOWN),
    ("not ready", _NOT_READY),
    ("retry timeout", _SLOW),
    ("deadline", _SLOW),
    ("unauthenticated", _DENIED),
    ("auth check failure", _DENIED),
)

_BY_STATUS: dict[grpc.StatusCode, _Kind] = {
    grpc.StatusCode.UNAVAILABLE: _DOWN,
    grpc.StatusCode.CANCELLED: _DOWN,
    grpc.StatusCode.ABORTED: _NOT_READY,
    grpc.StatusCode.DEADLINE_EXCEEDED: _SLOW,
    grpc.StatusCode.RESOURCE_EXHAUSTED: _BUSY,
    grpc.StatusCode.INVALID_ARGUMENT: _INVALID,
    grpc.StatusCode.NOT_FOUND: _MISSING,
    grpc.StatusCode.ALREADY_EXISTS: _EXISTS,
    grpc.StatusCode.UNAUTHENTICATED: _DENIED,
    grpc.StatusCode.PERMISSION_DENIED: _DENIED,
    grpc.StatusCode.UNIMPLEMENTED: _UNSUPPORTED,
}

# What gRPC says when it is connected and TLS fails.
_NO_TRUST = ("certificate", "hostname verification", "unwrap failed", "wrong_version_number", "wrong version number")

_BY_CLASS: tuple[tuple[type[Exception], _Kind], ...] = (
    (pymilvus.ConnectionConfigException, _CONFIGURATION),
    (pymilvus.ParamError, _INVALID),
    (pymilvus.DataNotMatchException, _INVALID),
    (pymilvus.DataTypeNotMatchException, _INVALID),
    (pymilvus.DataTypeNotSupportException, _INVALID),
    (pymilvus.PrimaryKeyException, _INVALID),
)


# "Sent message larger than max (5 vs. 4)", "grpc: received message larger than max (5 vs. 4)"
_LARGER_THAN_ALLOWED = "message larger than max"


def translate(error: Exception, operation: str) -> Failure | None:
    """The failure that `error` stands for, or None when it comes from nothing that has to do with Milvus.

    Args:
        error: what a call of pymilvus raised.
        operation: what was being done, for the message: "search", "upsert".
    """
    if isinstance(error, pymilvus.MilvusException) and isinstance(error.__cause__, grpc.RpcError):
        error = error.__cause__  # when it cannot connect, pymilvus says so and no more
    if isinstance(error, pymilvus.MilvusException):
        kind, code, text = _kind_of(error), str(error.code), str(error.message)
    elif isinstance(error, grpc.RpcError):
        status = error.code()
        kind, code, text = _BY_STATUS.get(status, _UNKNOWN), str(status.name), str(error.details() or "")
        if kind is _BUSY and _LARGER_THAN_ALLOWED in text:
            kind = _TOO_LARGE
        elif any(part in text.lower() for part in _NO_TRUST):
            kind = _UNTRUSTED
    else:
        return None
    # What follows the first line draws an arrow under the expression, or is a stack trace of the server.
    message = f"Milvus refused or failed the {operation} ({code}): {text.strip().partition(chr(10))[0]}"
    told = _make(kind, f"{message}: {kind.advice}" if kind.advice else message)
    return Failure(told, kind.retriable, kind.unanswered)


def _kind_of(error: pymilvus.MilvusException) -> _Kind:
    for family, kind in _BY_CLASS:
        if isinstance(error, family):
            return kind
    # pymilvus puts a gRPC status where the code belongs when its own retries run out.
    if isinstance(error.code, grpc.StatusCode):
        return _BY_STATUS.get(error.code, _UNKNOWN)
    if error.code in _BY_CODE:
        return _BY_CODE[error.code]
    text = str(error.message).lower()
    return next((kind for part, kind in _BY_TEXT if part in text), _UNKNOWN)


def _make(kind: _Kind, message: str) -> ServiceError:
    if issubclass(kind.error, Unavailable | ResourceExhausted):
        return kind.error(message, retry_after=RETRY_AFTER_SECONDS if kind.retriable else None)
    return kind.error(message)
