"""A page blob in memory as the service behaves, for clients that lose, delay and repeat their requests (simclient.py).

For tests under trio's MockClock: no sockets, all time is trio.current_time(). `SimBlob` is the service's side: pages,
lease, sequence number, each request done in one step or refused with the service's own codes. `SimClient` is one
node's way to it (a store.blobapi.BlobApi). A request, once sent, lives on by itself: whether the client was cancelled,
timed out or lost its connection, the service does it when it arrives, or refuses it then. That is where
stragglers come from.

Source of the lease's rules: the two tables of outcomes in
https://learn.microsoft.com/rest/api/storageservices/lease-blob
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import trio

from blobfuse_dysk.azure.properties import CopyState
from blobfuse_dysk.azure.signing import http_date, parse_http_date
from blobfuse_dysk.azure.wire import BlobProperties, Condition, PageList, SequenceNumber
from blobfuse_dysk.errors import ServiceError
from blobfuse_dysk.store.contract import PAGE, Extent
from blobfuse_dysk.testing.fates import Write, refuse
from blobfuse_dysk.testing.memory import MemoryStore

__all__ = ["SimBlob"]


class SimBlob:
    """The service's side of one page blob. No method awaits. clock: seconds, of the lease's term."""

    def __init__(self, size: int, clock: Callable[[], float] = trio.current_time) -> None:
        self.size = size
        self.shrunk = False  # whether a request made it smaller
        self._clock = clock
        self.store = MemoryStore(size)
        self.allocated: set[int] = set()
        self.number = 0
        self.metadata: dict[str, str] = {}
        self.content: dict[str, str] = {}
        self.copy: CopyState | None = None
        self.snapshots: dict[str, tuple[bytes, dict[str, str]]] = {}  # by time: content, metadata
        self.blob_type = "PageBlob"
        self.gone = False
        self.list_most = 5000
        self.lists_time_out_above = math.inf
        self.writes: list[Write] = []
        self.version = 1
        self.modified_at, self.created = 0.0, http_date(0.0)
        self._lease_id: str | None = None
        self._lease_state = "available"
        self._lease_s = math.inf
        self._lease_ends = -math.inf

    @property
    def etag(self) -> str:
        """Another one after every modification; lease operations leave it."""
        return f'"0x{self.version:X}"'

    @property
    def lease_id(self) -> str | None:
        """Of the lease that is held, or was; None once it is released or forgotten."""
        return self._lease_id

    @property
    def lease_s(self) -> float:
        """The term of the lease that is held, or was: infinite or in seconds."""
        return self._lease_s

    @property
    def lease_state(self) -> str:
        """available, leased, expired or broken."""
        if self._lease_state == "leased" and self._clock() >= self._lease_ends:
            self._lease_state = "expired"
        return self._lease_state

    def put(
        self, client: str, offset: int, data: bytes | None, length: int, lease_id: str | None, epoch: int | None
    ) -> None:
        """Put Page: update, or clear when data is None."""
        code = ""
        try:
            self._may_write(lease_id)
            if offset + length > self.size:
                raise refuse(416, "InvalidPageRange")
            if epoch is not None and epoch != self.number:
                raise refuse(412, "SequenceNumberConditionNotMet")
        except ServiceError as error:
            code = error.code
            raise
        finally:
            self.writes.append(Write(client, offset, length, lease_id, epoch, trio.current_time(), code))
        self._modified()
        pages = range(offset // PAGE, (offset + length) // PAGE)
        if data is None:
            self.store.wipe(offset, length)
            self.allocated.difference_update(pages)
        else:
            self.store.poke(offset, data)
            self.allocated.update(pages)

    def get(self, offset: int, length: int) -> bytes:
        """Get Blob."""
        self._exists()
        if offset + length > self.size:
            raise refuse(416, "InvalidRange")
        return self.store.peek(offset, length)

    def list(self, offset: int, length: int, marker: str | None, most: int | None) -> PageList:
        """Get Page Ranges; the marker is the offset at which to go on."""
        self._exists()
        if length > self.lists_time_out_above:
            raise refuse(500, "OperationTimedOut")
        start = offset if marker is None else int(marker)
        ranges: list[Extent] = []
        for page in sorted(self.allocated):
            at = page * PAGE
            if not start <= at < offset + length:
                continue
            if ranges and ranges[-1][0] + ranges[-1][1] == at:
                ranges[-1] = (ranges[-1][0], ranges[-1][1] + PAGE)
            elif len(ranges) == min(most or self.list_most, self.list_most):
                return PageList(ranges, str(at))
            else:
                ranges.append((at, PAGE))
        return PageList(ranges, None)

    @property
    def lease_duration(self) -> str:
        """infinite, fixed, or '' without a lease."""
        return "" if self.lease_state != "leased" else "infinite" if self._lease_s == math.inf else "fixed"

    def properties(self) -> BlobProperties:
        """Get Blob Properties."""
        self._exists()
        return BlobProperties(
            size=self.size,
            blob_type=self.blob_type,
            sequence_number=self.number,
            lease_state=self.lease_state,
            metadata=dict(self.metadata),
            etag=self.etag,
            last_modified=http_date(self.modified_at),
            lease_duration=self.lease_duration,
            created=self.created,
            copy=self.copy,
            content=dict(self.content),
        )

    def raise_number(self, value: int, lease_id: str | None, condition: Condition | None = None) -> SequenceNumber:
        """Set Blob Properties, action max."""
        self._check(condition)
        self._may_write(lease_id)
        self._modified()
        self.number = max(self.number, value)
        return SequenceNumber(self.number, self.etag)

    def resize(self, size: int, lease_id: str | None, condition: Condition | None = None) -> None:
        """Set Blob Properties with a size: smaller or larger, and what is cut off is gone."""
        self._check(condition)
        self._may_write(lease_id)
        self._modified()
        self.shrunk |= size < self.size
        self.size = size
        self.store.resize(size)
        self.allocated = {page for page in self.allocated if page * PAGE < size}

    def set_metadata(
        self, metadata: Mapping[str, str], lease_id: str | None, condition: Condition | None = None
    ) -> str:
        """Set Blob Metadata."""
        self._check(condition)
        self._may_write(lease_id)
        self._modified()
        self.metadata = dict(metadata)
        return self.etag

    def set_content(self, content: Mapping[str, str], lease_id: str | None, condition: Condition | None = None) -> str:
        """Set Blob Properties: all headers of the content."""
        self._check(condition)
        self._may_write(lease_id)
        self._modified()
        self.content = dict(content)
        return self.etag

    def snapshot(self, metadata: Mapping[str, str], lease_id: str | None, condition: Condition | None = None) -> str:
        """Snapshot Blob: what the blob holds, and this metadata, in `snapshots`. Any lease id is checked."""
        self._exists()
        self._check(condition)
        if lease_id is not None:
            self._may_write(lease_id)
        time = f"2026-01-31T12:00:00.{len(self.snapshots):07d}Z"
        self.snapshots[time] = (self.store.peek(0, self.size), dict(metadata))
        return time

    def acquire(self, duration_s: int, lease_id: str, condition: Condition | None = None) -> str:
        """Lease Blob, acquire."""
        self._exists()
        self._check(condition)
        if self.lease_state == "leased" and self._lease_id != lease_id:
            raise refuse(409, "LeaseAlreadyPresent")
        self._lease_id, self._lease_state = lease_id, "leased"
        self._lease_s = math.inf if duration_s == -1 else duration_s
        self._lease_ends = self._clock() + self._lease_s
        return lease_id

    def renew(self, lease_id: str) -> None:
        """Lease Blob, renew: also an expired lease, unless the blob was leased or changed since."""
        self._exists()
        if self._lease_id != lease_id:
            raise refuse(409, "LeaseIdMismatchWithLeaseOperation")
        if self.lease_state == "broken":
            raise refuse(409, "LeaseIsBrokenAndCannotBeRenewed")
        self._lease_state = "leased"
        self._lease_ends = self._clock() + self._lease_s

    def release(self, lease_id: str, condition: Condition | None = None) -> None:
        """Lease Blob, release."""
        self._exists()
        self._check(condition)
        if self._lease_id != lease_id:
            raise refuse(409, "LeaseIdMismatchWithLeaseOperation")
        self._lease_id, self._lease_state = None, "available"

    def break_now(self, condition: Condition | None = None) -> None:
        """Lease Blob, break with a period of 0."""
        self._exists()
        self._check(condition)
        if self._lease_id is None:
            raise refuse(409, "LeaseNotPresentWithLeaseOperation")
        self._lease_state = "broken"

    def _exists(self) -> None:
        if self.gone:
            raise refuse(404, "BlobNotFound")

    def _check(self, condition: Condition | None) -> None:
        if condition is None:
            return
        until = parse_http_date(condition.if_unmodified_since)
        if (condition.if_match and condition.if_match != self.etag) or (
            until is not None and int(self.modified_at) > until
        ):
            raise refuse(412, "ConditionNotMet")

    def _may_write(self, lease_id: str | None) -> None:
        self._exists()
        if self.lease_state == "leased":
            if lease_id is None:
                raise refuse(412, "LeaseIdMissing")
            if lease_id != self._lease_id:
                raise refuse(412, "LeaseIdMismatchWithBlobOperation")
        elif lease_id is not None:
            raise refuse(412, "LeaseLost" if lease_id == self._lease_id else "LeaseNotPresentWithBlobOperation")

    def _modified(self) -> None:
        """Another ETag; and a change without a lease makes the service forget an expired one: no renewal any more."""
        self.version += 1
        self.modified_at = trio.current_time()
        if self.lease_state in ("expired", "broken"):
            self._lease_id, self._lease_state = None, "available"
