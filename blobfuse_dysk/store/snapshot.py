"""Making a snapshot of a disk: what is asked of the blob first, and what is written on the snapshot.

The service makes it at one moment, of all pages that it has acknowledged by then, so it is a state that a power cut at
that moment would have left: crash consistent, as long as nobody loses a barrier, which the block layer does not
(store/contract.py). If nothing changed the blob since its file system was clean, it is that state.

A request whose answer is lost may have been carried out, or be carried out at any later moment. So

- each making of a snapshot has an id of its own in the metadata, under REQUEST, and whoever does not know the outcome
  looks for it in the list before asking again. What has the same id is one snapshot as far as anybody is concerned;
- one that is said to have a clean file system is asked for on the condition that the blob still has the ETag that it
  had while that was true (`etag`). Each write of a page changes the ETag, so no late copy of the request can make one
  of anything else.

Source: https://learn.microsoft.com/rest/api/storageservices/snapshot-blob
"""

from __future__ import annotations

from collections.abc import Mapping

from blobfuse_dysk.azure.explain import HOLDER_NODE, HOLDER_SINCE, HOLDER_TAG
from blobfuse_dysk.azure.marks import INCOMPLETE, incomplete
from blobfuse_dysk.azure.wire import BlobProperties, Condition
from blobfuse_dysk.errors import UsageError
from blobfuse_dysk.store.lease.requests import BlobLease

__all__ = ["CONSISTENT", "NAME", "OWN", "REQUEST", "WHY", "take"]

NAME = "dysk_snapshot"
CONSISTENT = "dysk_consistent"
WHY = "dysk_why"
REQUEST = "dysk_request"
"""Names in a snapshot's metadata: what its maker calls it; file-system or crash; the reason; its id."""
OWN = frozenset({CONSISTENT, WHY, REQUEST, INCOMPLETE, HOLDER_NODE, HOLDER_SINCE, HOLDER_TAG})
"""What is about one blob, or one snapshot, and not about the disk."""


async def take(
    blob: BlobProperties,
    requests: BlobLease,
    metadata: Mapping[str, str],
    *,
    lease_id: str | None = None,
    etag: str | None = None,
) -> str:
    """Make one, in one request; return its time.

    blob: as it was looked at for this. metadata: in addition to what others have written on the disk, which the
    snapshot keeps. lease_id: only while that lease is active; None where this node has none. etag: only while the blob
    has this one. Raises StoreError: `unknown` if one may have been made, Kind.CHANGED for another ETag; UsageError if
    not all of the disk is there yet.
    """
    if incomplete(blob.metadata) is not None:
        raise UsageError(
            "the disk is an incomplete clone, so a snapshot of it would be worth nothing",
            remedy="wait for the end of dyskctl clone, or run it again",
        )
    mine = {name.lower() for name in metadata} | OWN
    kept = {name: value for name, value in blob.metadata.items() if name.lower() not in mine}
    return await requests.snapshot({**kept, **metadata}, lease_id, Condition(if_match=etag) if etag else None)
