"""Who holds a disk, in the blob's metadata: a courtesy to the next node's error message, refused without harm."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from blobfuse_dysk.azure.explain import HOLDER_NODE, HOLDER_SINCE
from blobfuse_dysk.azure.wire import Condition
from blobfuse_dysk.errors import StoreError
from blobfuse_dysk.store.lease.requests import BlobLease
from blobfuse_dysk.timestamp import utc_text

__all__ = ["sign", "unsign"]

log = logging.getLogger(__name__)


async def sign(lease: BlobLease, lease_id: str, metadata: Mapping[str, str], etag: str, node: str) -> str:
    """Write who we are, beside what metadata there is. Returns the blob's ETag then, as far as we know.

    Only while the ETag is `etag`, so no copy of the request can undo what others write later. Rights for this may be
    missing, so whatever fails is a warning.
    """
    name = "".join(c for c in node if c.isascii() and c.isprintable()).strip() or "unnamed"
    signed = {**_of_others(metadata), HOLDER_NODE: name, HOLDER_SINCE: utc_text()}
    return await _write(lease, signed, lease_id, etag, "writing the holder's name")


async def unsign(lease: BlobLease, lease_id: str, metadata: Mapping[str, str], etag: str) -> str:
    """Take the holder's name off, likewise."""
    left = _of_others(metadata)
    if left == metadata:
        return etag
    return await _write(lease, left, lease_id, etag, "taking the holder's name off the blob")


def _of_others(metadata: Mapping[str, str]) -> dict[str, str]:
    """What is not ours, as it is spelled. To the service the case of a name makes no difference."""
    return {name: value for name, value in metadata.items() if name.lower() not in (HOLDER_NODE, HOLDER_SINCE)}


async def _write(lease: BlobLease, metadata: Mapping[str, str], lease_id: str, etag: str, what: str) -> str:
    try:
        return await lease.set_metadata(metadata, lease_id, Condition(if_match=etag))
    except StoreError as error:
        log.warning("%s failed: %s", what, error)
        return etag
