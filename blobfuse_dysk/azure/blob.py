"""One page blob as the service shows it: each method is one operation of the REST interface, asked once.

How one is asked: operation.py.

Source: https://learn.microsoft.com/rest/api/storageservices/operations-on-page-blobs
"""

from __future__ import annotations

from collections.abc import Coroutine, Mapping
from functools import partial
from typing import Any

import trio

from blobfuse_dysk.azure import wire
from blobfuse_dysk.azure.credential.credential import Credential, check_transport
from blobfuse_dysk.azure.operation import Operations
from blobfuse_dysk.azure.pagelist import ChangedList, parse_changed_list, parse_page_list
from blobfuse_dysk.azure.plainway import Begun, PlainWay, Put, Then
from blobfuse_dysk.azure.pool import HttpPool
from blobfuse_dysk.azure.tls import tls_context
from blobfuse_dysk.azure.wire import BlobProperties, Buffer, Condition, PageList, Reply, SequenceNumber
from blobfuse_dysk.disk import DiskAddress, check_snapshot
from blobfuse_dysk.errors import ServiceError, TransportError, UsageError

__all__ = ["BlobClient"]


class BlobClient(Operations, trio.abc.AsyncResource):
    """A page blob, or a snapshot of one. Any number of calls may run at the same time.

    All methods raise ServiceError (the service refused: not done, but for a 5xx, which may have been) or
    TransportError (no whole answer; `sent` tells whether the request may have been done) and nothing else. A success
    whose answer is damaged is a TransportError with sent=True. Offsets and lengths are bytes, multiples of 512.
    timeout_s is for the whole call. Cancellation leaves the client usable; the request may or may not be done.
    """

    def __init__(
        self,
        address: DiskAddress,
        credential: Credential,
        *,
        pool: HttpPool | None = None,
        checksum: bool = False,
        ca_file: str | None = None,
    ) -> None:
        """address.endpoint must be filled in (credential/resolve.py). checksum: MD5 on each body of pages, both ways.

        pool: shared with other clients of the endpoint and closed by who made it; else the client has its own.
        Raises UsageError when a secret would leave this machine unencrypted.
        """
        assert address.endpoint is not None
        check_transport(address.endpoint, credential)
        credential.warn()
        self._owns_pool = pool is None
        if pool is None:
            tls = tls_context(ca_file or credential.ca_file) if address.endpoint.scheme == "https" else None
            pool = HttpPool(address.endpoint, ssl_context=tls, proxy=address.proxy)
        super().__init__(address, credential, pool)
        self._requests = wire.BlobRequests(address)
        self._checksum = checksum
        self._way = PlainWay(self._requests, credential, pool, self._lost) if pool.plain and not checksum else None

    def signed_by(self, credential: Credential) -> BlobClient:
        """A client of the same blob, on the same connections, with another credential."""
        return BlobClient(self.address, credential, pool=self._pool)

    async def get_range(self, offset: int, length: int, *, timeout_s: float) -> Buffer:
        """Get Blob: return exactly length bytes from offset. The service has checksums of at most 4 MiB only."""
        begun = None
        if self._way and (now := self._now()) < self._look_at_clock:
            answer = await self._way.exchange(offset, length, None, None, None, now + timeout_s)
            if isinstance(answer, bytes):
                return answer
            begun = answer
        return await self._get(offset, length, timeout_s, begun)

    def begin_get(self, then: Then, timeout_s: float) -> bool:
        """get_range of then's range, if nothing has to be waited for but the answer; see plainway.Then for the rest."""
        way, now = self._way, then.started
        if way is None or now >= self._look_at_clock:
            return False
        return way.begin(then, self._rest_of, then.offset, then.length, None, None, None, now + timeout_s)

    def begin_put(self, then: Then, data: Buffer, lease_id: str | None, epoch: int | None, timeout_s: float) -> bool:
        """put_pages, likewise."""
        way, now = self._way, then.started
        if way is None or now >= self._look_at_clock:
            return False
        return way.begin(then, self._rest_of, then.offset, then.length, data, lease_id, epoch, now + timeout_s)

    async def _rest_of(self, then: Then, put: Put | None, exchange: Coroutine[Any, Any, Begun]) -> Buffer | None:
        begun = await exchange
        if put is None:
            return await self._get(then.offset, then.length, 0.0, begun)
        await self._put(then.offset, *put, 0.0, begun)
        return None

    async def _get(self, offset: int, length: int, timeout_s: float, begun: Begun | None) -> Buffer:
        checksum = self._checksum and length <= wire.MAX_CHECKSUM
        request = self._requests.get_range(offset, length, checksum=checksum)
        reply = await self._ask(request, 206, "read", timeout_s, begun)
        body = reply.body
        span = b"bytes %d-%d/" % (offset, offset + length - 1)
        if len(body) != length or not reply.has(b"\r\ncontent-range: " + span):
            told = reply.header("content-range")
            if len(body) != length or not told.startswith(span.decode()):
                raise self._short_read(offset, length, len(body), told)
        if checksum and reply.header("content-md5") != wire.content_md5(body):
            raise self._damaged("read", "the body does not have the checksum that the service sent")
        return body

    async def put_pages(
        self, offset: int, data: Buffer, *, lease_id: str | None, epoch: int | None, timeout_s: float
    ) -> None:
        """Put Page, update: at most 4 MiB. epoch: done only if the blob's sequence number equals it (else 412)."""
        begun = None
        if self._way and (now := self._now()) < self._look_at_clock:
            answer = await self._way.exchange(offset, len(data), data, lease_id, epoch, now + timeout_s)
            if isinstance(answer, bytes):
                return
            begun = answer
        await self._put(offset, data, lease_id, epoch, timeout_s, begun)

    async def _put(
        self, offset: int, data: Buffer, lease_id: str | None, epoch: int | None, timeout_s: float, begun: Begun | None
    ) -> None:
        request = self._requests.put_pages(offset, data, lease_id=lease_id, epoch=epoch, checksum=self._checksum)
        await self._ask(request, 201, "write", timeout_s, begun)

    async def clear_pages(
        self, offset: int, length: int, *, lease_id: str | None, epoch: int | None, timeout_s: float
    ) -> None:
        """Put Page, clear: the range reads as zeros and is no longer allocated. Any length."""
        request = self._requests.clear_pages(offset, length, lease_id=lease_id, epoch=epoch)
        await self._ask(request, 201, "clear", timeout_s)

    async def page_ranges(
        self,
        offset: int,
        length: int,
        *,
        marker: str | None = None,
        max_results: int | None = None,
        timeout_s: float,
    ) -> PageList:
        """Get Page Ranges: the allocated extents in [offset, offset + length), one answer of the service.

        PageList.marker is to be given as marker for the next piece, with the same offset and length.
        """
        request = self._requests.page_ranges(offset, length, marker=marker, max_results=max_results)
        reply = await self._ask(request, 200, "page list", timeout_s)
        try:
            return parse_page_list(reply.body)
        except wire.DamagedAnswerError as error:
            raise self._damaged("page list", str(error)) from error

    async def changed_ranges(
        self,
        previous: str,
        offset: int,
        length: int,
        *,
        marker: str | None = None,
        max_results: int | None = None,
        timeout_s: float,
    ) -> ChangedList:
        """Get Page Ranges with a previous snapshot, by its time: what was written and what was cleared since.

        Otherwise as page_ranges. A service that does not know the parameter lists all that is allocated instead, and
        nothing in its answer shows that: see disks/ranges.py.
        """
        request = self._requests.page_ranges(offset, length, marker=marker, max_results=max_results, previous=previous)
        reply = await self._ask(request, 200, "list of changes", timeout_s)
        try:
            return parse_changed_list(reply.body)
        except wire.DamagedAnswerError as error:
            raise self._damaged("list of changes", str(error)) from error

    async def properties(self, *, timeout_s: float) -> BlobProperties:
        """Get Blob Properties."""
        reply = await self._ask(self._requests.properties(), 200, "properties", timeout_s)
        try:
            return wire.parse_properties(reply)
        except wire.DamagedAnswerError as error:
            raise self._damaged("properties", str(error)) from error

    async def raise_sequence_number(
        self, value: int, *, lease_id: str | None, condition: Condition | None = None, timeout_s: float
    ) -> SequenceNumber:
        """Set Blob Properties, action max: return the sequence number that is now in force, at least `value`."""
        request = self._requests.raise_sequence_number(value, lease_id=lease_id, condition=condition)
        reply = await self._ask(request, 200, "raise of the sequence number", timeout_s)
        told = reply.header("x-ms-blob-sequence-number")
        number = wire.number(told)
        if number is None or number < value:
            how = f"answered with {told[:40]!r} where {value} was asked for"
            if value > 1 << 53:
                how += "; Azurite rounds numbers above 2^53, so set it back to 0 there"
            raise self._damaged("raise of the sequence number", how)
        return SequenceNumber(number, self._etag(reply, "raise of the sequence number"))

    async def resize(self, size: int, *, lease_id: str | None, condition: Condition, timeout_s: float) -> None:
        """Set Blob Properties: make the blob `size` bytes large, which cuts off what is above, whatever its size is.

        Unlike a page write it cannot be made to depend on the sequence number, hence the condition.
        """
        request = self._requests.resize(size, lease_id=lease_id, condition=condition)
        await self._ask(request, 200, "resize", timeout_s)

    async def acquire_lease(
        self, duration_s: int, *, proposed_id: str | None, condition: Condition | None = None, timeout_s: float
    ) -> str:
        """Lease Blob, acquire: return the lease id. duration_s: 15 to 60, or -1 for infinite.

        With proposed_id the call can be repeated: who has the lease under that id already gets it anew.
        """
        request = self._requests.lease(
            "acquire", condition=condition, lease_duration=duration_s, proposed_lease_id=proposed_id
        )
        reply = await self._ask(request, 201, "lease", timeout_s)
        lease_id = reply.header("x-ms-lease-id")
        if not lease_id:
            raise self._damaged("lease", "no lease id came")
        return lease_id

    async def renew_lease(self, lease_id: str, *, timeout_s: float) -> None:
        """Lease Blob, renew: the lease runs anew from when the service did it."""
        await self._ask(self._requests.lease("renew", lease_id=lease_id), 200, "lease renewal", timeout_s)

    async def release_lease(self, lease_id: str, *, condition: Condition | None = None, timeout_s: float) -> None:
        """Lease Blob, release."""
        request = self._requests.lease("release", lease_id=lease_id, condition=condition)
        await self._ask(request, 200, "lease release", timeout_s)

    async def break_lease(self, *, period_s: int = 0, condition: Condition | None = None, timeout_s: float) -> None:
        """Lease Blob, break: whoever holds the lease loses it after period_s seconds, 0 to 60."""
        request = self._requests.lease("break", condition=condition, lease_break_period=period_s)
        await self._ask(request, 202, "lease break", timeout_s)

    async def set_metadata(
        self, metadata: Mapping[str, str], *, lease_id: str | None, condition: Condition | None = None, timeout_s: float
    ) -> str:
        """Set Blob Metadata: replaces all of it. Returns the ETag that this gave the blob."""
        make = partial(self._requests.set_metadata, metadata, lease_id=lease_id, condition=condition)
        return self._etag(await self._ask_with_metadata(make, 200, "metadata", timeout_s), "metadata")

    async def snapshot(
        self, metadata: Mapping[str, str], *, lease_id: str | None, condition: Condition | None = None, timeout_s: float
    ) -> str:
        """Snapshot Blob: return the snapshot's time, which names it. metadata: of the snapshot, not the blob's.

        A lease id is not needed; with one it is done only while that lease is active. If an answer is lost the snapshot
        may have been made, or be made at any later moment while the condition holds.
        Source: https://learn.microsoft.com/rest/api/storageservices/snapshot-blob
        """
        make = partial(self._requests.snapshot, metadata, lease_id=lease_id, condition=condition)
        taken = (await self._ask_with_metadata(make, 201, "snapshot", timeout_s)).header("x-ms-snapshot")
        try:
            check_snapshot(taken)
        except UsageError:
            raise self._damaged("snapshot", f"answered with the time {taken[:40]!r}") from None
        return taken

    async def set_content(
        self, content: Mapping[str, str], *, lease_id: str | None, condition: Condition, timeout_s: float
    ) -> str:
        """Set Blob Properties: replaces all headers of the content, as in BlobProperties. Returns the new ETag."""
        request = self._requests.set_content(content, lease_id=lease_id, condition=condition)
        return self._etag(await self._ask(request, 200, "properties", timeout_s), "properties")

    def hurry(self, timeout_s: float) -> None:
        """Let no call whose request is on its way now take longer than timeout_s from now."""
        self._pool.hurry(timeout_s)

    async def aclose(self) -> None:
        """Close the connections, unless the pool was given. Idempotent."""
        if self._owns_pool:
            await self._pool.aclose()
        else:
            await trio.lowlevel.checkpoint()

    def _short_read(self, offset: int, length: int, came: int, span: str) -> ServiceError | TransportError:
        """The service cuts a range that crosses the blob's end; anything else that does not fit is damaged."""
        size = wire.number(span.rpartition("/")[2])
        if size is not None and size < offset + length:
            message = f"read of {self.address}: {length} bytes at {offset} are beyond the blob's end at {size}"
            return ServiceError(message, status=416, code="InvalidRange")
        return self._damaged("read", f"{came} bytes came where {length} at {offset} were asked for")

    def _etag(self, reply: Reply, what: str) -> str:
        """The ETag that a change gave the blob: without one, what rests on it would have no condition."""
        etag = reply.header("etag")
        if not etag:
            raise self._damaged(what, "no ETag came")
        return etag
