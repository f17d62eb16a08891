"""Who holds a disk, in the blob's metadata: for the next node's error message, and for `evict`. Refused without harm.

A name may be missing, or another's from before, where writing it failed. So beside it stands the tag of the holder's
numbers (epoch.py): only while the blob's number has the same is the name that of whoever last took the disk.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from blobfuse_dysk.azure.explain import HOLDER_NODE, HOLDER_SINCE, HOLDER_TAG
from blobfuse_dysk.azure.wire import BlobProperties, Condition
from blobfuse_dysk.errors import StoreError
from blobfuse_dysk.store.lease import epoch
from blobfuse_dysk.store.lease.requests import BlobLease
from blobfuse_dysk.timestamp import utc_text

__all__ = ["is_signed", "sign", "unsign"]

log = logging.getLogger(__name__)
_OURS = (HOLDER_NODE, HOLDER_SINCE, HOLDER_TAG)
_UNNAMED = "unnamed"


async def sign(lease: BlobLease, lease_id: str, metadata: Mapping[str, str], etag: str, node: str, number: int) -> str:
    """Write who we are, beside what metadata there is. Returns the blob's ETag then, as far as we know.

    number: one of ours. Only while the ETag is `etag`, so no copy of the request can undo what others write later.
    Rights for this may be missing, so whatever fails is a warning.
    """
    told = {HOLDER_NODE: _name_of(node), HOLDER_SINCE: utc_text(), HOLDER_TAG: str(epoch.tag(number))}
    return await _write(lease, {**_of_others(metadata), **told}, lease_id, etag, "writing the holder's name")


def is_signed(blob: BlobProperties, node: str | None = None) -> bool:
    """Whether the name on the blob is that of the attachment which raised its number, and `node`'s, if that is given.

    False where that is not certain: other names are written as `node` would be.
    """
    told = {name.lower(): value for name, value in blob.metadata.items()}
    if told.get(HOLDER_TAG) != str(epoch.tag(blob.sequence_number or 0)) or not told.get(HOLDER_NODE):
        return False
    return node is None or told[HOLDER_NODE] == _name_of(node) == node != _UNNAMED


async def unsign(lease: BlobLease, lease_id: str, metadata: Mapping[str, str], etag: str) -> str:
    """Take the holder's name off, likewise."""
    left = _of_others(metadata)
    if left == metadata:
        return etag
    return await _write(lease, left, lease_id, etag, "taking the holder's name off the blob")


def _of_others(metadata: Mapping[str, str]) -> dict[str, str]:
    """What is not ours, as it is spelled. To the service the case of a name makes no difference."""
    return {name: value for name, value in metadata.items() if name.lower() not in _OURS}


def _name_of(node: str) -> str:
    """As a header can hold it."""
    return "".join(c for c in node if c.isascii() and c.isprintable()).strip() or _UNNAMED


async def _write(lease: BlobLease, metadata: Mapping[str, str], lease_id: str, etag: str, what: str) -> str:
    try:
        return await lease.set_metadata(metadata, lease_id, Condition(if_match=etag))
    except StoreError as error:
        log.warning("%s failed: %s", what, error)
        return etag
