"""What a modifying request must carry: the lease id and the epoch, shared by Fence, which keeps it true, and PageBlob.

Theory. The service refuses a request whose lease id or sequence-number condition no longer holds, and that is what
keeps two writers apart; nothing in this file is needed for that. What it adds: no request leaves this machine when
the lease is not known to be held, however long it waited for a free slot since Fence let it pass.

- `valid_until` is measured from *before* the request that last took or renewed the lease was sent, so it never lies
  beyond the service's own expiry (clock rates aside). It is -inf while the lease is in doubt and after fencing.
- `epoch` is the highest sequence number whose raise was acknowledged. It only grows.
- `permit()` is called where the request is built. Between the call and the start of the request there is no await.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import trio

from blobfuse_dysk.errors import Kind, StoreError

__all__ = ["Guard"]


@dataclass(slots=True)
class Guard:
    """Written by Fence (and once at attach), read by PageBlob. Times are those of trio.current_time()."""

    lease_id: str
    epoch: int
    valid_until: float = -math.inf

    @property
    def certain(self) -> bool:
        """Whether the lease is held for sure at this moment."""
        return trio.current_time() < self.valid_until

    def permit(self) -> tuple[str, int]:
        """Return (lease id, epoch) for a request that is sent now; StoreError(LEASE), not sent, if in doubt."""
        if not self.certain:
            raise StoreError(
                "the lease ran out before the request was sent", Kind.LEASE, immediate=True, epoch=self.epoch
            )
        return self.lease_id, self.epoch
