"""The one interface of the block layer, and its whole contract.

Every layer in this package is a Store over another Store; `PageBlob` is the lowest, `stack.py` knows the order.

The contract, for every layer and for the whole stack:

1. Offsets and lengths are bytes, multiples of 512 (`PAGE`), length > 0, and offset + length <= size.
   The caller keeps this; `testing.CheckedStore` asserts it between any two layers, so that no layer repeats it.
2. Any number of calls may run at the same time, with one exception: calls that modify (write, zero) and overlap
   each other are never in flight together below `Order`. Above it they may be; Order runs them in the order of arrival.
   A read that overlaps a modifying call in flight returns, for each page, the old or the new content.
3. When write or zero returns, every later read sees the new content. When flush returns, everything that
   returned before flush was called survives the loss of this machine.
4. Failure is a StoreError. After a failed or cancelled write or zero each page of the range holds the old or the
   new content, and a late copy of the request may still be applied for as long as no later modifying call on an
   overlapping range has returned. It is never applied after that.
5. Cancellation (trio.Cancelled) may strike any call at any await. It leaves the store usable, and point 4 holds.
6. A buffer given to write is not changed by the caller until write returns, and is not kept by the store after.
   A buffer returned by read is not changed by anybody.
7. aclose ends background work and frees what the layer owns, then closes the layer below. It flushes nothing by
   itself: who wants durability calls flush. Calls after aclose are errors of the caller.
8. A store can become larger, never smaller. The caller of grow keeps to whole pages, to no less than `size`, and to one
   grow at a time. Every other call may be in flight meanwhile, and ends as it would have ended without it. PageBlob
   has the service resize the blob; nobody else does, and no copy of a request makes a blob smaller, however late.
   When grow returns, every call up to the new size is served; what is new reads as zeros, and extents does not name
   it. A layer changes in the very step in which the call below returned, so that all sizes change in one step; where a
   layer keeps nothing that depends on it, its size is the inner one's. When grow fails or is cancelled, size is what it
   was; the blob may have the new size nevertheless, now or a moment later, and grow may be called again.

All methods are abstract and there is no pass-through base class: a forgotten method must be a TypeError at
construction, not silent corruption.

A layer may offer a second way to read and to write, without coroutines, for calls that have nothing to wait for but the
service (passage.py). It is the same call, by the same contract; who makes calls may use either, and needs to know
both, as the second one is not always to be had.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TypeAlias

import trio

from blobfuse_dysk.store.passage import Lane

__all__ = ["MAX_WRITE", "PAGE", "Buffer", "Extent", "Store"]

PAGE = 512  # bytes; the unit of a page blob
MAX_WRITE = 4 << 20  # bytes; the most one Put Page takes

Buffer: TypeAlias = bytes | bytearray | memoryview
Extent: TypeAlias = tuple[int, int]
"""(offset, length) in bytes."""


class Store(trio.abc.AsyncResource):
    """An array of 512-byte pages. See the module's text for the contract."""

    plain_read: Lane | None = None
    """The other way to read; None: there is none."""
    plain_write: Lane | None = None
    """The other way to write."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Bytes. Only grow changes it."""

    @abstractmethod
    async def read(self, offset: int, length: int) -> Buffer:
        """Return exactly `length` bytes from `offset`. Pages never written read as zeros."""

    @abstractmethod
    async def write(self, offset: int, data: Buffer) -> None:
        """Store `data` (its length a multiple of 512, at most MAX_WRITE) at `offset`."""

    @abstractmethod
    async def zero(self, offset: int, length: int) -> None:
        """Make the range read as zeros, and free its pages where the layer can. Any length up to size."""

    @abstractmethod
    async def flush(self) -> None:
        """Return when everything that returned before this call is durable. Raises if any of it was lost."""

    @abstractmethod
    async def extents(self, offset: int, length: int) -> list[Extent]:
        """Return the ranges inside [offset, offset + length) that may hold something other than zeros.

        Sorted, not overlapping, clipped to the range asked for. Never misses a non-zero page; may name pages that
        are zeros. Source: Get Page Ranges.
        """

    @abstractmethod
    async def grow(self, size: int) -> None:
        """Make the store `size` bytes large; nothing to do if it is. See point 8. Source: Set Blob Properties."""

    @abstractmethod
    async def aclose(self) -> None:
        """End background work, free resources, close the layer below. Idempotent."""
