"""A set of byte ranges in bounded memory: 16 bytes an extent, at most `most` extents.

When there are more, the smallest gaps are closed: the set then names more than was added, never less. That is the
right way to be wrong for a map of what is allocated.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right

from blobfuse_dysk.store.contract import Extent

__all__ = ["ExtentMap"]

MOST = 32_768  # extents


class ExtentMap:
    """Sorted, disjoint, not touching. Positions are bytes; ranges are [start, end)."""

    __slots__ = ("_ends", "_most", "_starts")

    def __init__(self, most: int = MOST) -> None:
        self._starts = array("Q")
        self._ends = array("Q")
        self._most = most

    def __len__(self) -> int:
        return len(self._starts)

    def add(self, start: int, end: int) -> None:
        """Put a range in."""
        first = bisect_left(self._ends, start)  # the first extent that reaches start, if only by touching it
        last = bisect_right(self._starts, end)  # behind the last extent that begins at or before end
        if first < last:
            if last == first + 1 and self._starts[first] <= start and end <= self._ends[first]:
                return
            start, end = min(start, self._starts[first]), max(end, self._ends[last - 1])
        self._starts[first:last] = array("Q", (start,))
        self._ends[first:last] = array("Q", (end,))
        if len(self._starts) > self._most:
            self._close_gaps()

    def remove(self, start: int, end: int) -> None:
        """Take a range out (it may stay in, in part, when the map is full)."""
        first = bisect_right(self._ends, start)
        last = bisect_left(self._starts, end)
        if first >= last:
            return
        left, right = self._starts[first], self._ends[last - 1]
        starts, ends = array("Q"), array("Q")
        if left < start:
            starts.append(left)
            ends.append(start)
        if end < right:
            starts.append(end)
            ends.append(right)
        self._starts[first:last] = starts
        self._ends[first:last] = ends
        if len(self._starts) > self._most:
            self._close_gaps()

    def covers(self, start: int, end: int) -> bool:
        """Whether all of [start, end) is in."""
        index = bisect_right(self._starts, start) - 1
        return index >= 0 and end <= self._ends[index]

    def within(self, start: int, end: int) -> list[Extent]:
        """Return the extents inside [start, end), clipped, as (offset, length)."""
        first = bisect_right(self._ends, start)
        last = bisect_left(self._starts, end)
        found = []
        for index in range(first, last):
            a, b = max(start, self._starts[index]), min(end, self._ends[index])
            found.append((a, b - a))
        return found

    def _close_gaps(self) -> None:
        """Close the smallest gaps, down to half of the extents."""
        gaps = [start - end for start, end in zip(self._starts[1:], self._ends, strict=False)]
        by_size = sorted(range(len(gaps)), key=gaps.__getitem__)
        kept = sorted(by_size[len(gaps) - self._most // 2 + 1 :])  # n extents have n - 1 gaps between them
        self._starts = array("Q", [self._starts[0], *(self._starts[gap + 1] for gap in kept)])
        self._ends = array("Q", [*(self._ends[gap] for gap in kept), self._ends[-1]])
