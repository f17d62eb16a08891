"""Lease Blob: acquire, renew, change, release, break.

Source: https://learn.microsoft.com/rest/api/storageservices/lease-blob
"""

from __future__ import annotations

from .answers import Answer, Refusal
from .conditions import check_conditions
from .context import Context
from .leases import parse_lease_id
from .state import Blob

__all__ = ["lease_acquire", "lease_break", "lease_change", "lease_release", "lease_renew"]


def lease_acquire(context: Context) -> Answer:
    """x-ms-lease-duration 15 to 60, or -1 for infinite; x-ms-proposed-lease-id optional."""
    blob = _blob(context)
    proposed = parse_lease_id(context.request.header(b"x-ms-proposed-lease-id"))
    duration = context.request.integer(b"x-ms-lease-duration", low=-1)
    if duration is None:
        raise Refusal("MissingRequiredHeader")
    return _answer(context, blob, 201, blob.lease.acquire(proposed, duration, context.now))


def lease_renew(context: Context) -> Answer:
    """x-ms-lease-id required."""
    blob = _blob(context)
    return _answer(context, blob, 200, blob.lease.renew(_lease_id(context), context.now))


def lease_change(context: Context) -> Answer:
    """x-ms-lease-id and x-ms-proposed-lease-id required."""
    blob = _blob(context)
    proposed = parse_lease_id(context.request.required(b"x-ms-proposed-lease-id"))
    assert proposed is not None
    return _answer(context, blob, 200, blob.lease.change(_lease_id(context), proposed, context.now))


def lease_release(context: Context) -> Answer:
    """x-ms-lease-id required."""
    blob = _blob(context)
    blob.lease.release(_lease_id(context), context.now)
    return _answer(context, blob, 200, None)


def lease_break(context: Context) -> Answer:
    """x-ms-lease-break-period optional, 0 to 60; no lease id needed. x-ms-lease-time says when it is broken."""
    blob = _blob(context)
    left = blob.lease.break_(context.request.integer(b"x-ms-lease-break-period"), context.now)
    answer = _answer(context, blob, 202, None)
    answer.headers["x-ms-lease-time"] = str(left)
    return answer


def _blob(context: Context) -> Blob:
    target = context.request.target
    if "snapshot" in target.query:
        raise Refusal("InvalidQueryParameterValue", "A snapshot cannot be leased.")
    blob = context.state.blob(target.account, target.container, target.blob)
    check_conditions(context.request, blob)
    return blob


def _lease_id(context: Context) -> str:
    lease_id = parse_lease_id(context.request.required(b"x-ms-lease-id"))
    assert lease_id is not None
    return lease_id


def _answer(context: Context, blob: Blob, status: int, lease_id: str | None) -> Answer:
    context.state.save(context.now)
    headers = blob.version_headers()
    if lease_id is not None:
        headers["x-ms-lease-id"] = lease_id
    return Answer(status, headers)
