"""The errors a caller can act on, independent of any transport.

The cores of both services raise these; `service_kit.status` holds the one table that turns them into gRPC codes.
A message says what was wrong, with which value, and what to do about it.
"""

from __future__ import annotations

MAX_TEXT_BYTES = 1000


class ServiceError(Exception):
    """Base of all errors that reach a caller. Never raised itself."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        encoded = message.encode(errors="replace")
        # It comes back as metadata, twice, of which clients take 8 KiB.
        self.message = message if len(encoded) <= MAX_TEXT_BYTES else encoded[:MAX_TEXT_BYTES].decode(errors="ignore")


class InvalidArgument(ServiceError):
    """The request is wrong in itself; sending it again cannot help."""


class NotFound(ServiceError):
    """A named thing (collection, id) does not exist."""


class AlreadyExists(ServiceError):
    """A thing to be created exists already."""


class Unauthenticated(ServiceError):
    """The caller does not say who it is, or nobody knows it. Its message never shows a token."""


class PermissionDenied(ServiceError):
    """The caller is known, but may not do this."""


class FailedPrecondition(ServiceError):
    """The request is sound, but the system is not in a state for it: another vector space, for one."""


class ResourceExhausted(ServiceError):
    """The server is at a limit; the same request may pass after `retry_after` seconds."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineExceeded(ServiceError):
    """The caller's deadline passed before the work was done."""


class Unavailable(ServiceError):
    """A dependency or a worker is down; the same request may pass later.

    A write that failed so may or may not have happened: replay it, upserts are idempotent.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Broken(Unavailable):
    """The server cannot recover by itself, its only worker being lost for one: it ends, for another to be started."""


class Unimplemented(ServiceError):
    """The server, or the database behind it, does not have this feature."""


class Internal(ServiceError):
    """The server failed on this request alone; its log has the details."""
