"""Every error this package raises on purpose.

One small hierarchy. Each error carries two things a person needs: what was tried and failed (`str(error)`),
and what to do about it (`error.remedy`). Front ends print `error.line()` and exit with `error.exit_code`.

What a program has to know of it is in fields, which the constructor takes by keyword: nobody reads a message again.
`type(error)(str(error), **error.fields())` is the same error once more, in another process, too: all of it is JSON.

Only the kernel gets less: an errno, which device/worker/blockfile.py makes of whatever failed.

Messages are printable whatever they quote (printable.py), and in one line. They never hold a secret: no account key,
no SAS signature, no bearer token.
"""

from __future__ import annotations

import enum

from blobfuse_dysk.printable import printable

TYPE_CHECKING = False  # importing typing would cost the holder half a MiB
if TYPE_CHECKING:
    from typing import Any, ClassVar

__all__ = [
    "AttachedError",
    "BusyError",
    "CredentialError",
    "DeviceError",
    "DyskError",
    "FailedCopyError",
    "GatewayError",
    "HasSnapshotsError",
    "Kind",
    "LaterError",
    "LeasedError",
    "LossError",
    "NotFoundError",
    "ServiceError",
    "StoreError",
    "TransportError",
    "UsageError",
]


MOST_NAME = 256  # characters of a name that somebody else wrote


class DyskError(Exception):
    """The base of all: a message (what was tried, what happened) and a remedy (what to do).

    FIELDS: the names of what the constructor takes besides the message, all by keyword, which are attributes as well.
    """

    exit_code: ClassVar[int] = 1
    FIELDS: ClassVar[tuple[str, ...]] = ("remedy",)

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(printable(message))
        self.remedy = remedy and printable(remedy)

    def fields(self) -> dict[str, Any]:
        """What it carries besides its message, as JSON types, to make it again from."""
        values = {name: getattr(self, name) for name in self.FIELDS}
        return {name: value.value if isinstance(value, enum.Enum) else value for name, value in values.items()}

    def line(self) -> str:
        """The one line a user sees: what, why, what to do."""
        return f"{self}: {self.remedy}" if self.remedy else str(self)


class UsageError(DyskError):
    """What was typed (an option, an address, a size, a configuration file) cannot be taken."""

    exit_code = 2


class HasSnapshotsError(UsageError):
    """A disk that has snapshots was to be deleted without them, which the service does not do."""


class CredentialError(DyskError):
    """No usable credential: none found, malformed, refused file mode, token not to be had."""


class NotFoundError(DyskError):
    """The account, container, blob or attachment that was named does not exist.

    missing: which of them the service does not have: account, container, disk, snapshot; None for anything else.
    """

    FIELDS = ("remedy", "missing")

    def __init__(self, message: str, *, missing: str | None = None, remedy: str | None = None) -> None:
        super().__init__(message, remedy=remedy)
        self.missing = missing


class LeasedError(DyskError):
    """Another holder has the blob's lease.

    holder: the name of its node, and since when it has it (ISO 8601, UTC), as far as the blob's metadata says so.
    endless: whether the lease is an infinite one, as far as that is known.
    """

    FIELDS = ("remedy", "holder", "since", "endless")

    def __init__(
        self,
        message: str,
        *,
        holder: str | None = None,
        since: str | None = None,
        endless: bool = False,
        remedy: str | None = None,
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.holder = holder and printable(holder, MOST_NAME)
        self.since = since and printable(since, MOST_NAME)
        self.endless = endless


class AttachedError(DyskError):
    """The disk, or the name, is in use by an attachment on this node."""


class BusyError(DyskError):
    """The device is mounted or open, so it cannot be detached."""


class LaterError(DyskError):
    """Something else is under way, or came in between: the same once more may succeed."""


class LossError(DyskError):
    """An attachment has ended, and what it had taken is not all in the service. It says so once, and then is gone."""


class FailedCopyError(DyskError):
    """The service gave the copy up, or somebody made it do so: the clone will never be complete."""


class DeviceError(DyskError):
    """This machine cannot do it: no /dev/fuse, no loop device, a missing tool, a refused system call."""


class ServiceError(DyskError):
    """The service answered, with a status that refuses the request.

    status: the HTTP status. code: the `x-ms-error-code` (empty if the answer had none).
    retry_after_s: seconds from Retry-After, or None.
    Source: https://learn.microsoft.com/rest/api/storageservices/status-and-error-codes2
    """

    FIELDS = ("remedy", "status", "code", "retry_after_s")

    def __init__(
        self,
        message: str,
        *,
        status: int,
        code: str = "",
        retry_after_s: float | None = None,
        remedy: str | None = None,
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.status = status
        self.code = code
        self.retry_after_s = retry_after_s


class TransportError(DyskError):
    """No whole answer came: name not resolved, refused, reset, timed out, or the answer was cut or damaged.

    sent: True when any byte of the request may have left this machine, so its outcome is unknown.
    stale: True when the connection had been idle and broke before any byte of the answer, the usual end of a
    keep-alive connection; a retry may start at once.
    """

    FIELDS: ClassVar[tuple[str, ...]] = ("remedy", "sent", "stale")

    def __init__(self, message: str, *, sent: bool, stale: bool = False, remedy: str | None = None) -> None:
        super().__init__(message, remedy=remedy)
        self.sent = sent
        self.stale = stale


class GatewayError(TransportError):
    """Something on the way (a proxy, a gateway) answered in the service's place; what became of the request is unknown.

    status: the HTTP status that it gave. retry_after_s: seconds from Retry-After, or None.
    """

    FIELDS = ("remedy", "sent", "stale", "status", "retry_after_s")

    def __init__(
        self,
        message: str,
        *,
        status: int,
        retry_after_s: float | None = None,
        sent: bool = True,
        stale: bool = False,
        remedy: str | None = None,
    ) -> None:
        super().__init__(message, sent=sent, stale=stale, remedy=remedy)
        self.status = status
        self.retry_after_s = retry_after_s


class Kind(enum.Enum):
    """Why a block operation failed; `RETRYABLE` says which of these may pass by themselves."""

    THROTTLED = "throttled"  # 503, 500 OperationTimedOut: slow down, then again
    UNREACHABLE = "unreachable"  # DNS, connect, reset, timeout
    CORRUPT = "corrupt"  # short or damaged body: ask again
    EPOCH = "epoch"  # 412 SequenceNumberConditionNotMet: our own raise overtook the request
    DENIED = "denied"  # 401, 403: a rotated credential may cure it
    INTERNAL = "internal"  # other 5xx
    LEASE = "lease"  # the service does not take our lease id: Fence finds out why
    CHANGED = "changed"  # 412 ConditionNotMet: the blob is not as it was when the request was thought of
    GONE = "gone"  # 404: blob, container or account is not there any more
    RANGE = "range"  # beyond the blob's end: it was made smaller
    REJECTED = "rejected"  # any other 4xx: a bug here or a change there
    FENCED = "fenced"  # another node holds the disk: for good
    TIMEOUT = "timeout"  # io-timeout is used up

    @property
    def retryable(self) -> bool:
        return self in RETRYABLE


RETRYABLE = frozenset(
    {Kind.THROTTLED, Kind.UNREACHABLE, Kind.CORRUPT, Kind.EPOCH, Kind.DENIED, Kind.INTERNAL, Kind.LEASE}
)


class StoreError(DyskError):
    """A block operation failed. The only exception (but for trio.Cancelled) that a Store may raise.

    kind: why. unknown: the write may or may not have been applied, or may still be (an ambiguous write);
    False means that it was not applied and never will be. retry_after_s: the service's wish, in seconds.
    immediate: a retry needs no pause (a stale connection, a raised epoch). epoch: the epoch in which the request was
    sent, or None when nobody knows.
    """

    FIELDS = ("remedy", "kind", "unknown", "retry_after_s", "immediate", "epoch")

    def __init__(
        self,
        message: str,
        kind: Kind | str,
        *,
        unknown: bool = False,
        retry_after_s: float | None = None,
        immediate: bool = False,
        epoch: int | None = None,
        remedy: str | None = None,
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.kind = Kind(kind)  # by its value where it comes from another process
        self.unknown = unknown
        self.retry_after_s = retry_after_s
        self.immediate = immediate
        self.epoch = epoch

    def afresh(self) -> StoreError:
        """A copy for another call: one exception object raised by many tasks would collect all their tracebacks."""
        return StoreError(str(self), self.kind, remedy=self.remedy)
