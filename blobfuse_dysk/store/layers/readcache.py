"""ReadCache: read-ahead for sequential streams, into a bounded cache of chunks. Random reads pass straight through.

The kernel above has a page cache, so keeping what was read once would be keeping it twice. What this layer adds is the
kernel's missing knowledge that one large request takes hardly longer than a small one: it fetches ahead of sequential
streams (readahead.py recognises them), several chunks at a time.

States of a chunk (CHUNK bytes, aligned): absent, filling, present.

    demand or read-ahead    absent -> filling                 no await between the look-up and the entry in `_fills`
    filled                  filling -> present                unless the fill is stale: then absent
    write, zero     present -> absent, filling -> filling and stale, when the call below has ended

Invariants
1. A chunk in the cache holds what the layer below would return, or a write that changes it is still in progress, so
   that a reader may be given either. A write drops its chunks when it ended, however it ended, with no await in
   between: a fill that began before or during it may hold the old content, and must not become present.
2. Nobody begins to wait for a stale fill; who began before it went stale read at the same time as the write.
3. No chunk is shorter than the store lets it be: growing drops the one at the old end, or makes its fill stale.
4. Random reads cost exactly one read of their own length below, and fill nothing.
5. Chunks of which none was read or filled for UNUSED_S are given back, all of them: the streams have ended, and memory
   of this process is locked.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import trio
from lru import LRU

from blobfuse_dysk.errors import StoreError
from blobfuse_dysk.store.contract import PAGE, Buffer, Extent, Store
from blobfuse_dysk.store.parts.readahead import Streams

__all__ = ["CHUNK", "ReadCache"]

CHUNK = 256 << 10  # bytes
UNUSED_S = 12.0  # so they are gone after twice that, at the latest


class _Fill:
    """A chunk on its way."""

    __slots__ = ("data", "done", "stale")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.stale = False
        self.data: Buffer | None = None


class ReadCache(Store):
    """See the module's text.

    capacity: bytes of chunks kept. window: the most bytes that are read ahead of one stream. read_ahead: a context
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
        self._chunks: LRU[int, memoryview] = LRU(max(1, capacity // CHUNK))
        # What is fetched ahead must not be evicted before it is read: all streams together keep to half the cache.
        self._streams = Streams(self.size, max(CHUNK, min(window, capacity // 2)))
        self._fills: dict[int, _Fill] = {}
        self._filled_chunks = 0
        self._aging = False  # whether `_age` runs
        self.hits = 0
        self.misses = 0

    @property
    def size(self) -> int:
        return self._inner.size

    async def read(self, offset: int, length: int) -> Buffer:
        end = offset + length
        ahead = self._streams.on_read(offset, end)
        if ahead is not None:
            self._fetch(*ahead)
        first, last = offset // CHUNK, (end - 1) // CHUNK
        data = self._present(first, last, offset, end)
        if data is None and self._fills:
            data = await self._filled(first, last, offset, end)
        if data is not None:
            self.hits += 1
            return data
        self.misses += 1
        return await self._inner.read(offset, length)

    async def write(self, offset: int, data: Buffer) -> None:
        length = len(data)
        try:
            await self._inner.write(offset, data)
        finally:
            self._drop(offset, length)

    async def zero(self, offset: int, length: int) -> None:
        try:
            await self._inner.zero(offset, length)
        finally:
            self._drop(offset, length)

    async def flush(self) -> None:
        await self._inner.flush()

    async def extents(self, offset: int, length: int) -> list[Extent]:
        return await self._inner.extents(offset, length)

    async def grow(self, size: int) -> None:
        before = self.size
        await self._inner.grow(size)
        if before % CHUNK:
            self._drop(before, PAGE)
        self._streams.size = size

    async def aclose(self) -> None:
        self._chunks.clear()
        await self._inner.aclose()

    def status(self) -> dict[str, object]:
        """JSON-able: reads answered from the cache, reads passed on, bytes kept."""
        kept = sum(map(len, self._chunks.values()))
        return {"read_hits": self.hits, "read_misses": self.misses, "read_bytes": kept, "streams": len(self._streams)}

    # -- what is there: no await in any of these but `_filled` and `_fill` -------------------------------------------

    def _present(self, first: int, last: int, offset: int, end: int) -> Buffer | None:
        """The range out of chunks that are all in the cache, or None."""
        if first == last:
            chunk = self._chunks.get(first)
            return None if chunk is None else chunk[offset - first * CHUNK : end - first * CHUNK]
        pieces = []
        for index in range(first, last + 1):
            chunk = self._chunks.get(index)
            if chunk is None:
                return None
            base = index * CHUNK
            pieces.append(chunk[max(offset - base, 0) : end - base])
        return b"".join(pieces)

    async def _filled(self, first: int, last: int, offset: int, end: int) -> Buffer | None:
        """The range, waiting for chunks on their way; None if one is neither there nor on its way, or went stale."""
        pieces = []
        for index in range(first, last + 1):
            if index not in self._chunks and index not in self._fills:
                return None
        for index in range(first, last + 1):
            chunk = self._chunks.get(index)
            if chunk is None:
                fill = self._fills.get(index)
                if fill is None or fill.stale:
                    return None
                await fill.done.wait()
                if fill.data is None:
                    return None
                chunk = memoryview(fill.data)
            base = index * CHUNK
            pieces.append(chunk[max(offset - base, 0) : end - base])
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _drop(self, offset: int, length: int) -> None:
        if not self._chunks and not self._fills:
            return
        first, last = offset // CHUNK, (offset + length - 1) // CHUNK
        if last - first >= len(self._chunks) + len(self._fills):
            for index in [i for i in self._chunks.keys() if first <= i <= last]:  # noqa: SIM118 (LRU has no __iter__)
                del self._chunks[index]
            for index, fill in self._fills.items():
                if first <= index <= last:
                    fill.stale = True
            return
        for index in range(first, last + 1):
            self._chunks.pop(index, None)
            if index in self._fills:
                self._fills[index].stale = True

    def _fetch(self, start: int, end: int) -> None:
        """Have the chunks of [start, end) filled that are neither there nor on their way."""
        for index in range(start // CHUNK, -(-end // CHUNK)):
            if index not in self._chunks and index not in self._fills:
                fill = self._fills[index] = _Fill()
                self._nursery.start_soon(self._fill, index, fill)

    async def _fill(self, index: int, fill: _Fill) -> None:
        offset = index * CHUNK
        try:
            with self._read_ahead():
                fill.data = await self._inner.read(offset, min(CHUNK, self.size - offset))
            if not fill.stale:
                self._chunks[index] = memoryview(fill.data)
                self._filled_chunks += 1
                if not self._aging:
                    self._aging = True
                    self._nursery.start_soon(self._age)
        except StoreError:
            fill.data = None  # who needs the range reads it himself and gets the error as his own
        finally:
            del self._fills[index]
            fill.done.set()

    async def _age(self) -> None:
        """Give the chunks back once they are not used any more."""
        while self._chunks:
            before = self.hits, self._filled_chunks
            await trio.sleep(UNUSED_S)
            if before == (self.hits, self._filled_chunks):
                self._chunks.clear()
        self._aging = False
