"""The lease and epoch calls of one blob, with errors translated. For attach, Fence (which renews the lease), release.

They bypass Throttle and Retry: a renewal must never wait behind data. Each call is one attempt with a deadline of its
own. When the answer was lost (`unknown`), the request may still arrive, at any later moment. What it may do then is
bounded by its condition: the service carries it out only while the blob has the ETag it had (or was not modified after
a certain second), and every modification gives the blob another ETag, a raise that changes nothing included; lease
operations leave it. Azurite 3.37 does all of this likewise.
Source: https://learn.microsoft.com/rest/api/storageservices/lease-blob,
https://learn.microsoft.com/rest/api/storageservices/set-blob-properties and
https://learn.microsoft.com/rest/api/storageservices/specifying-conditional-headers-for-blob-service-operations
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import TypeVar

import trio

from blobfuse_dysk.azure.wire import BlobProperties, Condition, SequenceNumber
from blobfuse_dysk.errors import Kind, ServiceError, StoreError, TransportError
from blobfuse_dysk.store.blobapi import BlobApi
from blobfuse_dysk.store.serviceerrors import to_store_error

__all__ = ["BlobLease"]

T = TypeVar("T")
CALL_TIMEOUT_S = 10.0
GRACE = 1.2  # of the client's own limit, before its attempt is cancelled


class BlobLease:
    """Raises StoreError only: CHANGED if the condition does not hold, LEASE if the lease is another's or none."""

    def __init__(self, client: BlobApi, *, timeout_s: float = CALL_TIMEOUT_S) -> None:
        self._client = client
        self._timeout_s = timeout_s

    async def acquire(self, lease_id: str, duration_s: float | None, condition: Condition) -> None:
        """Take the lease under this id. duration_s: 15 to 60, or None for infinite. Kind.LEASE: somebody has it."""
        duration = -1 if duration_s is None else int(duration_s)
        await self._call(
            "acquiring the lease",
            self._client.acquire_lease(duration, proposed_id=lease_id, condition=condition, timeout_s=self._timeout_s),
        )

    async def renew(self, lease_id: str) -> None:
        """Start the lease's term again. Works after its expiry unless somebody leased or changed the blob since.

        A late copy harms nobody: it prolongs the lease of this id, and only if there still is that lease.
        """
        await self._call("renewing the lease", self._client.renew_lease(lease_id, timeout_s=self._timeout_s))

    async def release(self, lease_id: str, condition: Condition | None) -> None:
        """Give the lease up, so that another holder can take it at once. Without a condition: of an id of our own."""
        await self._call(
            "releasing the lease",
            self._client.release_lease(lease_id, condition=condition, timeout_s=self._timeout_s),
        )

    async def break_now(self, condition: Condition) -> None:
        """End whoever's lease there is, without a break period."""
        await self._call(
            "breaking the lease",
            self._client.break_lease(period_s=0, condition=condition, timeout_s=self._timeout_s),
        )

    async def raise_epoch(self, number: int, lease_id: str, condition: Condition | None = None) -> SequenceNumber:
        """Make the blob's sequence number at least `number`; returns what it is then, and the ETag."""
        return await self._call(
            f"raising the epoch to {number}",
            self._client.raise_sequence_number(
                number, lease_id=lease_id, condition=condition, timeout_s=self._timeout_s
            ),
        )

    async def properties(self) -> BlobProperties:
        """Get Blob Properties."""
        return await self._call(
            "asking for the blob's properties", self._client.properties(timeout_s=self._timeout_s), modifies=False
        )

    async def set_metadata(self, metadata: Mapping[str, str], lease_id: str, condition: Condition) -> str:
        """Replace the blob's metadata, all of it; returns the ETag."""
        return await self._call(
            "writing the blob's metadata",
            self._client.set_metadata(metadata, lease_id=lease_id, condition=condition, timeout_s=self._timeout_s),
        )

    async def set_content(self, content: Mapping[str, str], lease_id: str, condition: Condition) -> str:
        """Replace the headers of the blob's content, all of them; returns the ETag."""
        return await self._call(
            "setting the blob's properties",
            self._client.set_content(content, lease_id=lease_id, condition=condition, timeout_s=self._timeout_s),
        )

    async def snapshot(self, metadata: Mapping[str, str], lease_id: str | None, condition: Condition | None) -> str:
        """Make a snapshot of the blob, with this metadata; returns its time. lease_id: None for whoever has it."""
        return await self._call(
            "making a snapshot",
            self._client.snapshot(metadata, lease_id=lease_id, condition=condition, timeout_s=self._timeout_s),
        )

    async def _call(self, what: str, attempt: Awaitable[T], *, modifies: bool = True) -> T:
        limit_s = self._timeout_s * GRACE
        with trio.move_on_after(limit_s):
            try:
                return await attempt
            except (ServiceError, TransportError) as error:
                raise to_store_error(error, what, modifies=modifies, conditional=True) from error
        raise StoreError(f"{what}: no end after {limit_s:g} s", Kind.UNREACHABLE, unknown=modifies)
