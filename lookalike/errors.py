"""The one error that this package raises for calls that a service refused or could not serve."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import cast

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

# The metadata that names a call in the services' logs and traces; a caller may send it, every call's end returns it.
REQUEST_ID_KEY = "lookalike-request-id"
# Who may not create collections is told so whether there is one or not.
MAYBE_THERE = (grpc.StatusCode.ALREADY_EXISTS, grpc.StatusCode.PERMISSION_DENIED)
_CODES = {code.value[0]: code for code in grpc.StatusCode}


class LookalikeError(Exception):
    """A call, or one item of a call, failed.

    Calls raise it; results of single items (of `Client.upsert`, say) carry it as a value.

    Attributes:
        code: what kind of failure it was; the services' contract says which codes mean what.
        message: what was wrong, for people.
        retry_after: seconds after which the same request may pass, where the service said so.
        request_id: what names the call in the services' logs and traces, where the service answered; quote it when
            you report a failure.

    >>> try:
    ...     client.count("nowhere")
    ... except LookalikeError as error:
    ...     if error.code is not grpc.StatusCode.NOT_FOUND:
    ...         raise
    ...     print("there is no such collection")
    there is no such collection
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        retry_after: float | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(code, message, retry_after, request_id)
        self.code = code
        self.message = message
        self.retry_after = retry_after
        self.request_id = request_id

    def __str__(self) -> str:
        request = f" (request {self.request_id})" if self.request_id else ""
        return f"{self.code.name}: {self.message}{request}"


@contextmanager
def translated() -> Iterator[None]:
    """Turns the errors of gRPC, synchronous and asyncio, into `LookalikeError`."""
    try:
        yield
    except grpc.RpcError as error:
        raise from_call(error) from error


def from_call(error: grpc.RpcError) -> LookalikeError:
    """Returns what a failed call means."""
    call = cast(grpc.Call, error)  # the errors that grpc raises for calls are those calls as well
    status = rpc_status.from_call(call)
    request_id = _request_id(call)
    if status is not None:
        return from_status(status, request_id)
    return LookalikeError(call.code(), call.details() or "no reason given", request_id=request_id)


def from_status(status: status_pb2.Status, request_id: str | None = None) -> LookalikeError:
    """Returns what the status of a call or an item means."""
    return LookalikeError(
        _CODES.get(status.code, grpc.StatusCode.UNKNOWN),
        status.message or "no reason given",
        _retry_after(status),
        request_id,
    )


def _request_id(call: grpc.Call) -> str | None:
    for key, value in call.trailing_metadata() or ():
        if key == REQUEST_ID_KEY:
            return str(value)
    return None


def _retry_after(status: status_pb2.Status) -> float | None:
    info = error_details_pb2.RetryInfo()
    for detail in status.details:
        if detail.Unpack(info):
            delay: timedelta = info.retry_delay.ToTimedelta()
            return delay.total_seconds()
    return None
