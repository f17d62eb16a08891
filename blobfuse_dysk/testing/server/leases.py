"""The lease of a blob: five states, five actions, and what a read or write meets in each state.

States: available, leased, expired, breaking, broken. Time moves leased -> expired and breaking -> broken; a
write without lease id moves expired and broken -> available, after which the old id can no longer be renewed.
Source, both tables: https://learn.microsoft.com/rest/api/storageservices/lease-blob#remarks
"""

from __future__ import annotations

import uuid
from typing import Literal, TypeAlias

from .answers import Refusal

__all__ = ["Lease", "LeaseState", "parse_lease_id"]

LeaseState: TypeAlias = Literal["available", "leased", "expired", "breaking", "broken"]

INFINITE = -1


def parse_lease_id(text: str | None) -> str | None:
    """Lower-case GUID, or None when the header was not sent. Every form that .NET's Guid constructor takes."""
    if not text:
        return None
    try:
        return str(uuid.UUID(text.strip("{}()")))
    except ValueError:
        raise Refusal("InvalidHeaderValue") from None


class Lease:
    """`now` is always the service's clock, seconds since the epoch. Ids are lower-case GUIDs."""

    __slots__ = ("_state", "duration_s", "ends", "id")

    def __init__(self) -> None:
        self._state: LeaseState = "available"
        self.id: str | None = None
        self.duration_s = 0  # 15 to 60, or INFINITE
        self.ends: float | None = None  # when leased expires or breaking turns into broken; None: never

    def state(self, now: float) -> LeaseState:
        """The state at `now`; what time alone changes is changed here."""
        if self.ends is not None and now >= self.ends:
            if self._state == "leased":
                self._state = "expired"
            elif self._state == "breaking":
                self._state = "broken"
            self.ends = None
        return self._state

    def acquire(self, proposed: str | None, duration_s: int, now: float) -> str:
        """Take the lease, or start its time anew when `proposed` is the id that has it; returns the id."""
        if duration_s != INFINITE and not 15 <= duration_s <= 60:
            raise Refusal("InvalidHeaderValue")
        state = self.state(now)
        ours = proposed is not None and proposed == self.id
        if state == "breaking":
            raise Refusal("LeaseIsBreakingAndCannotBeAcquired" if ours else "LeaseAlreadyPresent")
        if state == "leased" and not ours:
            raise Refusal("LeaseAlreadyPresent")
        self.id = proposed or str(uuid.uuid4())
        self._start(duration_s, now)
        return self.id

    def renew(self, lease_id: str, now: float) -> str:
        """Start the time anew. An expired lease can still be renewed as long as nobody wrote or leased since."""
        state = self.state(now)
        if self.id != lease_id:
            raise Refusal("LeaseIdMismatchWithLeaseOperation")
        if state in ("breaking", "broken"):
            raise Refusal("LeaseIsBrokenAndCannotBeRenewed")
        self._start(self.duration_s, now)
        return lease_id

    def change(self, lease_id: str, proposed: str, now: float) -> str:
        """Give the lease another id. Resending it is harmless: the new id may already be the lease's."""
        state = self.state(now)
        if state in ("available", "expired", "broken"):
            raise Refusal("LeaseNotPresentWithLeaseOperation")
        if state == "breaking" and self.id == lease_id:
            raise Refusal("LeaseIsBreakingAndCannotBeChanged")
        if state == "breaking" or self.id not in (lease_id, proposed):
            raise Refusal("LeaseIdMismatchWithLeaseOperation")
        self.id = proposed
        return proposed

    def release(self, lease_id: str, now: float) -> None:
        """Free the lease at once."""
        self.state(now)
        if self.id != lease_id:
            raise Refusal("LeaseIdMismatchWithLeaseOperation")
        self._free()

    def break_(self, period_s: int | None, now: float) -> int:
        """End the lease after `period_s`, at the latest when it would have expired; returns the seconds left."""
        if period_s is not None and not 0 <= period_s <= 60:
            raise Refusal("InvalidHeaderValue")
        state = self.state(now)
        if state == "available":
            raise Refusal("LeaseNotPresentWithLeaseOperation")
        if state in ("expired", "broken"):
            self._state, self.ends = "broken", None
            return 0
        infinite = self.ends is None
        remaining = 0.0 if self.ends is None else self.ends - now
        if period_s is not None:
            remaining = float(period_s) if infinite else min(float(period_s), remaining)
        if remaining <= 0:
            self._state, self.ends = "broken", None
            return 0
        self._state, self.ends = "breaking", now + remaining
        return round(remaining)

    def check_write(self, lease_id: str | None, now: float) -> None:
        """Raise Refusal unless a write with this id (or none) may go on. Call `written` once it is done."""
        state = self.state(now)
        if state in ("leased", "breaking"):
            if lease_id is None:
                raise Refusal("LeaseIdMissing")
            if lease_id != self.id:
                raise Refusal("LeaseIdMismatchWithBlobOperation")
        elif lease_id is not None:
            raise Refusal("LeaseNotPresentWithBlobOperation" if state == "available" else "LeaseLost")

    def check_read(self, lease_id: str | None, now: float) -> None:
        """A read needs no id; if it names one, it must be that of the lease."""
        if lease_id is not None:
            self.check_write(lease_id, now)

    def written(self, now: float) -> None:
        """The blob was modified: the id of an expired or broken lease is forgotten."""
        if self.state(now) in ("expired", "broken"):
            self._free()

    def elapse(self, seconds: float) -> None:
        """Let the lease's own time pass, for tests that will not wait a minute."""
        if self.ends is not None:
            self.ends -= seconds

    def headers(self, now: float) -> dict[str, str]:
        """x-ms-lease-state, -status and, for a lease in force, -duration, as Get Blob Properties gives them."""
        state = self.state(now)
        found = {
            "x-ms-lease-state": state,
            "x-ms-lease-status": "locked" if state in ("leased", "breaking") else "unlocked",
        }
        if state == "leased":
            found["x-ms-lease-duration"] = "infinite" if self.duration_s == INFINITE else "fixed"
        return found

    def to_json(self, now: float) -> dict[str, object]:
        """Everything, so that `from_json` gives the same lease after a restart; times are absolute."""
        return {"state": self.state(now), "id": self.id, "duration_s": self.duration_s, "ends": self.ends}

    @classmethod
    def from_json(cls, saved: dict[str, object]) -> Lease:
        """The inverse of `to_json`."""
        lease = cls()
        for name, value in saved.items():
            setattr(lease, "_state" if name == "state" else name, value)
        return lease

    def _start(self, duration_s: int, now: float) -> None:
        self._state = "leased"
        self.duration_s = duration_s
        self.ends = None if duration_s == INFINITE else now + duration_s

    def _free(self) -> None:
        self._state, self.id, self.duration_s, self.ends = "available", None, 0, None
