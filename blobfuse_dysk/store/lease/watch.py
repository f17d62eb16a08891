"""Whether the blob still is the disk that was attached, and who has it once it is ours no more. For people, mostly.

Nothing that keeps two writers apart rests on this. A renewal says nothing of the blob's size, and a read-only
attachment renews nothing; so `watch` looks at the properties as often as a lease is renewed. What it finds is final:
the file system's caches describe the blob as it was, so one that came back is another disk.

- The blob is not there (404 of the service).
- It is smaller. What the look is compared with is the size from before it was sent, so growing does not matter.
- It was made anew: another time of creation, or a sequence number below one whose raise was acknowledged before the
  look was sent. Who writes over a blob may leave its time of creation, but the number begins at 0 again.
Source: https://learn.microsoft.com/rest/api/storageservices/get-blob-properties, put-blob
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from blobfuse_dysk.azure.explain import holder_in
from blobfuse_dysk.azure.wire import BlobProperties
from blobfuse_dysk.errors import Kind, StoreError
from blobfuse_dysk.store.lease import epoch
from blobfuse_dysk.store.lease.requests import BlobLease

__all__ = ["DEFAULT_PERIOD_S", "find_holder", "watch"]

DEFAULT_PERIOD_S = 20.0
_LOOKS_S = (
    0.0,
    3.0,
    12.0,
    45.0,
)  # pauses before looks: who breaks a lease may take it a moment later
_RESTORE = "detach it here; a snapshot, or soft delete in the portal, may still have what was on it"
_REPLACED = "detach it here, and see what it is now before attaching it again"


async def watch(
    lease: BlobLease,
    opened: BlobProperties,
    *,
    period_s: float,
    size: Callable[[], int],
    number: Callable[[], int | None],
) -> StoreError:
    """Return why the blob is not the disk any more that was `opened`, within period_s of it. Failed looks say nothing.

    size: bytes that the blob has at least now. number: its sequence number at least, None if that is not ours.
    """
    while True:
        await trio.sleep(period_s)
        least, raised = size(), number()
        try:
            blob = await lease.properties()
        except StoreError as error:
            if error.kind is Kind.GONE:
                return StoreError(f"the blob is gone ({error})", Kind.GONE, remedy=_RESTORE)
            continue
        if opened.created and blob.created and blob.created != opened.created:
            return StoreError(f"the blob was replaced by another one, made {blob.created}", Kind.GONE, remedy=_REPLACED)
        if raised is not None and (blob.sequence_number or 0) < raised:
            what = f"the blob was replaced, or its sequence number set back ({blob.sequence_number} after {raised})"
            return StoreError(what, Kind.GONE, remedy=_REPLACED)
        if blob.size < least:
            return StoreError(
                f"the blob was made smaller: it has {blob.size} bytes, and had {least}",
                Kind.RANGE,
                remedy="detach it here; what was cut off is gone, so check what is on it before it is used again",
            )


async def find_holder(lease: BlobLease, ours: int, tell: Callable[[StoreError], None]) -> None:
    """After the lease was lost: tell who took it, and again if that is another than a moment ago. ours: our epoch."""
    told = None
    for pause_s in _LOOKS_S:
        await trio.sleep(pause_s)
        try:
            found = _holder(await lease.properties(), ours)
        except StoreError as error:
            if error.kind is not Kind.GONE:
                continue
            found = StoreError(f"the blob is gone ({error})", Kind.FENCED, remedy=_RESTORE)
        if str(found) != told:
            told = str(found)
            tell(found)


def _holder(blob: BlobProperties, ours: int) -> StoreError:
    number, (node, since) = blob.sequence_number or 0, holder_in(blob.metadata)
    another = epoch.tag(number) != epoch.tag(ours)
    remedy = "unmount and detach it here, then attach it where it is needed"
    if number < ours:
        return StoreError("the blob was replaced by another one", Kind.FENCED, remedy=_REPLACED)
    if blob.lease_state == "leased" and another and node:
        what = f"node {node} took the disk{f' at {since}' if since else ''}"
    elif blob.lease_state == "leased":
        what = "a holder that has not written its name took the disk's lease"
    elif another:
        what = "another attachment had the disk meanwhile, and has let it go"
    else:
        what = "the lease was broken from outside, and nobody has the disk now"
        remedy = "unmount and detach it here, then attach it again and check its file system"
    return StoreError(what, Kind.FENCED, remedy=remedy)
