"""ReadCache: read-ahead for sequential streams, into a bounded cache of pieces. Random reads pass straight through.

The kernel above has a page cache, so keeping what was read once would be keeping it twice. What this layer adds is the
kernel's missing knowledge that one large request takes hardly longer than a small one: it fetches ahead of sequential
streams (readahead.py recognises them), several pieces at a time. A piece is what one request brings. It begins where
the stream's next read will begin and, if the reads are large, ends where that read will end: then it is the answer, as
it came. What a stream has read of a piece is not read again, so a piece goes when all of it was read, and its memory is
the next one's, while it is in the processor's caches still.

States of a piece: absent, filling, present. `_pieces` has those that are not absent; no two of them overlap.

    read-ahead      absent -> filling                 no await between the look-up and the entry in `_pieces`
    filled          filling -> present
    failed          filling -> absent
    write, zero     filling or present -> absent      when the call below has ended
    read, evicted   present -> absent

Invariants
1. A present piece holds what the layer below would return, or a write that changes it is still in progress, so that a
   reader may be given either. A write drops its pieces when it ended, however it ended, with no await in between: a
   fill that began before or during it may hold the old content. It goes on, and what it brings is nobody's but theirs
   who waited for it before.
2. No read that begins after the drop is given any of such a fill; who began before read at the same time as the write.
3. No piece reaches beyond the store. What comes with growing is in no piece, and a read across the old end in none.
4. Random reads cost exactly one read of their own length below, and fill nothing.
5. Pieces, those on their way and those dropped on their way included, have `capacity` bytes at most. For a new one the
   oldest present ones go: they were fetched for streams that did not go on. If that does not do, it is not fetched.
6. Pieces of which none was read or filled for UNUSED_S are given back, all of them: the streams have ended, and memory
   of this process is locked.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext

import trio

from blobfuse_dysk.clock import bound_clock
from blobfuse_dysk.detached import attach
from blobfuse_dysk.errors import StoreError
from blobfuse_dysk.store.contract import Buffer, Extent, Store
from blobfuse_dysk.store.parts.readahead import LARGE, Quickest, Streams, unit_of
from blobfuse_dysk.store.passage import DONE, NO, Passage, Rest, begin_of

__all__ = ["ReadCache"]

NEAR = 8 << 20  # bytes between two reads that may be one stream's
UNUSED_S = 12.0  # so they are gone after twice that, at the latest


class _Piece:
    """[start, end) of the store. data: once it is present. unread: bytes that nobody was given yet."""

    __slots__ = ("data", "done", "end", "start", "unread")

    def __init__(self, start: int, end: int) -> None:
        self.start = start
        self.end = end
        self.unread = end - start
        self.done = trio.Event()
        self.data: Buffer | None = None


class ReadCache(Store):
    """See the module's text.

    capacity: bytes of pieces kept. window: the most bytes that are read ahead of one stream. read_ahead: a context
    in which requests count as read-ahead for the layers below.
    """

    def __init__(
        self,
        inner: Store,
        nursery: trio.Nursery,
        *,
        capacity: int,
        window: int,
        read_ahead: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._inner = inner
        self._nursery = nursery
        self._read_ahead = read_ahead
        self._capacity = capacity
        # What is fetched ahead must not be evicted before it is read: all streams together keep to half the cache.
        self._streams = Streams(self.size, min(window, capacity // 2))
        self._pieces: dict[int, _Piece] = {}  # by start, the oldest first
        self._starts: list[int] = []  # the same, sorted
        self._bytes = 0  # of pieces, and of fills whose piece was dropped
        self._filled = 0  # pieces
        self._aging = False  # whether `_age` runs
        self._large: list[int] = []  # offsets of large reads in progress
        self._quickest = Quickest()
        self._now = bound_clock()
        self.hits = 0
        self.misses = 0
        read, write = inner.plain_read, inner.plain_write
        self.plain_read = read and read.under(self._begin_read, self._end_read, self._rest_of_read)
        self.plain_write = write and write.under(write.begin, self._end_write, self._rest_of_write)
        self._begin_read_below = begin_of(read)

    @property
    def size(self) -> int:
        return self._inner.size

    async def read(self, offset: int, length: int) -> Buffer:
        end = offset + length
        if length < LARGE:
            ahead = self._streams.on_read(offset, end)
            if ahead is not None:
                self._fetch(*ahead, unit_of(length), ahead[0])
            return await self._read(offset, end)
        self._begin_large(offset, end)
        return await self._end_large(offset, self._read(offset, end))

    async def _end_large(self, offset: int, call: Awaitable[Buffer]) -> Buffer:
        """What is left of a large read."""
        try:
            return await call
        finally:
            self._large.remove(offset)

    async def _read(self, offset: int, end: int) -> Buffer:
        if self._starts and (pieces := self._covering(offset, end)):
            data = await self._given(pieces, offset, end)
            if data is not None:
                self.hits += 1
                return data
        self.misses += 1
        ask = self._ask if end - offset >= LARGE else self._inner.read  # one call less for a small one
        return await ask(offset, end - offset)

    async def _ask(self, offset: int, length: int) -> Buffer:
        """Read below; of a large read, take note how long that takes."""
        if length < LARGE:
            return await self._inner.read(offset, length)
        started = self._now()
        data = await self._inner.read(offset, length)
        self._quickest.add(self._now() - started)
        return data

    async def write(self, offset: int, data: Buffer) -> None:
        await self._write(offset, len(data), self._inner.write(offset, data))

    async def zero(self, offset: int, length: int) -> None:
        try:
            await self._inner.zero(offset, length)
        finally:
            self._drop(offset, offset + length)

    async def flush(self) -> None:
        await self._inner.flush()

    async def extents(self, offset: int, length: int) -> list[Extent]:
        return await self._inner.extents(offset, length)

    async def grow(self, size: int) -> None:
        await self._inner.grow(size)
        self._streams.size = size

    async def aclose(self) -> None:
        self._forget_present()
        await self._inner.aclose()

    def status(self) -> dict[str, object]:
        """JSON-able: reads answered from the cache, reads passed on, bytes kept."""
        kept = sum(piece.end - piece.start for piece in self._pieces.values() if piece.data is not None)
        return {"read_hits": self.hits, "read_misses": self.misses, "read_bytes": kept, "streams": len(self._streams)}

    async def _write(self, offset: int, length: int, call: Awaitable[None]) -> None:
        try:
            await call
        finally:
            self._drop(offset, offset + length)

    # -- the plain lane (passage.py) ---------------------------------------------------------------------------------

    def _begin_read(self, passage: Passage) -> int:
        """What is there is given at once. What is on its way has to be waited for, so that is not plain."""
        offset, length = passage.offset, passage.length
        end = offset + length
        if self._starts and (pieces := self._covering(offset, end)):
            if any(piece.data is None for piece in pieces):
                return NO
            began = DONE
            passage.result = self._taken(pieces, offset, end)
            self.hits += 1
        else:
            began = self._begin_read_below(passage)
            if began == NO:
                return NO
            self.misses += 1
        if length < LARGE:
            ahead = self._streams.on_read(offset, end)
            if ahead is not None:
                self._fetch(*ahead, unit_of(length), ahead[0])
        else:
            self._begin_large(offset, end)
            if began == DONE:
                self._large.remove(offset)
        return began

    def _end_read(self, passage: Passage) -> None:
        if passage.length >= LARGE:
            self._large.remove(passage.offset)
            self._quickest.add(passage.ended - passage.started)

    def _rest_of_read(self, passage: Passage, rest: Rest) -> Rest:
        return self._end_large(passage.offset, rest) if passage.length >= LARGE else rest

    def _end_write(self, passage: Passage) -> None:
        if self._starts:
            self._drop(passage.offset, passage.offset + passage.length)

    def _rest_of_write(self, passage: Passage, rest: Rest) -> Rest:
        return self._write(passage.offset, passage.length, rest)

    # -- what is there: no await in any of these but `_given` and `_fill` --------------------------------------------

    def _covering(self, offset: int, end: int) -> list[_Piece]:
        """The pieces that have all of the range, there or on their way; none if any of it is in no piece."""
        found = []
        at = bisect_right(self._starts, offset) - 1
        while 0 <= at < len(self._starts):
            piece = self._pieces[self._starts[at]]
            if not piece.start <= offset < piece.end:
                break
            found.append(piece)
            if piece.end >= end:
                return found
            offset = piece.end
            at += 1
        return []

    async def _given(self, pieces: list[_Piece], offset: int, end: int) -> Buffer | None:
        """The range, waiting for pieces on their way; None if one of them fails."""
        for piece in pieces:
            if piece.data is None:
                await attach()
                await piece.done.wait()
                if piece.data is None:
                    return None
        return self._taken(pieces, offset, end)

    def _taken(self, pieces: list[_Piece], offset: int, end: int) -> Buffer:
        """The range, of pieces that are there; those of which all was read go."""
        parts: list[Buffer] = []
        for piece in pieces:
            assert piece.data is not None
            first, last = max(offset, piece.start), min(end, piece.end)
            whole = last - first == piece.end - piece.start
            parts.append(piece.data if whole else memoryview(piece.data)[first - piece.start : last - piece.start])
        for piece in pieces:
            piece.unread -= min(end, piece.end) - max(offset, piece.start)
            if piece.unread <= 0 and self._pieces.get(piece.start) is piece:
                self._forget(piece)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _begin_large(self, offset: int, end: int) -> None:
        """A large read begins, which is in `_large` until it ends: see what is to be fetched ahead of it."""
        self._large.append(offset)
        near = 1 if self._quickest.is_far else sum(abs(offset - other) <= NEAR for other in self._large)
        ahead = self._streams.on_read(offset, end, near)
        if ahead is not None:
            self._fetch(*ahead, unit_of(end - offset), end)

    def _forget(self, piece: _Piece) -> None:
        del self._pieces[piece.start]
        del self._starts[bisect_right(self._starts, piece.start) - 1]
        if piece.data is not None:
            self._bytes -= piece.end - piece.start

    def _forget_present(self) -> None:
        for piece in [piece for piece in self._pieces.values() if piece.data is not None]:
            self._forget(piece)

    def _drop(self, offset: int, end: int) -> None:
        """Forget the pieces that have any of the range."""
        at = max(0, bisect_right(self._starts, offset) - 1)
        while at < len(self._starts) and self._starts[at] < end:
            piece = self._pieces[self._starts[at]]
            if piece.end > offset:
                self._forget(piece)
            else:
                at += 1

    def _fetch(self, start: int, end: int, unit: int, border: int) -> None:
        """Have pieces filled for what of [start, end) is in none: of `unit` bytes, counted from the border."""
        while start < end:
            at = bisect_right(self._starts, start)
            if at and self._pieces[self._starts[at - 1]].end > start:
                start = self._pieces[self._starts[at - 1]].end
                continue
            stop = min(end, start + ((border - start) % unit or unit))
            if at < len(self._starts):
                stop = min(stop, self._starts[at])
            if not self._make_room(stop - start):
                return
            piece = self._pieces[start] = _Piece(start, stop)
            insort(self._starts, start)
            self._bytes += stop - start
            self._nursery.start_soon(self._fill, piece)
            start = stop

    def _make_room(self, length: int) -> bool:
        """Have no more than the capacity with `length` bytes more; False if what is on its way leaves no room."""
        if self._bytes + length > self._capacity:
            for piece in [piece for piece in self._pieces.values() if piece.data is not None]:
                self._forget(piece)
                if self._bytes + length <= self._capacity:
                    break
        return self._bytes + length <= self._capacity

    async def _fill(self, piece: _Piece) -> None:
        try:
            with self._read_ahead():
                piece.data = await self._ask(piece.start, piece.end - piece.start)
        except StoreError:
            pass  # who needs the range reads it himself and gets the error as his own
        finally:
            wanted = self._pieces.get(piece.start) is piece
            if not wanted or piece.data is None:
                if wanted:
                    self._forget(piece)
                self._bytes -= piece.end - piece.start
            piece.done.set()
        if wanted:
            self._filled += 1
            if not self._aging:
                self._aging = True
                self._nursery.start_soon(self._age)

    async def _age(self) -> None:
        """Give the pieces back once they are not used any more."""
        while self._pieces:
            before = self.hits, self._filled
            await trio.sleep(UNUSED_S)
            if before == (self.hits, self._filled):
                self._forget_present()
        self._aging = False
