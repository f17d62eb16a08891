"""Takes a disk from a node that does not answer, so that another one can have it at once. For a cluster's controller.

How, and why no other node loses anything by it: store/lease/evict.py.
"""

from __future__ import annotations

from random import Random

from blobfuse_dysk.azure.credential import resolve
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.options import AttachOptions

__all__ = ["fence"]

_CALL_S, _BUDGET_S = 5.0, 8.0  # for each request, and for it with what is tried again


def fence(disk: DiskAddress, options: AttachOptions, *, node: str) -> bool:
    """Whether the disk was taken from an attachment of that node, of which nothing can land from now on.

    node: as its attachments sign (environment.node_name). False: it does not have the disk, or only reads it; nothing
    was done. Safe to repeat. Raises LeasedError where it cannot be told who has the disk, or another DyskError.
    """
    import trio

    from blobfuse_dysk.azure.blob import BlobClient
    from blobfuse_dysk.store.lease.evict import evict
    from blobfuse_dysk.store.lease.requests import BlobLease
    from blobfuse_dysk.store.open import errors_for_people

    if disk.snapshot:
        return False  # nobody writes to one, so there is no lease
    address, credential = resolve.resolve(disk, options)
    address.refuse_secondary("")

    async def run() -> bool:
        async with BlobClient(address, credential) as client:
            lease = BlobLease(client, timeout_s=_CALL_S)
            with errors_for_people(address, credential, read_only=False):
                return await evict(lease, address, node=node, random=Random(), budget_s=_BUDGET_S)

    return trio.run(run)
