"""The requests that a worker has taken and not answered, in memory that outlives it: a memfd, as the dirty ring's.

A kernel from 6.9 on sends again what a dead worker had taken (FUSE_NOTIFY_RESEND). It knows exactly what is unanswered,
and it costs nothing, so it is used where it is there. For all others the holder makes this memory, and the worker has
the kernel copy each request into it: whatever it had taken when it was killed lies there, for the next worker to serve.

Layout: a header, then slabs of slots of one size each. A slot holds one request as the kernel sent it, from its first
byte on, or nothing. Its first four bytes are the request's length (struct fuse_in_header), and 0 if it is empty.

    header           magic, version, bytes of a landing slot
    compact slots    of 512 B, 12 KiB, 72 KiB: requests that would not fill a page, writes of 4 KiB, of up to 64 KiB
    landing slots    the largest write and some room: what the kernel copies into, since read(2) takes no less

A slot has no memory until it is used, and the lowest is used first; `trim` of the channel gives back what is free.

Invariants
1. A request is in a slot from the moment in which it counts as taken, until after the write(2) of its answer. The
   kernel copies it into a landing slot, whose length is 0 until then, and all of which is in memory, and locked. So the
   copy is not broken off by a kill (kernel/hardening.py), which is looked at only when read(2) returns. The slot is
   emptied right after the answer.
2. A small request, or one for pyfuse3, moves into a compact slot, and its landing slot takes the next one. The copy's
   length is written last, when the rest is in place, then the length in the landing slot becomes 0. So a worker that is
   killed at any instant leaves one of the two, or both, and never a part. No machine instruction is seen half done, and
   what a dead process wrote is seen in the order of its program, by whoever is started after its end.
3. FORGET, BATCH_FORGET and INTERRUPT, which have no answer, stay in no slot when they were read, and are served from
   none.
4. What the next worker finds counts only if the kernel waits for it (`fuse.waits_for`). So a request that was answered
   and is still in its slot is not served again; nor is one whose copy failed half way, which the kernel answers itself.
   A number is that of one request only, ever.
5. The next worker serves all that it finds, side by side as the one before did, and reads nothing new until all of it
   is answered (requests.py). Meanwhile each stays in its slot. So one that is killed then leaves the same to the next.
6. A slot that holds what no request can be is emptied, and what the kernel waits for by that number fails with EIO. So
   no damage makes one worker after the other fail.

A write that is served by the dead worker and once more by the next one puts the same data where it was put before, and
nobody was told of its end in between; so nothing newer can have been written there. A flush that comes again is as good
as the first.

Bounds: as many requests about data as there are tasks for them (MOST_TASKS), and those of pyfuse3. One that finds no
compact slot stays in its landing slot. Where no landing slot is left, nothing is read until one is (`full`). No write
is larger than a landing slot (`fuse.largest_write`).

Sources: fs/fuse/dev.c of Linux 5.8: fuse_dev_do_read() copies header, arguments and pages, in this order, and puts the
request among those that wait for an answer if all of that worked; else it ends it with EIO. A signal is looked at where
it waits for a request, and in get_user_pages(), for pages that are not in memory. fallocate(2).
"""

from __future__ import annotations

import errno
import logging
import mmap
import os
import struct
from typing import NamedTuple

from blobfuse_dysk.device.kernel import fuse
from blobfuse_dysk.device.kernel.fuse import IN_HEADER, NO_ANSWER
from blobfuse_dysk.errors import DyskError

__all__ = ["EMPTY", "Slab", "Taken", "TakenError"]

_MAGIC = 0x4E454B41544B5359  # "YSKTAKEN"
_VERSION = 1
_HEADER = struct.Struct("@QQQ")
_GRAIN = 64 << 10  # bytes: a page of any machine, so that each slab, and each landing slot, can be mapped for itself
_COMPACT = ((512, 512), (12 << 10, 512), (72 << 10, 384))  # bytes, slots
_LANDINGS = 384
EMPTY = bytes(4)
"""The length in an empty slot."""
_log = logging.getLogger(__name__)


class TakenError(DyskError):
    """The memory is not one of taken requests, or of another version."""


class Slab(NamedTuple):
    """So many slots of `size` bytes, from `start` on."""

    start: int
    size: int
    slots: int

    @property
    def end(self) -> int:
        """Where the next slab begins."""
        return self.start + self.size * self.slots


class Taken:
    """The memory in `fd`, a memfd; one that is empty is made fit for requests of up to `most` bytes. Raises TakenError.

    One process at a time uses it.
    """

    def __init__(self, fd: int, most: int) -> None:
        self.fd = fd
        magic, version, landing = _HEADER.unpack(os.pread(fd, _HEADER.size, 0).ljust(_HEADER.size, b"\0"))
        fresh = magic == 0  # also if the one who made it was killed on the way: it had taken nothing
        if fresh:
            landing = _rounded(most)
        elif (magic, version) != (_MAGIC, _VERSION) or landing < _GRAIN or landing % _GRAIN:
            raise TakenError(f"the memory of taken requests has version {version}, this is {_VERSION}")
        slabs, start = [], _GRAIN
        for size, count in (*_COMPACT, (landing, _LANDINGS)):
            slabs.append(Slab(start, size, count))
            start = _rounded(slabs[-1].end)
        self.slabs = tuple(slabs)
        """The last one has the landing slots."""
        self.size = start
        """Bytes of all of it."""
        if fresh:
            os.ftruncate(fd, self.size)
            os.pwrite(fd, _HEADER.pack(0, _VERSION, landing), 0)
            os.pwrite(fd, struct.pack("@Q", _MAGIC), 0)
        elif os.fstat(fd).st_size != self.size:
            raise TakenError(f"the memory of taken requests has {os.fstat(fd).st_size} bytes, not {self.size}")

    def map(self, start: int, size: int) -> mmap.mmap:
        """Map a part, of which a page is in memory, and locked, once it is touched. No child of this process has it."""
        part = mmap.mmap(self.fd, size, offset=start)
        part.madvise(mmap.MADV_DONTFORK)
        return part

    def left(self, device: int) -> list[int]:
        """Where the requests lie that the kernel waits for, as it sent them one after the other; all else is emptied.

        device: the descriptor of the FUSE device. Raises OSError.
        """
        found: dict[int, int] = {}
        for slab in self.slabs:
            for at in range(slab.start, slab.end, slab.size):
                # Not by a mapping, which would bring a page in for each slot.
                length, opcode, unique, *_ = IN_HEADER.unpack(os.pread(self.fd, IN_HEADER.size, at))
                if length == 0:
                    continue
                if opcode in NO_ANSWER or unique in found or not fuse.waits_for(device, unique):
                    os.pwrite(self.fd, EMPTY, at)
                elif not IN_HEADER.size <= length <= slab.size:
                    _log.error("request %d that was taken is damaged: its length is %d", unique, length)
                    fuse.refuse(device, unique, errno.EIO)
                    os.pwrite(self.fd, EMPTY, at)
                else:
                    found[unique] = at
        return [found[unique] for unique in sorted(found)]


def _rounded(size: int) -> int:
    return -(-size // _GRAIN) * _GRAIN
