"""Taking a disk from a node that does not answer, and from no other: what a cluster's controller does for a failover.

Theory. What is done to the blob is what an attach with break_lease does (claim.py): break, acquire, raise, each on a
condition; then the lease is released at once. Once the raise is acknowledged nothing of the old node can land, however
late it arrives, since its lease id and its number are void; and the next attach finds no lease to wait for.

What differs is whose lease may be broken. The lease itself does not say whose it is. The name in the metadata does, if
it was written by whoever raised the number last, which the tag beside it shows (holdername.py). It is looked at each
time before a lease is broken, and what breaks it depends on the blob being as it was then.

- The node's name and tag: it is evicted. Also when its lease is over (expired, broken): it could renew the first, and
  a raise ends that. Not when the lease was released ("available"): then no request of that node is taken any more.
- Another's name and tag, or no lease: the node does not have it. Nothing is done.
- A lease, and no name that can be relied on: it may be this node's or another's. That is an error, and nothing is done;
  if its holder is dead, the lease ends by itself.

An attach of another node that is between its acquire and its raise cannot be told from the holder before it, and may
lose its lease to this once. It has written nothing yet, and takes the lease again or is refused. Who writes all the
time cannot be met by an ETag; then the condition is a last moment (claim.py), and a node that took the disk within
these three seconds could lose it. So a controller attaches a disk elsewhere only after it was fenced.
"""

from __future__ import annotations

from random import Random

from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.errors import Kind, LeasedError, StoreError
from blobfuse_dysk.store.lease import epoch
from blobfuse_dysk.store.lease.attempts import Attempts
from blobfuse_dysk.store.lease.claim import Claiming
from blobfuse_dysk.store.lease.holdername import is_signed
from blobfuse_dysk.store.lease.release import give_up, take_back
from blobfuse_dysk.store.lease.requests import BlobLease

__all__ = ["evict"]

TERM_S = 15.0  # of the lease that is taken for a moment: what a death in between leaves to wait for


async def evict(lease: BlobLease, address: DiskAddress, *, node: str, random: Random, budget_s: float) -> bool:
    """Whether the disk was taken from that node; False if it did not have it, and then nothing was done.

    budget_s: for each request. Raises LeasedError if it cannot be told who has it, or StoreError.
    """
    again = Attempts(random, budget_s)
    blob = await again(lease.properties)
    if not is_signed(blob, node):
        if blob.lease_state in ("leased", "breaking") and not is_signed(blob):
            raise LeasedError(
                f"disk {address} is leased by a holder that has not written its name, so it was not taken from {node}",
                remedy="it ends by itself if its holder is gone; see which node has it attached, and detach it there",
            )
        return False
    if blob.lease_state == "available":
        return False
    claiming = Claiming(lease, blob, address=address, lease_id=None, lease_s=TERM_S, budget_s=budget_s, random=random)
    try:
        claim = await claiming.take(break_lease=True, only_from=node)
    except BaseException as error:
        await take_back(lease, claiming)
        if isinstance(error, LeasedError) or (isinstance(error, StoreError) and error.kind is Kind.FENCED):
            found = await again(lease.properties)
            if epoch.tag(found.sequence_number or 0) != epoch.tag(blob.sequence_number or 0):
                return False  # another attachment was taken meanwhile, by which that of the node is void
        raise
    await give_up(lease, claim.guard)
    return True
