"""The blob's own Content-MD5, which no page write renews: taken off at the attach, as what is written makes it wrong.

Those who download the blob check it against that, and find a sound disk damaged. A courtesy, refused without harm.
Set Blob Properties replaces all headers of the content that it can name, so the others are sent again as they are.
Source: https://learn.microsoft.com/rest/api/storageservices/set-blob-properties, "Remarks"
"""

from __future__ import annotations

import logging

from blobfuse_dysk.azure.wire import BlobProperties, Condition
from blobfuse_dysk.errors import StoreError
from blobfuse_dysk.store.lease.requests import BlobLease

__all__ = ["take_off"]

_NAME = "content-md5"
log = logging.getLogger(__name__)


async def take_off(lease: BlobLease, lease_id: str, blob: BlobProperties, etag: str) -> str:
    """Take it off, if there is one. Returns the blob's ETag then, as far as we know.

    blob: as it was before the attach. What is sent again was read under our lease and is sent only while the ETag is
    `etag`: so no copy of the request can undo what others write later.
    """
    if _NAME not in blob.content:
        return etag
    try:
        found = await lease.properties()
        rest = {name: value for name, value in found.content.items() if name != _NAME}
        return await lease.set_content(rest, lease_id, Condition(if_match=etag))
    except StoreError as error:
        log.warning("taking the Content-MD5 off, which writing makes wrong, failed: %s", error)
        return etag
