"""The lowest layer: one call, one request to the page blob; one attempt, no retry.

Theory. What makes a write safe is on the request itself: the lease id and `x-ms-if-sequence-number-eq: epoch`, read
from the Guard at the moment the request is built. Between `guard.permit()` and the call of the client there must be
no await: else the request could be built with an epoch that was already given up (harmless, the service refuses it)
or with a lease known to be lost (the service refuses that too, but we do not rely on one lock where we have two).
If the client itself waits (for a connection), an older epoch may still be sent: refused with Kind.EPOCH, sent again.

A PageBlob without a guard is read-only: no write can be sent without lease and epoch.

flush does nothing: Put Page is durable when it is acknowledged.

Growing. Set Blob Properties takes the new size whatever the present one is, and frees the pages above it: a copy of
such a request that lands after the blob grew again, and was written to, would cut off what was written. So it carries
the lease, and as its condition the ETag of a look that showed our epoch and a smaller size. Whatever changes the blob
makes it void, and what may still land (StoreError.unknown) makes Fence raise the epoch, which changes the blob, before
anything else is sent. Other calls, which Order keeps away, change it as well: then it is looked at again.
Source: https://learn.microsoft.com/rest/api/storageservices/set-blob-properties
"""

from __future__ import annotations

from collections.abc import Awaitable

import trio

from blobfuse_dysk.azure.wire import Condition
from blobfuse_dysk.detached import attach
from blobfuse_dysk.errors import Kind, ServiceError, StoreError, TransportError
from blobfuse_dysk.invariant import broken
from blobfuse_dysk.store.blobapi import BlobApi
from blobfuse_dysk.store.contract import PAGE, Buffer, Extent, Store
from blobfuse_dysk.store.lease.token import Guard
from blobfuse_dysk.store.parts.extents import joined
from blobfuse_dysk.store.parts.meter import Meter
from blobfuse_dysk.store.passage import NO, UNDER_WAY, Lane, Passage, Rest
from blobfuse_dysk.store.serviceerrors import is_service_timeout, to_store_error

__all__ = ["PageBlob"]

ATTEMPT_TIMEOUT_S = 30.0
GROW_TIMEOUT_S = 10.0  # for each request of grow: modifying calls wait for it
MOST_LOOKS = 10  # of one grow, with pauses that double: 5 s together
FIRST_PAUSE_S = 0.005
MOST_RANGES = 1 << 20  # of a list; of more, close neighbours are joined
MOST_EMPTY = 1000  # pieces of a list in a row without a range
SMALLEST_SEGMENT = 64 << 20  # bytes; a page list of a piece this small is never too much for the service


class PageBlob(Store):
    """One page blob over its client. Any number of calls may run at once; overlapping writes are the caller's fault."""

    def __init__(
        self,
        client: BlobApi,
        size: int,
        guard: Guard | None,
        *,
        attempt_timeout_s: float = ATTEMPT_TIMEOUT_S,
        meter: Meter | None = None,
    ) -> None:
        self._size = size
        self._client = client
        self._guard = guard
        self._timeout_s = attempt_timeout_s
        self._meter = Meter() if meter is None else meter
        self.plain_read = Lane(self._begin_read, (self._end_read,), (self._rest_of_read,))
        self.plain_write = Lane(self._begin_write, (self._end_write,), (self._rest_of_write,)) if guard else None
        self._segment = size  # bytes of the blob that one page list covers; halved when that takes too long

    @property
    def size(self) -> int:
        """Bytes that are used of the blob."""
        return self._size

    async def read(self, offset: int, length: int) -> Buffer:
        """Get Blob for a range."""
        started = self._meter.start()
        return await self._read(
            offset, length, started, self._client.get_range(offset, length, timeout_s=self._timeout_s)
        )

    async def _read(self, offset: int, length: int, started: float, call: Awaitable[Buffer]) -> Buffer:
        try:
            data = await call
            if len(data) != length:  # a client that breaks its promise (BlobApi): other bytes would be read
                raise StoreError(f"reading {length} bytes at {offset}: got {len(data)} bytes", Kind.CORRUPT)
        except (ServiceError, TransportError) as error:
            failed = to_store_error(error, f"reading {length} bytes at {offset}", modifies=False)
            self._meter.failure("get", failed)
            raise failed from error
        except BaseException as error:
            self._meter.failure("get", error)
            raise
        self._meter.success("get", length, started)
        return data

    async def write(self, offset: int, data: Buffer) -> None:
        """Put Page, update."""
        lease_id, epoch = self._permit()
        started = self._meter.start()
        call = self._client.put_pages(offset, data, lease_id=lease_id, epoch=epoch, timeout_s=self._timeout_s)
        await self._write(offset, len(data), epoch, started, call)

    async def _write(self, offset: int, length: int, epoch: int, started: float, call: Awaitable[None]) -> None:
        try:
            await call
        except (ServiceError, TransportError) as error:
            failed = to_store_error(error, f"writing {length} bytes at {offset}", modifies=True, epoch=epoch)
            self._meter.failure("put", failed)
            raise failed from error
        except BaseException as error:
            self._meter.failure("put", error)
            raise
        self._meter.success("put", length, started)

    # -- the plain lane (passage.py) --

    def _begin_read(self, passage: Passage) -> int:
        if not self._client.begin_get(passage, self._timeout_s):
            return NO
        self._meter.in_flight += 1
        return UNDER_WAY

    def _end_read(self, passage: Passage) -> None:
        self._meter.success_at("get", passage.length, passage.started, passage.ended)

    def _rest_of_read(self, passage: Passage, rest: Rest) -> Rest:
        return self._read(passage.offset, passage.length, passage.started, rest)

    def _begin_write(self, passage: Passage) -> int:
        guard, data = self._guard, passage.data
        assert guard is not None
        assert data is not None
        if not guard.certain:
            return NO
        epoch = guard.epoch
        if not self._client.begin_put(passage, data, guard.lease_id, epoch, self._timeout_s):
            return NO
        passage.epoch = epoch
        self._meter.in_flight += 1
        return UNDER_WAY

    def _end_write(self, passage: Passage) -> None:
        self._meter.success_at("put", passage.length, passage.started, passage.ended)

    def _rest_of_write(self, passage: Passage, rest: Rest) -> Rest:
        return self._write(passage.offset, passage.length, passage.epoch, passage.started, rest)

    async def zero(self, offset: int, length: int) -> None:
        """Put Page, clear."""
        lease_id, epoch = self._permit()
        started = self._meter.start()
        try:
            await self._client.clear_pages(offset, length, lease_id=lease_id, epoch=epoch, timeout_s=self._timeout_s)
        except (ServiceError, TransportError) as error:
            failed = to_store_error(error, f"clearing {length} bytes at {offset}", modifies=True, epoch=epoch)
            self._meter.failure("clear", failed)
            raise failed from error
        except BaseException as error:
            self._meter.failure("clear", error)
            raise
        self._meter.success("clear", length, started)

    async def flush(self) -> None:
        """Nothing to do: what was acknowledged is durable."""
        await attach()
        await trio.lowlevel.checkpoint()

    async def extents(self, offset: int, length: int) -> list[Extent]:
        """Get Page Ranges, in segments; a segment that takes the service too long is halved and asked for again."""
        found: list[Extent] = []
        end = offset + length
        while offset < end:
            piece = min(self._segment, end - offset)
            try:
                found += await self._list(offset, piece)
            except (ServiceError, TransportError) as error:
                if piece > SMALLEST_SEGMENT and is_service_timeout(error):
                    self._segment = max(SMALLEST_SEGMENT, _half(piece))
                    continue
                raise to_store_error(error, f"page list of {piece} bytes at {offset}", modifies=False) from error
            if len(found) > MOST_RANGES:
                found = _coarser(found)
            offset += piece
            self._segment = min(self._segment * 2, self._size)
        return joined(found)

    async def grow(self, size: int) -> None:
        """Get Blob Properties, Set Blob Properties, and both again if the blob changed in between.

        Raises StoreError: REJECTED if the blob is larger than `size`; CHANGED when it changes all the time, which it
        does not while no other modifying call is in flight. A blob of just this size is taken as it is.
        """
        pause_s = FIRST_PAUSE_S
        for _ in range(MOST_LOOKS):
            if await self._resize(size):
                if size < self._size:
                    broken(f"the disk of {self._size} bytes was made one of {size}")
                self._size = size
                return
            await trio.sleep(pause_s)
            pause_s *= 2
        raise StoreError(
            f"growing to {size} bytes: the blob changes all the time", Kind.CHANGED, remedy="try again in a moment"
        )

    async def aclose(self) -> None:
        """Close the client's connections."""
        await self._client.aclose()

    def _permit(self) -> tuple[str, int]:
        if self._guard is None:
            raise StoreError("the disk is attached read-only", Kind.REJECTED)
        return self._guard.permit()

    async def _resize(self, size: int) -> bool:
        """Make the blob `size` bytes large; False if it changed after it was looked at, and nothing was done."""
        what = f"growing to {size} bytes"
        _, epoch = self._permit()
        started = self._meter.start()
        try:
            blob = await self._client.properties(timeout_s=GROW_TIMEOUT_S)
        except (ServiceError, TransportError) as error:
            failed = to_store_error(error, what, modifies=False)
            self._meter.failure("resize", failed)
            raise failed from error
        if blob.sequence_number != epoch:
            raise StoreError(f"{what}: another epoch is in force", Kind.EPOCH, immediate=True, epoch=epoch)
        if blob.size > size:
            raise StoreError(f"{what}: the blob has {blob.size} bytes", Kind.REJECTED, remedy="grow it to that or more")
        if blob.size < size:
            lease_id, _ = self._permit()
            condition = Condition(if_match=blob.etag)
            try:
                await self._client.resize(size, lease_id=lease_id, condition=condition, timeout_s=GROW_TIMEOUT_S)
            except (ServiceError, TransportError) as error:
                failed = to_store_error(error, what, modifies=True, epoch=epoch, conditional=True)
                self._meter.failure("resize", failed)
                if failed.kind is Kind.CHANGED:
                    return False
                raise failed from error
            except BaseException as error:
                self._meter.failure("resize", error)
                raise
        self._meter.success("resize", 0, started)
        return True

    async def _list(self, offset: int, length: int) -> list[Extent]:
        """All pages of the list of one segment, clipped to it.

        Each piece must lead on: its last range beyond those before, or, if it has none, by a marker not seen since.
        """
        found: list[Extent] = []
        marker: str | None = None
        reached = 0  # where the last range named so far ends
        seen: set[str] = set()  # markers since then
        while True:
            started = self._meter.start()
            try:
                page = await self._client.page_ranges(offset, length, marker=marker, timeout_s=self._timeout_s)
            except BaseException as error:
                self._meter.failure("list", error)
                raise
            self._meter.success("list", 0, started)
            for start, size in page.ranges:
                first, last = max(start, offset), min(start + size, offset + length)
                if first < last:
                    found.append((first, last - first))
            if len(found) > MOST_RANGES:
                found = _coarser(found)
            if page.marker is None:
                return found
            end = sum(page.ranges[-1]) if page.ranges else 0
            if page.marker in seen or (end <= reached if page.ranges else len(seen) > MOST_EMPTY):
                raise StoreError(f"page list at {offset}: its markers lead nowhere", Kind.CORRUPT)
            if page.ranges:
                reached = end
                seen.clear()
            marker = page.marker
            seen.add(marker)


def _coarser(extents: list[Extent]) -> list[Extent]:
    """At most half of MOST_RANGES, with the smallest gaps closed: a superset, which is what a map must be."""
    runs, gap = joined(extents), PAGE
    while len(runs) > MOST_RANGES // 2:
        runs, gap = joined(runs, gap), gap * 2
    return runs


def _half(length: int) -> int:
    """Half of a segment, in whole pages."""
    return length // 2 // 512 * 512
