"""Which runs of neighbours WriteBack sends, and in which order.

A record is in the queue, oldest first; or blocked, when something in flight overlaps what is left of it; or gone.

    add         -> queue
    next        queue -> gone        nothing of it is dirty any more: it was sent, or replaced by newer content
                queue -> blocked     all of it that is dirty overlaps something in flight
    unblock     blocked -> queue     in its place again; to be called when a run ended

Invariants
1. The record of whatever is dirty is in the queue or blocked.
2. Two runs in flight never overlap: `next` skips what overlaps `flight`, and no await lies between its choice and the
   entry into `flight`.
3. A run is one request: all data or all zeros, without gaps; data of several extents is no more than `largest` says,
   and than MOST_JOINED. Longer requests cost hardly less for each byte, and of these several are on their way at once
   where there would be one. For a copy of more than 1 MiB, malloc() makes a mapping of its own, each page of which is
   cleared first (kernel/hardening.py).

No await in this file.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

from blobfuse_dysk.store.parts.dirtymap import DirtyExtent, DirtyMap
from blobfuse_dysk.store.parts.ring import Record
from blobfuse_dysk.store.parts.senders import Run

__all__ = ["MOST_JOINED", "RunQueue"]

MOST_JOINED = 512 << 10  # bytes


class RunQueue:
    """dirty, flight: what waits and what is on its way. largest: bytes of the largest write that suits the service now.

    until: records that begin before this position of the ring are to be sent now.
    """

    def __init__(self, dirty: DirtyMap, flight: DirtyMap, largest: Callable[[], int]) -> None:
        self.until = 0
        self._dirty = dirty
        self._flight = flight
        self._largest = largest
        self._queue: deque[Record] = deque()  # records to look at, oldest first
        self._blocked: list[Record] = []  # taken off the queue because something in flight overlaps

    def add(self, record: Record) -> None:
        """The youngest record; what of it is dirty is in `dirty`."""
        self._queue.append(record)

    @property
    def any_due(self) -> bool:
        """Whether there is something that is to be sent now, as soon as may be."""
        return bool(self._blocked or (self._queue and self._queue[0].position < self.until))

    def unblock(self) -> None:
        """A run ended: look again at what it may have been in the way of."""
        if self._blocked:
            self._queue.extendleft(reversed(self._blocked))
            self._blocked.clear()

    def next(self) -> Run:
        """Move the next run of neighbours from dirty to in flight; empty when there is nothing to send now."""
        while self._queue and self._queue[0].position < self.until:
            record = self._queue[0]
            mine = [
                extent
                for extent in self._dirty.overlap(record.offset, record.offset + record.length)
                if extent.record == record.position
            ]
            for extent in mine:
                if not self._flight.overlaps(extent.start, extent.end):
                    run = self._dirty.take(*self._grow(extent))
                    self._flight.put(run)
                    return run
            self._queue.popleft()
            if mine:
                self._blocked.append(record)
        return []

    def _grow(self, extent: DirtyExtent) -> tuple[int, int]:
        """The index range of the neighbours that may go in one request with `extent`."""
        dirty, flight = self._dirty, self._flight
        low = dirty.index_from(extent.start)
        high = low + 1
        start, end, zeros = extent.start, extent.end, extent.data < 0
        limit = math.inf if zeros else min(self._largest(), MOST_JOINED)
        while high < len(dirty):
            following = dirty[high]
            if (
                following.start != end
                or (following.data < 0) != zeros
                or following.end - start > limit
                or flight.overlaps(following.start, following.end)
            ):
                break
            end = following.end
            high += 1
        while low > 0:
            before = dirty[low - 1]
            if (
                before.end != start
                or (before.data < 0) != zeros
                or end - before.start > limit
                or flight.overlaps(before.start, before.end)
            ):
                break
            start = before.start
            low -= 1
        return low, high
