"""Telling a blob what it is now: its Content-MD5 is taken off, our name is written (contentmd5.py, holdername.py).

Each is sent on condition of the ETag of the step before. If one fails, or its end is not known, the disk is ours all
the same. Nobody waits for this but writers: the device is set up meanwhile, and read. But no modifying call passes
before it is over (Fence), since it would change the ETag that the condition names; and so whoever wrote to a disk is
named on it, as far as that could be written. A new worker that does not find the name writes it, likewise: its
predecessor may have been killed before.
"""

from __future__ import annotations

from blobfuse_dysk.store.lease import contentmd5
from blobfuse_dysk.store.lease.claim import Claim
from blobfuse_dysk.store.lease.holdername import sign
from blobfuse_dysk.store.lease.requests import BlobLease

__all__ = ["tell"]


async def tell(lease: BlobLease, claim: Claim, node: str) -> None:
    """Do so. claim: as it was taken. node: who we are, for other nodes to read. Raises nothing that a service does."""
    lease_id = claim.guard.lease_id
    etag = await contentmd5.take_off(lease, lease_id, claim.blob, claim.etag)
    await sign(lease, lease_id, claim.blob.metadata, etag, node, claim.guard.epoch)
