"""Which reads go through the disk in order, and how far ahead of them it pays to fetch.

A run of reads, each beginning where the one before ended, is a *candidate*; after RUN_READS of them, or RUN_BYTES, it
is a *stream*, and the window that is fetched ahead of it doubles with every step up to a limit.

What is random must stay without a request of ours, however long it goes on, and small disks are hit in the same
places often. So three rules bound what a mistake costs:
1. One chance meeting of two small reads makes no stream: of 64 remembered places random reads hit one every now and
   then, but hardly ever the one place where such a pair goes on.
2. A stream that moves on by more than twice of what was read of it skips, and is none: it is dropped before more is
   fetched for it. So what was fetched and never read is at most the last window of a stream that has ended.
3. A stream that nobody continued for IDLE_READS reads of others is forgotten.

Who reads a stream by large requests, several of them at once, fetches ahead of himself: as a rule that is the kernel,
of a file that is read through its page cache. What we would fetch then is only more in flight, in memory that no cache
of the processor has by the time it is read. So ahead of a stream nothing is fetched from a read on that is one of
CROWD at once, until CROWDED_READS in a row were not. But where the service is far, what he has on its way is gone
through before more of it comes, and there that is worth more than what the caches of the processor are. How far it is
shows in the quickest of the last large reads: the others wait for each other, too.

No await in this file.
"""

from __future__ import annotations

from math import inf

from lru import LRU

__all__ = ["LARGE", "UNIT", "Quickest", "Streams", "unit_of"]

FIRST_WINDOW = 128 << 10  # bytes fetched ahead when a stream is recognised
RUN_READS = 3
RUN_BYTES = 128 << 10
SLACK = 1 << 20  # bytes; requests of one reader arrive out of order, but not by more than this
IDLE_READS = 512
LARGE = 512 << 10  # bytes; a read of this length or more is worth a request of just its own range
UNIT = 256 << 10  # bytes; what one request fetches ahead of smaller reads: of more, its first bytes come too late
CROWD = 4  # large reads in progress at once, near each other; the kernel's come by four, see loop.py
CROWDED_READS = 16
FAR_S = 0.008  # that the quickest large reads take
SURE = 16  # large reads; of fewer, the quickest says little
LATELY = 256  # large reads; at least so many, at most twice as many are looked back at
_GRAIN = 4096  # bytes; windows are multiples
_CANDIDATES = 64  # places where a run might go on
_MOST = 8  # streams


class _Stream:
    """next: where it goes on. ahead: up to where it was fetched for. mark: where it was then. read: bytes since.

    crowded: reads that have to come one by one before more is fetched.
    """

    __slots__ = ("ahead", "crowded", "mark", "next", "read", "used", "window")

    def __init__(self, start: int, end: int, used: int) -> None:
        self.next = self.ahead = end
        self.mark = start
        self.read = end - start
        self.used = used
        self.window = FIRST_WINDOW
        self.crowded = 0


def unit_of(length: int) -> int:
    """What is fetched by one request ahead of a stream whose reads have this length. Bytes.

    As much as a large read takes: if the borders are its own, too, what was fetched is its answer, without a copy.
    """
    return length if length >= LARGE else UNIT


class Quickest:
    """How long the quickest of the last large reads took. is_far: whether that is so long that the service is far."""

    __slots__ = ("_before", "_count", "_least", "is_far")

    def __init__(self) -> None:
        self._before = self._least = inf
        self._count = 0
        self.is_far = False

    def add(self, seconds: float) -> None:
        """One took so long."""
        self._count += 1
        self._least = min(self._least, seconds)
        if self._count >= SURE:
            self.is_far = min(self._least, self._before) >= FAR_S
        if self._count == LATELY:
            self._before, self._least, self._count = self._least, inf, 0


class Streams:
    """size: of the disk, which may grow. most: bytes that all streams together may be ahead. All in bytes."""

    def __init__(self, size: int, most: int) -> None:
        self.size = size
        self._most = most
        self._candidates: LRU[int, tuple[int, int]] = LRU(_CANDIDATES)  # end of a run: where it began, reads in it
        self._streams: list[_Stream] = []  # the one used last comes last
        self._reads = 0

    def __len__(self) -> int:
        return len(self._streams)

    def on_read(self, offset: int, end: int, at_once: int = 1) -> tuple[int, int] | None:
        """Take note of a read of [offset, end); returns the range that is to be fetched now, if any.

        at_once: of so many large reads near each other that are in progress it is one.
        """
        self._reads += 1
        streams = self._streams
        if streams:
            while streams and streams[0].used < self._reads - IDLE_READS:
                del streams[0]
            for stream in streams:
                slack = min(SLACK, stream.window)
                if stream.next - slack <= offset <= stream.next + slack:
                    return self._step(stream, offset, end, at_once)
        start, reads = self._candidates.pop(offset, (offset, 0))
        reads += 1
        if reads < RUN_READS and (reads < 2 or end - start < RUN_BYTES):
            self._candidates[end] = (start, reads)
            return None
        stream = _Stream(start, end, self._reads)
        streams.append(stream)
        del streams[:-_MOST]
        return None if self._is_crowded(stream, at_once) else self._fetch(stream, end - offset)

    def _step(self, stream: _Stream, offset: int, end: int, at_once: int) -> tuple[int, int] | None:
        stream.used = self._reads
        stream.read += end - offset
        stream.next = max(stream.next, end)
        if stream is not self._streams[-1]:
            self._streams.remove(stream)
            self._streams.append(stream)
        if self._is_crowded(stream, at_once) or stream.ahead - stream.next > stream.window // 2:
            return None
        if stream.next - stream.mark > 2 * stream.read:
            self._streams.remove(stream)  # it skips
            return None
        return self._fetch(stream, end - offset)

    def _is_crowded(self, stream: _Stream, at_once: int) -> bool:
        if at_once >= CROWD:
            stream.crowded = CROWDED_READS
        elif stream.crowded:
            stream.crowded -= 1
        return stream.crowded > 0

    def _fetch(self, stream: _Stream, length: int) -> tuple[int, int] | None:
        """The next range ahead of a stream that was just read by `length` bytes: whole units, if it is more than one.

        Of a large read's length, they are counted from where the stream goes on: there the next read begins.
        """
        share = max(FIRST_WINDOW, self._most // len(self._streams) // _GRAIN * _GRAIN)
        if length > share:
            return None
        start = max(stream.ahead, stream.next)
        unit, window = unit_of(length), max(stream.window, length)
        end = stream.next + window
        if length >= LARGE:
            end -= window % unit
        elif end - start > unit:
            end -= (end - start) % unit
        end = min(end, self.size)
        stream.ahead = max(start, end)
        stream.mark, stream.read = stream.next, 0
        stream.window = min(window * 2, share)
        return (start, end) if start < end else None
