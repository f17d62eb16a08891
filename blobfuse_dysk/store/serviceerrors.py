"""ServiceError and TransportError become StoreError: here and nowhere else.

The question that matters for safety is `unknown`: may the request have been applied, or may it still be? The answer is
no only when the service said no. That is any 4xx of the service but 408, and a 503 that carries the code ServerBusy:
the service turned the request away at its door. A 500, a 503 or 504 without a code, and a broken connection say nothing
about the request, so they are ambiguous. So is whatever a gateway says in the service's place (GatewayError), be it
that the blob does not exist, that the request is bad, or that all went well: it may have handed the request on before.
Source: https://learn.microsoft.com/rest/api/storageservices/blob-service-error-codes
"""

from __future__ import annotations

from blobfuse_dysk.errors import GatewayError, Kind, ServiceError, StoreError, TransportError

__all__ = ["is_service_timeout", "to_store_error"]

_SERVICE_TIMEOUT = "OperationTimedOut"
_TURNED_AWAY = "ServerBusy"
_EPOCH_CODE = "SequenceNumberConditionNotMet"
_CHANGED_CODE = "ConditionNotMet"  # If-Match or If-Unmodified-Since
_DAMAGED_IN = frozenset({"Md5Mismatch", "Crc64Mismatch", "IncompleteBody"})  # our bytes did not arrive as sent
_GONE_STATUS = frozenset({404, 410})
_DENIED_STATUS = frozenset({401, 403})
_BUSY_STATUS = frozenset({429, 503})
_TIMEOUT_STATUS = frozenset({408, 504})


def to_store_error(
    error: ServiceError | TransportError,
    what: str,
    *,
    modifies: bool,
    epoch: int | None = None,
    conditional: bool = False,
) -> StoreError:
    """Say what a failed request means for the caller. what: the operation, for the message ('writing 4096 bytes at 0').

    modifies: whether the request changes anything; only then can the outcome be unknown. epoch: the one it was sent in.
    conditional: whether it has a condition on the blob's ETag or time.
    """
    text = f"{what}: {error}"
    if isinstance(error, TransportError):
        gateway = error if isinstance(error, GatewayError) else None
        return StoreError(
            text,
            Kind.UNREACHABLE if gateway is None else _gateway_kind(gateway),
            unknown=modifies and error.sent,
            retry_after_s=None if gateway is None else gateway.retry_after_s,
            immediate=error.stale,
            epoch=epoch,
            remedy=error.remedy,
        )
    kind = Kind.CHANGED if conditional and error.code == _CHANGED_CODE else _kind(error)
    return StoreError(
        text,
        kind,
        unknown=modifies and not _provably_refused(error),
        retry_after_s=error.retry_after_s,
        immediate=kind in (Kind.EPOCH, Kind.LEASE),
        epoch=epoch,
        remedy=error.remedy,
    )


def is_service_timeout(error: ServiceError | TransportError) -> bool:
    """Whether a request took the service too long: its own time limit, or no answer within ours."""
    if isinstance(error, GatewayError):
        return error.status in _TIMEOUT_STATUS
    if isinstance(error, TransportError):
        return error.sent and not error.stale
    return error.code == _SERVICE_TIMEOUT


def _provably_refused(error: ServiceError) -> bool:
    if error.status == 503:
        return error.code == _TURNED_AWAY
    return 400 <= error.status < 500 and error.status != 408


def _gateway_kind(error: GatewayError) -> Kind:
    """Both pass by themselves: what a gateway says is no reason to give a disk up."""
    return Kind.THROTTLED if error.status in _BUSY_STATUS else Kind.INTERNAL


def _kind(error: ServiceError) -> Kind:
    status, code = error.status, error.code
    if status in _BUSY_STATUS or code in (_SERVICE_TIMEOUT, _TURNED_AWAY):
        kind = Kind.THROTTLED
    elif status >= 500:
        kind = Kind.INTERNAL
    elif status in _DENIED_STATUS:
        kind = Kind.DENIED
    elif status in _GONE_STATUS or code == "ContainerBeingDeleted":
        kind = Kind.GONE
    elif status == 416:
        kind = Kind.RANGE
    elif code == _EPOCH_CODE:
        kind = Kind.EPOCH
    elif status == 412 or code.startswith("Lease"):
        kind = Kind.LEASE  # a data request has no other condition than its epoch, so every other 412 is about the lease
    elif code in _DAMAGED_IN:
        kind = Kind.CORRUPT
    elif status == 408:
        kind = Kind.UNREACHABLE
    else:
        kind = Kind.REJECTED
    return kind
