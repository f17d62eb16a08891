"""The lease state machine by itself: the documented tables, every state with every action and use.

Source: https://learn.microsoft.com/rest/api/storageservices/lease-blob#remarks ("Outcomes of lease operations on blobs
by lease state" and "Outcomes of use attempts on blobs by lease state").
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from blobfuse_dysk.testing.server.answers import Refusal
from blobfuse_dysk.testing.server.leases import Lease, parse_lease_id

A, B, C = (f"{letter * 8}-0000-4000-8000-000000000000" for letter in "abc")
NOW = 1000.0
STATES = ("available", "leased", "expired", "breaking", "broken")

# action: (does it, {state: new state or error code}, in the order of STATES)
TABLE: dict[str, tuple[Callable[[Lease], object], tuple[str, str, str, str, str]]] = {
    "acquire": (
        lambda lease: lease.acquire(None, 15, NOW),
        ("leased", "LeaseAlreadyPresent", "leased", "LeaseAlreadyPresent", "leased"),
    ),
    "acquire A": (
        lambda lease: lease.acquire(A, 15, NOW),
        ("leased", "leased", "leased", "LeaseIsBreakingAndCannotBeAcquired", "leased"),
    ),
    "acquire B": (
        lambda lease: lease.acquire(B, 15, NOW),
        ("leased", "LeaseAlreadyPresent", "leased", "LeaseAlreadyPresent", "leased"),
    ),
    "break 0": (
        lambda lease: lease.break_(0, NOW),
        ("LeaseNotPresentWithLeaseOperation", "broken", "broken", "broken", "broken"),
    ),
    "break 10": (
        lambda lease: lease.break_(10, NOW),
        ("LeaseNotPresentWithLeaseOperation", "breaking", "broken", "breaking", "broken"),
    ),
    "change A to B": (
        lambda lease: lease.change(A, B, NOW),
        (
            "LeaseNotPresentWithLeaseOperation",
            "leased",
            "LeaseNotPresentWithLeaseOperation",
            "LeaseIsBreakingAndCannotBeChanged",
            "LeaseNotPresentWithLeaseOperation",
        ),
    ),
    "change B to C": (
        lambda lease: lease.change(B, C, NOW),
        (
            "LeaseNotPresentWithLeaseOperation",
            "LeaseIdMismatchWithLeaseOperation",
            "LeaseNotPresentWithLeaseOperation",
            "LeaseIdMismatchWithLeaseOperation",
            "LeaseNotPresentWithLeaseOperation",
        ),
    ),
    "renew A": (
        lambda lease: lease.renew(A, NOW),
        (
            "LeaseIdMismatchWithLeaseOperation",
            "leased",
            "leased",
            "LeaseIsBrokenAndCannotBeRenewed",
            "LeaseIsBrokenAndCannotBeRenewed",
        ),
    ),
    "renew B": (lambda lease: lease.renew(B, NOW), ("LeaseIdMismatchWithLeaseOperation",) * 5),
    "release A": (
        lambda lease: lease.release(A, NOW),
        ("LeaseIdMismatchWithLeaseOperation", "available", "available", "available", "available"),
    ),
    "release B": (lambda lease: lease.release(B, NOW), ("LeaseIdMismatchWithLeaseOperation",) * 5),
    "write": (
        lambda lease: _write(lease, None),
        ("available", "LeaseIdMissing", "available", "LeaseIdMissing", "available"),
    ),
    "write A": (
        lambda lease: _write(lease, A),
        ("LeaseNotPresentWithBlobOperation", "leased", "LeaseLost", "breaking", "LeaseLost"),
    ),
    "write B": (
        lambda lease: _write(lease, B),
        (
            "LeaseNotPresentWithBlobOperation",
            "LeaseIdMismatchWithBlobOperation",
            "LeaseLost",
            "LeaseIdMismatchWithBlobOperation",
            "LeaseLost",
        ),
    ),
    "read": (lambda lease: lease.check_read(None, NOW), ("available", "leased", "expired", "breaking", "broken")),
    "read A": (
        lambda lease: lease.check_read(A, NOW),
        ("LeaseNotPresentWithBlobOperation", "leased", "LeaseLost", "breaking", "LeaseLost"),
    ),
    "read B": (
        lambda lease: lease.check_read(B, NOW),
        (
            "LeaseNotPresentWithBlobOperation",
            "LeaseIdMismatchWithBlobOperation",
            "LeaseLost",
            "LeaseIdMismatchWithBlobOperation",
            "LeaseLost",
        ),
    ),
}


def _write(lease: Lease, lease_id: str | None) -> None:
    lease.check_write(lease_id, NOW)
    lease.written(NOW)


def lease_in(state: str) -> Lease:
    """A lease that A has or had, in that state at NOW."""
    lease = Lease()
    if state == "available":
        return lease
    lease.acquire(A, 60, NOW - (60 if state == "expired" else 1))
    if state in ("breaking", "broken"):
        lease.break_(30, NOW - (30 if state == "broken" else 1))
    assert lease.state(NOW) == state
    return lease


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("action", TABLE)
def test_a_lease_goes_from_state_to_state_as_the_service_documents(action: str, state: str) -> None:
    lease = lease_in(state)
    act, outcomes = TABLE[action]
    expected = outcomes[STATES.index(state)]
    if expected in STATES:
        act(lease)
        assert lease.state(NOW) == expected
    else:
        with pytest.raises(Refusal) as refused:
            act(lease)
        assert refused.value.code == expected
        assert lease.state(NOW) == state


def test_time_moves_leased_to_expired_and_breaking_to_broken() -> None:
    lease = Lease()
    lease.acquire(A, 15, NOW)
    assert lease.state(NOW + 14.9) == "leased"
    assert lease.state(NOW + 15) == "expired"
    lease.renew(A, NOW + 100)
    assert lease.state(NOW + 114) == "leased"
    assert lease.break_(5, NOW + 100) == 5
    assert lease.state(NOW + 104) == "breaking"
    assert lease.state(NOW + 105) == "broken"


def test_infinite_lease_ends_by_break_only() -> None:
    lease = Lease()
    lease.acquire(A, -1, NOW)
    assert lease.state(NOW + 1e9) == "leased"
    assert lease.headers(NOW)["x-ms-lease-duration"] == "infinite"
    assert lease.break_(None, NOW) == 0
    assert lease.state(NOW) == "broken"


def test_break_never_prolongs() -> None:
    lease = Lease()
    lease.acquire(A, 15, NOW)
    assert lease.break_(60, NOW + 5) == 10
    assert lease.break_(60, NOW + 6) == 9
    assert lease.break_(2, NOW + 6) == 2
    assert lease.state(NOW + 8) == "broken"


def test_expired_lease_cannot_be_renewed_after_a_write() -> None:
    lease = lease_in("expired")
    _write(lease, None)
    with pytest.raises(Refusal, match="LeaseIdMismatchWithLeaseOperation"):
        lease.renew(A, NOW)


def test_change_can_be_resent() -> None:
    lease = lease_in("leased")
    assert lease.change(A, B, NOW) == B
    assert lease.change(A, B, NOW) == B
    assert lease.id == B


@pytest.mark.parametrize("duration", [0, 14, 61, -2])
def test_duration_out_of_range(duration: int) -> None:
    with pytest.raises(Refusal, match="InvalidHeaderValue"):
        Lease().acquire(A, duration, NOW)


@pytest.mark.parametrize("state", STATES)
def test_saved_and_read_again(state: str) -> None:
    lease = lease_in(state)
    again = Lease.from_json(lease.to_json(NOW))
    assert again.to_json(NOW) == lease.to_json(NOW)
    assert again.state(NOW + 59) == lease.state(NOW + 59)


def test_lease_id_forms() -> None:
    assert parse_lease_id(A.upper()) == A
    assert parse_lease_id("{" + A + "}") == A
    assert parse_lease_id(A.replace("-", "")) == A
    assert parse_lease_id(None) is None
    with pytest.raises(Refusal, match="InvalidHeaderValue"):
        parse_lease_id("not-a-guid")
