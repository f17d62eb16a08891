"""Which bytes of the disk are newer in the dirty ring than in the service, and where they lie.

A sorted list of extents that do not overlap. Adding an extent cuts whatever it covers: newest data wins. Each extent
counts for the ring record that holds its data and for a generation, which is how a flush knows that it is done.

Nothing here awaits; every method leaves the map whole.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections import Counter, deque
from typing import NamedTuple

from blobfuse_dysk.invariant import broken
from blobfuse_dysk.store.parts.ring import Record, Ring

__all__ = ["DirtyExtent", "DirtyMap", "Ledger", "cover"]


class DirtyExtent(NamedTuple):
    """[start, end) in bytes of the disk. data: index into the ring's memory, or -1 where the range is zeros.

    generation: of the oldest write that this extent makes durable. record: the ring record's position.
    """

    start: int
    end: int
    data: int
    generation: int
    record: int

    def cut(self, start: int, end: int) -> DirtyExtent:
        data = self.data if self.data < 0 else self.data + start - self.start
        return DirtyExtent(start, end, data, self.generation, self.record)


class Ledger:
    """Counts live extents by ring record and by generation; moves the ring's tail past records nobody counts on."""

    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        self._records: deque[Record] = deque()
        self._live: dict[int, int] = {}
        self._generations: Counter[int] = Counter()

    def add_record(self, record: Record) -> None:
        """A record enters with one count of its own, until `settle` takes it back."""
        self._records.append(record)
        self._live[record.position] = 1

    def settle(self, record: Record) -> None:
        """Its extents are counted now."""
        self._drop_record(record.position)

    def count(self, extent: DirtyExtent) -> None:
        self._live[extent.record] += 1
        self._generations[extent.generation] += 1

    def discount(self, extent: DirtyExtent) -> None:
        left = self._generations[extent.generation] - 1
        if left < 0:
            broken(f"generation {extent.generation} has less than nothing left to make durable")
        if left:
            self._generations[extent.generation] = left
        else:
            del self._generations[extent.generation]
        self._drop_record(extent.record)

    def _drop_record(self, position: int) -> None:
        self._live[position] -= 1
        records = self._records
        end = None
        while records and not self._live[records[0].position]:
            oldest = records.popleft()
            del self._live[oldest.position]
            end = oldest.end
        if end is not None:
            self._ring.release(end)

    def is_live(self, record: Record) -> bool:
        """Whether anything of the record is not yet durable, nor replaced by newer content."""
        return self._live.get(record.position, 0) > 0

    def has(self, generation: int) -> bool:
        """Whether anything not yet durable belongs to `generation`."""
        return generation in self._generations

    def oldest_generation(self) -> int | None:
        """The lowest generation that something not yet durable belongs to."""
        return min(self._generations, default=None)


class DirtyMap:
    """Extents by start. Used twice: for what waits to be sent, and for what is in flight.

    There may be as many as pages fit into the ring, and each write looks for its place among them several times. So
    the starts lie in an array of their own: a search among the extents would touch one of them at each step.
    """

    def __init__(self) -> None:
        self._extents: list[DirtyExtent] = []
        self._starts = array("Q")  # of the extents, one by one
        self.bytes = 0
        """Bytes of data (zeros not counted) that the map covers."""

    def __len__(self) -> int:
        return len(self._extents)

    def __getitem__(self, index: int) -> DirtyExtent:
        return self._extents[index]

    def overlap(self, start: int, end: int) -> list[DirtyExtent]:
        """The extents that share a byte with [start, end), whole."""
        if not self._extents:
            return []
        low, high = self._span(start, end)
        return self._extents[low:high]

    def overlaps(self, start: int, end: int) -> bool:
        low, high = self._span(start, end)
        return low < high

    def index_from(self, start: int) -> int:
        """The index of the first extent that begins at or after `start`."""
        return bisect_left(self._starts, start)

    def add(self, extent: DirtyExtent, ledger: Ledger) -> int:
        """Put an extent over whatever lies there; returns its generation, the oldest of all that it covers."""
        low, high = self._span(extent.start, extent.end)
        covered = self._extents[low:high]
        pieces = [extent]
        if covered:
            oldest = min(extent.generation, min(old.generation for old in covered))
            extent = extent._replace(generation=oldest)
            pieces = [extent]
            if covered[0].start < extent.start:
                pieces.insert(0, covered[0].cut(covered[0].start, extent.start))
            if covered[-1].end > extent.end:
                pieces.append(covered[-1].cut(extent.end, covered[-1].end))
        # Count the new before the old goes, so that a record shared by both is never free in between.
        for piece in pieces:
            ledger.count(piece)
        if covered:
            self.take(low, high)
        self._insert(low, pieces)
        for old in covered:
            ledger.discount(old)
        return extent.generation

    def take(self, low: int, high: int) -> list[DirtyExtent]:
        """Remove the extents at [low, high) and return them; their counts go with them."""
        taken = self._extents[low:high]
        del self._extents[low:high]
        del self._starts[low:high]
        self.bytes -= _data_bytes(taken)
        return taken

    def put(self, extents: list[DirtyExtent]) -> None:
        """Insert extents that overlap nothing here; their counts come with them. The inverse of `take`."""
        start, end = extents[0].start, extents[-1].end
        at = bisect_left(self._starts, start)
        if (at and self._extents[at - 1].end > start) or (at < len(self._starts) and self._starts[at] < end):
            broken(f"two requests for {start} to {end} would be in flight together")
        self._insert(at, extents)

    def remove(self, extents: list[DirtyExtent]) -> None:
        """Take a run that was put in whole out again."""
        at = bisect_left(self._starts, extents[0].start)
        if self.take(at, at + len(extents)) != extents:
            broken(f"what was in flight from {extents[0].start} to {extents[-1].end} is not there any more")

    def _span(self, start: int, end: int) -> tuple[int, int]:
        """The index range of the extents that share a byte with [start, end)."""
        starts = self._starts
        low = bisect_right(starts, start)
        high = low
        if low < len(starts) and starts[low] < end:
            high = bisect_left(starts, end, low)
        if low and self._extents[low - 1].end > start:
            low -= 1
        return low, high

    def _insert(self, at: int, extents: list[DirtyExtent]) -> None:
        self._extents[at:at] = extents
        for place, extent in enumerate(extents, at):
            self._starts.insert(place, extent.start)
        self.bytes += _data_bytes(extents)


def cover(extents: list[DirtyExtent], offset: int, end: int) -> bool:
    """Whether the extents together cover all of [offset, end)."""
    for extent in sorted(extents):
        if extent.start > offset:
            return False
        offset = max(offset, extent.end)
    return offset >= end


def _data_bytes(extents: list[DirtyExtent]) -> int:
    total = 0
    for extent in extents:
        if extent.data >= 0:
            total += extent.end - extent.start
    return total
