"""Knows which pages are allocated: reads of the others, and zeros written to them, cost no request.

Theory. A page that the service does not list in Get Page Ranges reads as zeros. The map kept here is always a
*superset* of what is allocated at the service:

S1. A range counts as allocated from before its write is sent, and stays so if the write fails or is cancelled: a late
    copy may still make it allocated. `_mark` comes before the first await of the call.
S2. A range counts as free only after its clear was acknowledged; a clear that failed or was cancelled leaves it
    allocated. `_free` comes in the same step as the acknowledgement. No other write on that range can be in between:
    Order lets no overlapping modifying call in. An ambiguous older write cannot land after the acknowledgement, because
    Fence sent the clear in a newer epoch.
S3. The map is loaded by region (64 GiB), when first needed, as one page list. The list shows the blob at some moment
    during the load. What was marked before or during the load stays in the map, as the list is only ever added to it;
    what was freed during the load may come back in, which costs a request and harms nothing.
S4. A region that is not loaded counts as allocated as a whole. So a list that cannot be had (throttled for long, too
    fragmented) makes things slower, not wrong. It is asked for again after a minute.
S5. From the look at the map to the answer, or to the call of the layer below, there is no await. An answer of zeros is
    the content at the moment of that look, which lies within the call.
S6. When the store grows, a region that it now reaches is not loaded (S4). In the region at the old end, loaded or being
    loaded, what is new counts as free: it is, since it came into being just now and only this attachment can write.
S7. The map of the last regions may be known from the start: one list, which shows the blob as it was at some moment at
    which it was what it is now, when this layer is made and nobody has written through it (store/preview.py).

Loads run in a nursery of the stack, so that no caller's cancellation ends a load that others wait for. A caller waits
for the load of its regions only so long from the load's start (S4 then applies): a read READ_PATIENCE_S, zeros
ZERO_PATIENCE_S, since a clear of unallocated pages costs a request that the map is meant to save.

Memory is bounded by ExtentMap: a map that gets too long closes its smallest gaps, so it stays a superset.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import trio

from blobfuse_dysk.detached import attach
from blobfuse_dysk.errors import StoreError
from blobfuse_dysk.store.contract import Buffer, Extent, Store
from blobfuse_dysk.store.parts.extentmap import ExtentMap
from blobfuse_dysk.store.parts.extents import joined
from blobfuse_dysk.store.passage import NO, Passage, begin_of

__all__ = ["Sparse"]

REGION = 64 << 30  # bytes
READ_PATIENCE_S = 0.25
ZERO_PATIENCE_S = 5.0
LOAD_AGAIN_S = 60.0
READ_GAP = 256 << 10  # bytes; a gap up to this is read along rather than paying for another request
CLEAR_MOST = 1 << 30  # bytes; the most that one clear spans
_BLOCK = 64 << 10
_ZEROS = b"\0" * (1 << 20)  # not bytes(n), see `zeros`
_ZERO_BLOCKS = {_BLOCK: bytearray(_BLOCK)}  # bytearray == memoryview is one memcmp; memoryview == memoryview is not


class _Region:
    __slots__ = ("again_at", "error", "loaded", "loading", "map", "started")

    def __init__(self) -> None:
        self.map = ExtentMap()
        self.loaded = False
        self.loading: trio.Event | None = None
        self.started = 0.0
        self.again_at = 0.0
        self.error: StoreError | None = None


class Sparse(Store):
    """nursery: where loads run; it must outlive the calls. region: bytes, for tests.

    known: (start, what is allocated from there to the end), see S7.
    """

    def __init__(
        self,
        inner: Store,
        nursery: trio.Nursery,
        *,
        region: int = REGION,
        known: tuple[int, Sequence[Extent]] | None = None,
    ) -> None:
        self._inner = inner
        self._nursery = nursery
        self._region = region
        self._regions: list[_Region] = []
        self._add_regions()
        self._loads: set[trio.CancelScope] = set()
        self._closed = False
        read, write = inner.plain_read, inner.plain_write
        self.plain_read = read and read.under(self._begin_read)
        self.plain_write = write and write.under(self._begin_write)
        self._begin_read_below, self._begin_write_below = begin_of(read), begin_of(write)
        if known is not None:
            self._take(*known)

    @property
    def size(self) -> int:
        """The inner one's."""
        return self._inner.size

    async def read(self, offset: int, length: int) -> Buffer:
        """Read what is allocated; the rest is zeros."""
        index = offset // self._region
        if (offset + length - 1) // self._region == index and self._regions[index].map.covers(offset, offset + length):
            return await self._inner.read(offset, length)  # the common case, without building lists
        await attach()
        await self._load(offset, length, READ_PATIENCE_S)
        runs = joined(self._allocated(offset, length), READ_GAP)
        if not runs:
            await trio.lowlevel.checkpoint_if_cancelled()
            return zeros(length)
        if runs[0] == (offset, length):
            return await self._inner.read(offset, length)
        data = bytearray(length)
        for start, size in runs:
            data[start - offset : start - offset + size] = await self._inner.read(start, size)
        return data

    def _begin_read(self, passage: Passage) -> int:
        """In the plain lane (passage.py): what is all allocated."""
        offset, end = passage.offset, passage.offset + passage.length
        index = offset // self._region
        if (end - 1) // self._region != index or not self._regions[index].map.covers(offset, end):
            return NO
        return self._begin_read_below(passage)

    def _begin_write(self, passage: Passage) -> int:
        """In the plain lane: what is not all zeros. S1: it counts as allocated in the step in which it is sent."""
        assert passage.data is not None
        if is_zero(passage.data):
            return NO
        began = self._begin_write_below(passage)
        if began:
            self._mark(passage.offset, passage.length)
        return began

    async def write(self, offset: int, data: Buffer) -> None:
        """Write; data that is all zeros becomes `zero`."""
        if is_zero(data):
            await self.zero(offset, len(data))
            return
        self._mark(offset, len(data))
        await self._inner.write(offset, data)

    async def zero(self, offset: int, length: int) -> None:
        """Clear what is allocated. A clear spans gaps: clearing a free page is harmless, a request is not free."""
        await attach()
        await self._load(offset, length, ZERO_PATIENCE_S)
        for start in range(offset, offset + length, CLEAR_MOST):
            size = min(CLEAR_MOST, offset + length - start)
            runs = joined(self._allocated(start, size), CLEAR_MOST)
            if runs:
                await self._inner.zero(*runs[0])
                self._free(*runs[0])
        await trio.lowlevel.checkpoint_if_cancelled()

    async def flush(self) -> None:
        """Pass."""
        await self._inner.flush()

    async def extents(self, offset: int, length: int) -> list[Extent]:
        """Return what counts as allocated. Raises if the page list cannot be had."""
        await self._load(offset, length, math.inf)
        for index in self._indexes(offset, length):
            region = self._regions[index]
            if not region.loaded and region.error is not None:
                raise region.error.afresh()
        return joined(self._allocated(offset, length), 0)

    async def grow(self, size: int) -> None:
        """Grow; see S6."""
        await self._inner.grow(size)
        self._add_regions()

    async def aclose(self) -> None:
        """Stop loading, close the layer below."""
        self._closed = True
        for scope in self._loads:
            scope.cancel()
        await self._inner.aclose()

    # -- the map: no await --

    def _take(self, start: int, extents: Sequence[Extent]) -> None:
        for region in self._regions[-(-start // self._region) :]:
            region.loaded = True
        for offset, length in extents:
            self._mark(offset, length)

    def _add_regions(self) -> None:
        self._regions += [_Region() for _ in range(len(self._regions), -(-self.size // self._region))]

    def _indexes(self, offset: int, length: int) -> range:
        return range(offset // self._region, (offset + length - 1) // self._region + 1)

    def _pieces(self, offset: int, length: int) -> Iterator[tuple[_Region, int, int]]:
        """The range cut at the regions' borders: (region, start, end)."""
        for index in self._indexes(offset, length):
            start, end = max(offset, index * self._region), min(offset + length, (index + 1) * self._region)
            yield self._regions[index], start, end

    def _mark(self, offset: int, length: int) -> None:
        index = offset // self._region
        if (offset + length - 1) // self._region == index:
            self._regions[index].map.add(offset, offset + length)
            return
        for region, start, end in self._pieces(offset, length):
            region.map.add(start, end)

    def _free(self, offset: int, length: int) -> None:
        for region, start, end in self._pieces(offset, length):
            region.map.remove(start, end)

    def _allocated(self, offset: int, length: int) -> list[Extent]:
        found: list[Extent] = []
        for region, start, end in self._pieces(offset, length):
            found += region.map.within(start, end) if region.loaded else [(start, end - start)]
        return found

    # -- loading --

    async def _load(self, offset: int, length: int, patience_s: float) -> None:
        """Load what is missing of the range's map; return when it is there, cannot be had now, or takes too long."""
        indexes = self._indexes(offset, length)
        if all(self._regions[index].loaded for index in indexes):
            return
        self._start_loads(indexes)
        for index in indexes:
            region = self._regions[index]
            if region.loading is not None and trio.current_time() < region.started + patience_s:
                with trio.move_on_at(region.started + patience_s):
                    await region.loading.wait()

    def _start_loads(self, indexes: range) -> None:
        """One load for each run of neighbours that are neither loaded nor loading (nor failed a moment ago)."""
        now = trio.current_time()
        run: list[int] = []
        for index in indexes:
            region = self._regions[index]
            if region.loaded or region.loading is not None or now < region.again_at:
                continue
            if run and run[-1] != index - 1:
                self._start_load(run)
                run = []
            run.append(index)
        if run:
            self._start_load(run)

    def _start_load(self, run: list[int]) -> None:
        done = trio.Event()
        for index in run:
            self._regions[index].loading = done
            self._regions[index].started = trio.current_time()
        self._nursery.start_soon(self._run_load, run[0], run[-1] + 1, done)

    async def _run_load(self, first: int, last: int, done: trio.Event) -> None:
        scope = trio.CancelScope()
        self._loads.add(scope)
        error: StoreError | None = None
        found: list[Extent] | None = None
        try:
            with scope:
                if not self._closed:
                    start = first * self._region
                    try:
                        found = await self._inner.extents(start, min(last * self._region, self.size) - start)
                    except StoreError as failed:
                        error = failed
        finally:
            self._loads.discard(scope)
            for region in self._regions[first:last]:
                region.loading = None
                region.error = error
                region.loaded = found is not None
                region.again_at = trio.current_time() + LOAD_AGAIN_S
            for offset, length in found or ():
                self._mark(offset, length)  # in the same step as `loaded`: nobody sees a map without these
            done.set()


def zeros(length: int) -> Buffer:
    """Return `length` zero bytes; nobody may change them.

    They are in memory already, which bytes(n) is not before it is first looked at. The kernel takes an answer out of
    our memory; if it has to bring a page in for that while this process is being killed, the request ends with EIO in
    place of going to the next worker. Source: fs/fuse/dev.c, fuse_copy_fill() and fuse_dev_do_write().
    """
    return memoryview(_ZEROS)[:length] if length <= len(_ZEROS) else b"\0" * length


def is_zero(data: Buffer) -> bool:
    """Whether all bytes are zero. Data that is not is mostly recognised by its first bytes."""
    view = memoryview(data)
    if any(view[:16]):
        return False
    for start in range(0, len(view), _BLOCK):
        block = view[start : start + _BLOCK]
        reference = _ZERO_BLOCKS.get(len(block))
        if reference is None:
            reference = _ZERO_BLOCKS[len(block)] = bytearray(len(block))
        if reference != block:
            return False
    return True
