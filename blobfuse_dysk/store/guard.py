"""What a modifying request must carry: the lease id and the epoch, shared by Fence, which keeps it true, and PageBlob.

Theory. The service refuses a request whose lease id or sequence-number condition no longer holds, and that is what
keeps two writers apart; nothing in this file is needed for that. What it adds: no request leaves this machine when
the lease is not known to be held, however long it waited for a free slot since Fence let it pass.

- `valid_until` is measured from *before* the request that last took or renewed the lease was sent, so it never lies
  beyond the service's own expiry (clock rates aside). It is -inf while the lease is in doubt and after fencing.
- It is a time of `lease_time`, which goes on while this machine is suspended, as the lease does. trio's clock stands
  still then, so a machine that wakes up after an hour would believe in a lease that ended long ago.
- `epoch` is the highest sequence number whose raise was acknowledged. It only grows.
- `permit()` is called where the request is built. Between the call and the start of the request there is no await.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from blobfuse_dysk.clock import bound_clock
from blobfuse_dysk.errors import Kind, StoreError

__all__ = ["Guard", "lease_time"]


_AWAKE, _ALL = time.CLOCK_MONOTONIC, time.CLOCK_BOOTTIME
LEAST_SLEEP_S = 0.1  # what is shorter may be the time between reading two clocks


def lease_time() -> float:
    """trio.current_time(), plus the seconds that this machine was suspended for since this process began."""
    return trio.current_time() + _sleep.seconds()


class _Sleep:
    """How long the machine was suspended. Goes up in steps, so that two looks at the same moment agree."""

    def __init__(self) -> None:
        # Seconds since the machine was started, less those that it was awake for. Source: clock_gettime(2).
        self._before = self._known = -time.clock_gettime(_AWAKE) + time.clock_gettime(_ALL)

    def seconds(self) -> float:
        """Seconds since this was made."""
        measured_s = -time.clock_gettime(_AWAKE) + time.clock_gettime(_ALL)
        if measured_s > self._known + LEAST_SLEEP_S:
            self._known = measured_s
        return self._known - self._before


_sleep = _Sleep()


@dataclass(slots=True)
class Guard:
    """Written by Fence (and once at attach), read by PageBlob. Times are those of lease_time()."""

    lease_id: str
    epoch: int
    valid_until: float = -math.inf
    _now: Callable[[], float] = field(default_factory=bound_clock, repr=False, compare=False)

    @property
    def certain(self) -> bool:
        """Whether the lease is held for sure at this moment."""
        return self._now() + _sleep.seconds() < self.valid_until  # lease_time(), read three times for each write

    def permit(self) -> tuple[str, int]:
        """Return (lease id, epoch) for a request that is sent now; StoreError(LEASE), not sent, if in doubt."""
        if not self.certain:
            raise StoreError(
                "the lease ran out before the request was sent", Kind.LEASE, immediate=True, epoch=self.epoch
            )
        return self.lease_id, self.epoch
