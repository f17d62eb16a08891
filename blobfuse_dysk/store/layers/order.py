"""Overlapping modifying calls one after the other, in the order of arrival. Reads and flush pass.

Theory. Below this layer no two modifying calls that overlap are ever in flight, whatever the callers do. Fence needs
that (a late copy of a request is fenced off before an overlapping one is sent, because the overlapping one starts only
when the first has ended), and Sparse needs it (nobody writes a range whose clear is being acknowledged). The kernel
above a loop device does not promise it, several openers of the device do not, and neither does a cache.

`enter` comes before the first await, so the order is that of the calls; `leave` comes in finally, so a cancelled or
failed call cannot block the range. See rangelock.py.
"""

from __future__ import annotations

from collections.abc import Awaitable

from blobfuse_dysk.store.contract import Buffer, Extent, Store
from blobfuse_dysk.store.parts.rangelock import RangeLock, Ticket
from blobfuse_dysk.store.passage import NO, Passage, Rest, begin_of

__all__ = ["Order"]


class Order(Store):
    """Any calls at any time are allowed here: this is where point 2 of the contract comes from."""

    def __init__(self, inner: Store) -> None:
        self._inner = inner
        self._lock = RangeLock()
        write = inner.plain_write
        self.plain_read = inner.plain_read
        self.plain_write = write and write.under(self._begin_write, self._end_write, self._rest_of_write)
        self._begin_write_below = begin_of(write)

    @property
    def size(self) -> int:
        """The inner one's."""
        return self._inner.size

    async def read(self, offset: int, length: int) -> Buffer:
        """Pass."""
        return await self._inner.read(offset, length)

    async def write(self, offset: int, data: Buffer) -> None:
        """Write when every older overlapping call has ended."""
        ticket = self._lock.enter(offset, len(data))
        try:
            if ticket.blockers:
                await ticket.wait()
            await self._inner.write(offset, data)
        finally:
            self._lock.leave(ticket)

    async def zero(self, offset: int, length: int) -> None:
        """Zero when every older overlapping call has ended."""
        ticket = self._lock.enter(offset, length)
        try:
            if ticket.blockers:
                await ticket.wait()
            await self._inner.zero(offset, length)
        finally:
            self._lock.leave(ticket)

    async def flush(self) -> None:
        """Pass: what returned before is the layer's below."""
        await self._inner.flush()

    async def extents(self, offset: int, length: int) -> list[Extent]:
        """Pass."""
        return await self._inner.extents(offset, length)

    async def grow(self, size: int) -> None:
        """Grow when every older modifying call has ended, and before any later one begins.

        Each of them changes the blob, and growing begins again where the blob changed (pageblob.py).
        """
        ticket = self._lock.enter(0, self.size)
        try:
            if ticket.blockers:
                await ticket.wait()
            await self._inner.grow(size)
        finally:
            self._lock.leave(ticket)

    async def aclose(self) -> None:
        """Close the layer below."""
        await self._inner.aclose()

    # -- the plain lane (passage.py) --

    def _begin_write(self, passage: Passage) -> int:
        lock, offset, length = self._lock, passage.offset, passage.length
        if not lock.is_free(offset, length):
            return NO
        began = self._begin_write_below(passage)
        if began:
            passage.ticket = lock.enter_free(offset, length)
        return began

    def _end_write(self, passage: Passage) -> None:
        self._lock.leave(passage.ticket)

    async def _rest(self, ticket: Ticket, call: Awaitable[None]) -> None:
        try:
            await call
        finally:
            self._lock.leave(ticket)

    def _rest_of_write(self, passage: Passage, rest: Rest) -> Rest:
        return self._rest(passage.ticket, rest)
