"""The one table between service errors and gRPC status codes, in both directions."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from lookalike import errors as client
from service_kit import errors
from service_kit.calls import add_trailing_metadata

CODES: dict[type[errors.ServiceError], grpc.StatusCode] = {
    errors.InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    errors.FailedPrecondition: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ResourceExhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.Unimplemented: grpc.StatusCode.UNIMPLEMENTED,
    errors.Internal: grpc.StatusCode.INTERNAL,
}
# Another service's INTERNAL is not this one's: to a caller of this one it is a dependency that failed.
_ERRORS = {code: error for error, code in CODES.items() if error is not errors.Internal}
# Nor is what another service does not let this one do: its caller has done nothing wrong, the set-up is.
_ERRORS |= dict.fromkeys(
    (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED), errors.FailedPrecondition
)
_DETAILS_KEY = "grpc-status-details-bin"


def code_of(error: errors.ServiceError) -> grpc.StatusCode:
    """Returns the gRPC code of an error; a subclass has that of its base."""
    return next(CODES[kind] for kind in type(error).__mro__ if kind in CODES)


def code_name(code: grpc.StatusCode) -> str:
    """Returns a code as gRPC's metrics usually spell it: OK, InvalidArgument."""
    return "OK" if code is grpc.StatusCode.OK else code.name.title().replace("_", "")


def to_status(error: errors.ServiceError) -> status_pb2.Status:
    """Returns an error as google.rpc.Status, with RetryInfo where the error says when to try again."""
    status = status_pb2.Status(code=code_of(error).value[0], message=error.message)
    retry_after = getattr(error, "retry_after", None)
    if retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(round(retry_after * 1e9))
        detail = any_pb2.Any()
        detail.Pack(error_details_pb2.RetryInfo(retry_delay=delay))
        status.details.append(detail)
    return status


def from_status(status: status_pb2.Status, subject: str = "") -> errors.ServiceError:
    """Returns the error that another service's status stands for; its message says so of the `subject`, if given.

    A code that no service error has (INTERNAL, UNKNOWN and so on) is a fault of that service: Unavailable.
    """
    return _from_client(client.from_status(status), subject)


def from_rpc_error(error: grpc.RpcError, subject: str) -> errors.ServiceError:
    """Returns the error that a failed call to another service stands for."""
    return _from_client(client.from_call(error), subject)


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: errors.ServiceError) -> None:
    """Ends a call with the status of an error. Never returns."""
    add_trailing_metadata(context, (_DETAILS_KEY, to_status(error).SerializeToString()))
    try:
        await context.abort(code_of(error), error.message)
    except grpc.aio.InternalError as failure:
        # The call has just ended by itself, as by its deadline. gRPC would log that as a fault of ours.
        raise asyncio.CancelledError from failure


def _from_client(error: client.LookalikeError, subject: str) -> errors.ServiceError:
    message = f"{subject}: {error.message}" if subject else error.message
    kind = _ERRORS.get(error.code, errors.Unavailable)
    if kind in (errors.ResourceExhausted, errors.Unavailable):
        return kind(message, error.retry_after)
    return kind(message)
