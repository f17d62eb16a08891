"""The dirty ring: an append-only log of accepted writes in shared memory, which outlives the worker.

The holder makes the memory (a memfd, device/holder/workers.py) and keeps it; the worker appends a record for every
write it accepts, and moves the tail once the oldest records are no longer needed. A new worker finds with `replay`
every record between tail and head, in the order of acceptance.

Layout: one header page, then `capacity` bytes of records. A position is a logical byte offset that only grows; it
lies at `position % capacity` in the record area. A record is a 64-byte header and its data, padded to 64 bytes,
and never wraps: what does not fit before the end of the area starts at the next lap.

    header page   magic, version, capacity, key, tail
    record        word, position, kind, offset, length        (data follows for kind DATA)

Invariants
1. A record is published by one final 8-byte store of its `word`, after everything else of it is in place. So a worker
   killed at any instant leaves a whole record or none: until that store, what lies there is of an earlier lap.
2. `word` is `key + position`, and the key is random: neither a record of an earlier lap nor the data of a write can
   pass for a record at this position.
3. The log alone is the truth: replaying every record of [tail, head) in order over whatever the service holds gives
   the newest accepted content. Therefore no record is ever marked as done by itself (an older one, still there, would
   come back over it); only the tail moves, by one 8-byte store, past records that are not needed any more.
4. Nothing inside [tail, head) is overwritten. `append` says so by returning None when there is no room.
   An empty log is nowhere: then all of the record area may become zeros (`give_back`), in which no record is found.
5. What has its word and is not as `append` makes it was damaged after it was accepted. Replay does not pass it over,
   which would lose in silence what lies behind it, but raises RingError. So it is with a size or tail that no ring has.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import secrets
import struct
from collections.abc import Iterator
from typing import NamedTuple

from blobfuse_dysk.errors import DyskError
from blobfuse_dysk.holes import punch
from blobfuse_dysk.invariant import broken
from blobfuse_dysk.store.contract import MAX_WRITE, Buffer

__all__ = ["DATA", "MIN_CAPACITY", "ZERO", "Record", "Ring", "RingError", "is_empty"]

DATA = 1
ZERO = 2
_SKIP = 3
_KINDS = (DATA, ZERO, _SKIP)

MIN_CAPACITY = 2 * MAX_WRITE + 4096  # bytes; an empty ring has room for the largest record wherever the head stands
_MAGIC = 0x474E49524B535944  # "DYSKRING"
_VERSION = 1
_HEADER_PAGE = 4096
_HEADER = struct.Struct("@QQQQQ")
_TAIL_WORD = 4
_RECORD = struct.Struct("@QQQQQ")
_RECORD_SIZE = 64
_MASK = (1 << 64) - 1
_LEAST_GIVEN = 1 << 20  # bytes; less is left where it is, for the next writes


class RingError(DyskError):
    """The shared memory does not hold a ring that this version can read, or one that is damaged."""


class Record(NamedTuple):
    """One accepted write. position..end is its place in the log; data the place of its bytes in `Ring.memory`."""

    position: int
    end: int
    kind: int
    offset: int
    length: int
    data: int


class Ring:
    """The log. One process at a time writes to it; all methods are synchronous and contain no await."""

    def __init__(self, descriptor: int, capacity: int | None = None) -> None:
        """Open the ring in `descriptor` (a memfd), or make one of `capacity` bytes in an empty one."""
        size = os.fstat(descriptor).st_size
        fresh = size == 0
        self.capacity = (capacity or 0) if fresh else size - _HEADER_PAGE
        if self.capacity < MIN_CAPACITY or self.capacity % _RECORD_SIZE:
            raise RingError(f"a dirty ring of {self.capacity} bytes", remedy=f"use at least {MIN_CAPACITY} bytes")
        if fresh:
            size = _HEADER_PAGE + self.capacity
            os.ftruncate(descriptor, size)
        self._map = mmap.mmap(descriptor, size)
        self.memory = memoryview(self._map)
        """The whole shared memory; `Record.data` is an index into it."""
        self._words = self.memory.cast("Q")
        if fresh:
            _HEADER.pack_into(self._map, 0, 0, _VERSION, self.capacity, secrets.randbits(63), 0)
            self._words[0] = _MAGIC
        magic, version, capacity_there, self._key, tail = _HEADER.unpack_from(self._map, 0)
        if magic != _MAGIC or version != _VERSION or capacity_there != self.capacity:
            raise RingError(f"the dirty ring has version {version}, this is {_VERSION}", remedy="detach, then attach")
        if tail % _RECORD_SIZE:
            raise _damaged(tail)
        self._tail: int = tail
        self._head: int = tail
        self._given = tail if fresh else tail - self.capacity  # where the head was when no record had memory

    @property
    def used(self) -> int:
        """Bytes between tail and head."""
        return self._head - self._tail

    @property
    def head(self) -> int:
        """The position after the newest record."""
        return self._head

    def fits(self, length: int) -> bool:
        """Whether a DATA record of `length` bytes can be appended now."""
        size = _record_size(length)
        return self._place(size) + size <= self._tail + self.capacity

    def append(self, offset: int, data: Buffer) -> Record | None:
        """Copy `data` in as a record; None if there is no room."""
        length = len(data)
        size = _record_size(length)
        at = self._prepare(size)
        if at is None:
            return None
        place = _HEADER_PAGE + at % self.capacity + _RECORD_SIZE
        self.memory[place : place + length] = data
        return self._publish(at, size, DATA, offset, length)

    def append_zero(self, offset: int, length: int) -> Record | None:
        """Append a record that says: this range is zeros now. None if there is no room."""
        at = self._prepare(_RECORD_SIZE)
        return None if at is None else self._publish(at, _RECORD_SIZE, ZERO, offset, length)

    def release(self, position: int) -> None:
        """Move the tail to `position`, the end of a record: everything before it is not needed any more."""
        if not self._tail < position <= self._head:
            broken(f"the ring's tail would go from {self._tail} to {position}, with its head at {self._head}")
        self._tail = position
        self._words[_TAIL_WORD] = position

    def replay(self) -> Iterator[Record]:
        """Every record from tail to head, oldest first; sets the head. For a ring just opened.

        Raises RingError at a record that is damaged (invariant 5).
        """
        self._head = self._tail
        while True:
            at = self._head
            index = _HEADER_PAGE + at % self.capacity
            word, position, kind, offset, length = _RECORD.unpack_from(self._map, index)
            if word != (self._key + at) & _MASK:
                return
            size = length if kind == _SKIP else _record_size(length if kind == DATA else 0)
            room = min(self.capacity - at % self.capacity, self._tail + self.capacity - at)
            # The word names the position already: that it is there once more guards against damage alone.
            if position != at or kind not in _KINDS or size % _RECORD_SIZE or not 0 < size <= room:
                raise _damaged(at)
            self._head = at + size
            if kind != _SKIP:
                yield Record(at, at + size, kind, offset, length, index + _RECORD_SIZE)

    def give_back(self, descriptor: int) -> None:
        """Give the memory of the records back to the kernel, which a lap of them has taken; if the log is empty.

        descriptor: of the memory. What is written next takes memory again, as in the first lap.
        """
        if self.used or self._head - self._given < _LEAST_GIVEN:
            return
        punch(descriptor, _HEADER_PAGE, self.capacity)
        self._given = self._head

    def close(self) -> None:
        """Unmap, as soon as nobody has a view of the data any more. The memory stays with who has the descriptor."""
        self._words.release()
        with contextlib.suppress(BufferError):  # a request that is still being ended has a view; it goes with that
            self.memory.release()
            self._map.close()

    def _place(self, size: int) -> int:
        """Where a record of `size` bytes would go: at the head, or at the next lap if this one is too short."""
        room = self.capacity - self._head % self.capacity
        return self._head if size <= room else self._head + room

    def _prepare(self, size: int) -> int | None:
        """Make room for a record of `size` bytes at the head, filling the end of a lap that it does not fit into."""
        at = self._place(size)
        if at + size > self._tail + self.capacity:
            return None
        if at != self._head:
            self._publish(self._head, at - self._head, _SKIP, 0, at - self._head)
        return at

    def _publish(self, at: int, size: int, kind: int, offset: int, length: int) -> Record:
        index = _HEADER_PAGE + at % self.capacity
        # The word is none while the rest is written, then appears in one aligned 8-byte store (invariant 1).
        _RECORD.pack_into(self._map, index, 0, at, kind, offset, length)
        self._words[index >> 3] = (self._key + at) & _MASK
        self._head = at + size
        return Record(at, at + size, kind, offset, length, index + _RECORD_SIZE)


def is_empty(descriptor: int) -> bool:
    """Whether nothing accepted is left in this memory; a ring that was never made is empty, too."""
    if os.fstat(descriptor).st_size == 0:
        return True
    try:
        ring = Ring(descriptor)
        try:
            return next(ring.replay(), None) is None
        finally:
            ring.close()
    except RingError:
        return False  # damaged, or another version's: something was accepted


def _damaged(position: int) -> RingError:
    return RingError(
        f"the dirty ring is damaged at {position}: what was written last may be lost",
        remedy="detach the disk, then attach it and check its file system",
    )


def _record_size(length: int) -> int:
    return _RECORD_SIZE + (length + _RECORD_SIZE - 1) // _RECORD_SIZE * _RECORD_SIZE
