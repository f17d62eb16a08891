"""What an error is to Kubernetes: one table from DyskError to gRPC's code, for the controller and for nodes.

The codes are those that the specification gives for such a case ("Error Scheme" of each call and in general). Which are
final matters to the side-cars: after UNAVAILABLE, ABORTED, RESOURCE_EXHAUSTED and DEADLINE_EXCEEDED the call may have
had its effect and is repeated; after any other it had none, and the volume is let go of.
"""

from __future__ import annotations

import errno

from grpc import StatusCode

from blobfuse_dysk.errors import (
    AttachedError,
    BusyError,
    CredentialError,
    DeviceError,
    DyskError,
    FailedCopyError,
    Kind,
    LaterError,
    LeasedError,
    LossError,
    NotFoundError,
    ServiceError,
    StoreError,
    TransportError,
    UsageError,
)
from blobfuse_dysk.kubernetes.refusals import ConflictError, UnsuitableError

__all__ = ["CallError", "code_of", "line_of"]

MOST_LINE = 1500  # characters: all of it goes into an event, and gRPC's own limit for what stands in a trailer is 8 KiB

# The first that fits: subclasses before their bases.
_BY_CLASS: tuple[tuple[type[DyskError], StatusCode], ...] = (
    (ConflictError, StatusCode.ALREADY_EXISTS),
    (LaterError, StatusCode.ABORTED),
    (LossError, StatusCode.DATA_LOSS),
    (UnsuitableError, StatusCode.FAILED_PRECONDITION),
    (UsageError, StatusCode.INVALID_ARGUMENT),
    (CredentialError, StatusCode.UNAUTHENTICATED),
    (NotFoundError, StatusCode.NOT_FOUND),
    (LeasedError, StatusCode.FAILED_PRECONDITION),
    (AttachedError, StatusCode.FAILED_PRECONDITION),
    (BusyError, StatusCode.FAILED_PRECONDITION),
    (DeviceError, StatusCode.INTERNAL),
    (FailedCopyError, StatusCode.INTERNAL),
    (TransportError, StatusCode.UNAVAILABLE),
)
_BY_KIND = {
    Kind.DENIED: StatusCode.PERMISSION_DENIED,
    Kind.GONE: StatusCode.NOT_FOUND,
    Kind.RANGE: StatusCode.OUT_OF_RANGE,
    Kind.LEASE: StatusCode.FAILED_PRECONDITION,
    Kind.CHANGED: StatusCode.ABORTED,
    Kind.FENCED: StatusCode.FAILED_PRECONDITION,
    Kind.REJECTED: StatusCode.INTERNAL,
}
# Source: https://learn.microsoft.com/rest/api/storageservices/blob-service-error-codes
_BY_SERVICE_CODE = {
    "AuthenticationFailed": StatusCode.UNAUTHENTICATED,
    "InvalidAuthenticationInfo": StatusCode.UNAUTHENTICATED,
    "NoAuthenticationInformation": StatusCode.UNAUTHENTICATED,
    "BlobAlreadyExists": StatusCode.ALREADY_EXISTS,
    "SnapshotCountExceeded": StatusCode.RESOURCE_EXHAUSTED,
    "SnapshotOperationRateExceeded": StatusCode.RESOURCE_EXHAUSTED,
    "AccountIsDisabled": StatusCode.FAILED_PRECONDITION,
}
_BY_STATUS = {
    400: StatusCode.INVALID_ARGUMENT,
    401: StatusCode.UNAUTHENTICATED,
    403: StatusCode.PERMISSION_DENIED,
    404: StatusCode.NOT_FOUND,
    409: StatusCode.FAILED_PRECONDITION,
    412: StatusCode.ABORTED,
    429: StatusCode.UNAVAILABLE,
}
_EXHAUSTED = (errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class CallError(DyskError):
    """A call that is refused with this code: what the specification asks for, and no other error stands for."""

    def __init__(self, code: StatusCode, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message, remedy=remedy)
        self.code = code


def code_of(error: BaseException) -> StatusCode:
    """The code that a call ends with for this error."""
    if isinstance(error, CallError):
        return error.code
    for kind, code in _BY_CLASS:
        if isinstance(error, kind):
            return code
    if isinstance(error, StoreError):
        return _BY_KIND.get(error.kind, StatusCode.UNAVAILABLE)
    if isinstance(error, ServiceError):
        if error.status >= 500:
            return StatusCode.UNAVAILABLE
        return _BY_SERVICE_CODE.get(error.code) or _BY_STATUS.get(error.status, StatusCode.INTERNAL)
    if isinstance(error, DyskError):  # how things are, in words, and what has to become of them first
        return StatusCode.FAILED_PRECONDITION
    if isinstance(error, OSError) and error.errno in _EXHAUSTED:
        return StatusCode.RESOURCE_EXHAUSTED
    return StatusCode.INTERNAL


def line_of(error: BaseException) -> str:
    """The one line that a user sees in an event."""
    if isinstance(error, LeasedError):  # whose remedy is for people at a terminal
        line = f"{error}: it is free once that has let go of it"
    elif isinstance(error, DyskError):
        line = error.line()
    elif isinstance(error, OSError):
        line = f"{error.filename or 'this machine'}: {error.strerror or type(error).__name__}"
    else:
        line = f"a fault of the driver ({type(error).__name__}): its log has the details, please report it"
    return line if len(line) <= MOST_LINE else f"{line[:MOST_LINE]}..."
