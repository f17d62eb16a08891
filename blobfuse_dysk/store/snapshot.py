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
from typing import Protocol

from blobfuse_dysk.azure.explain import HOLDER_NODE, HOLDER_SINCE
from blobfuse_dysk.azure.wire import BlobProperties, Condition
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.errors import UsageError
from blobfuse_dysk.store.open import check_blob

__all__ = ["CONSISTENT", "NAME", "OWN", "REQUEST", "WHY", "CanSnapshot", "check", "take"]

NAME = "dysk_snapshot"
CONSISTENT = "dysk_consistent"
WHY = "dysk_why"
REQUEST = "dysk_request"
"""Names in a snapshot's metadata: what its maker calls it; file-system or crash; the reason; its id."""
INCOMPLETE = "dysk_incomplete"
"""Name in the metadata of a clone that is not there as a whole yet."""
OWN = frozenset({CONSISTENT, WHY, REQUEST, INCOMPLETE, HOLDER_NODE, HOLDER_SINCE})
"""What is about one blob, or one snapshot, and not about the disk."""


class CanSnapshot(Protocol):
    """What is asked of a blob's client; see azure/blob.py."""

    async def properties(self, *, timeout_s: float) -> BlobProperties: ...

    async def snapshot(
        self, metadata: Mapping[str, str], *, lease_id: str | None, condition: Condition | None = None, timeout_s: float
    ) -> str: ...


def check(blob: BlobProperties, address: DiskAddress) -> None:
    """Raise DyskError if it is no disk, or not all of one yet."""
    check_blob(blob, address)
    if any(name.lower() == INCOMPLETE for name in blob.metadata):
        raise UsageError(
            f"{address} is an incomplete clone, so a snapshot of it would be worth nothing",
            remedy="wait for the end of dyskctl clone, or run it again",
        )


async def take(
    client: CanSnapshot,
    blob: BlobProperties,
    metadata: Mapping[str, str],
    *,
    lease_id: str | None,
    etag: str | None,
    timeout_s: float,
) -> str:
    """Make one, in one request; return its time. Raises ServiceError or TransportError.

    metadata: in addition to what others have written on the disk, which the snapshot keeps. etag: only while the blob
    has this one. lease_id: only while that lease is active; None where this node has none.
    """
    mine = {name.lower() for name in metadata}
    kept = {name: value for name, value in blob.metadata.items() if name.lower() not in mine | OWN}
    condition = Condition(if_match=etag) if etag else None
    return await client.snapshot({**kept, **metadata}, lease_id=lease_id, condition=condition, timeout_s=timeout_s)
