"""What a modifying request must carry: the lease id and the epoch, shared by Fence, which keeps it true, and PageBlob.

Theory. The service refuses a request whose lease id or sequence-number condition no longer holds, and that is what
keeps two writers apart; nothing in this file is needed for that. What it adds: no request leaves this machine when
the lease is not known to be held, however long it waited for a free slot since Fence let it pass.

- `valid_until` is measured from *before* the request that last took or renewed the lease was sent, so it never lies
  beyond the service's own expiry (clock rates aside). It is -inf while the lease is in doubt and after fencing.
- It is a time of `lease_time`, which goes on while this machine is suspended, as the lease does. trio's clock stands
  still then, so a machine that wakes up after an hour would believe in a lease that ended long ago.
- `epoch` is the highest sequence number whose raise was acknowledged. It only grows.
- `proved_at` is when a request was sent that the service then carried out under this lease and epoch: a modifying one
  (the claim's raise is the first), or a renewal that was followed by a look at the sequence number. trio's time stands
  still during a suspension, so what was sent before the first look at `is_proved` after one does not count.
- `permit()` is called where the request is built. Between the call and the start of the request there is no await.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import trio

from blobfuse_dysk.clock import bound_clock
from blobfuse_dysk.errors import Kind, StoreError

__all__ = ["Guard", "HoldState", "lease_time", "slept_s"]

# How this node holds the disk: see keepalive.py. failed: it can never be written to again, for a reason that has
# nothing to do with the lease (stack.py).
HoldState: TypeAlias = Literal["attached", "recovering", "paused", "fenced", "failed", "released"]

PROOF_S = 5.0  # how old the proof of the lease may be that a flush rests on
LEAST_SLEEP_S = 0.1  # what is shorter may be the time between reading two clocks


def lease_time() -> float:
    """trio.current_time(), plus the seconds that this machine was suspended for since this process began."""
    return trio.current_time() + _sleep.seconds()


def slept_s() -> float:
    """Seconds that this machine was suspended for since this process began."""
    return _sleep.seconds()


class _Sleep:
    """How long the machine was suspended. Goes up in steps, so that two looks at the same moment agree."""

    def __init__(self) -> None:
        self._before = time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)
        self._slept = 0.0

    def seconds(self) -> float:
        """Seconds since this was made. Source: clock_gettime(2)."""
        awake = time.clock_gettime(time.CLOCK_MONOTONIC)
        slept = time.clock_gettime(time.CLOCK_BOOTTIME) - awake - self._before
        if slept > self._slept + LEAST_SLEEP_S:
            self._slept = slept
        return self._slept


_sleep = _Sleep()


@dataclass(slots=True)
class Guard:
    """Written by Fence (and once at attach), read by PageBlob. valid_until: lease_time(); proved_at: trio's time."""

    lease_id: str
    epoch: int
    valid_until: float = -math.inf
    proved_at: float = -math.inf
    _now: Callable[[], float] = field(default_factory=bound_clock)
    _slept_s: float = 0.0  # when is_proved was last asked for
    _awake_since: float = -math.inf  # trio's time; the machine was not suspended after it, as far as is_proved saw

    @property
    def certain(self) -> bool:
        """Whether the lease is held for sure at this moment: lease_time(), read the quicker way."""
        return self._now() + _sleep.seconds() < self.valid_until

    @property
    def expires_in_s(self) -> float | None:
        """Seconds until the lease ends unless it is renewed (0 when in doubt); None for an infinite lease."""
        left = self.valid_until - lease_time()
        return None if left == math.inf else max(0.0, left)

    def age_s(self, lease_s: float | None) -> float:
        """Seconds since the request that last took or renewed the lease was sent; 0 for an infinite lease.

        lease_s: the lease's term, None for infinite.
        """
        return 0.0 if lease_s is None else lease_s - (self.valid_until - lease_time())

    @property
    def is_proved(self) -> bool:
        """Whether the service was seen to honour the lease less than PROOF_S ago; never across a suspension."""
        slept, now = slept_s(), trio.current_time()
        if slept != self._slept_s:
            self._slept_s, self._awake_since, self.proved_at = slept, now, -math.inf
        return self.proved_at >= self._awake_since and now - self.proved_at < PROOF_S

    def permit(self) -> tuple[str, int]:
        """Return (lease id, epoch) for a request that is sent now; StoreError(LEASE), not sent, if in doubt."""
        if not self.certain:
            raise StoreError(
                "the lease ran out before the request was sent", Kind.LEASE, immediate=True, epoch=self.epoch
            )
        return self.lease_id, self.epoch
