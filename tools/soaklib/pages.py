"""512-byte pages that say of themselves where they belong and which write they come from.

A page is 31 times the same cell (space, address, version, checksum) and an end mark, so that a page that lies
elsewhere, is torn between two writes, or is shifted shows at once. Version 0 is a page of zeros.

A space is a disk (0) or one file on it (its number); addresses count from the beginning of the space.
"""

from __future__ import annotations

import os
import struct
import zlib
from array import array

__all__ = ["FOREIGN", "PAGE", "PageBuffer", "fill", "make", "read_all", "versions"]

PAGE = 512
FOREIGN = -1  # neither zeros nor a page that was ever meant for this place
_BODY = struct.Struct("<IIQ")  # space and address together, checksum, version
_CELLS = PAGE // 16 - 1
_END = b"end of a page.  "
_ZEROS = bytes(PAGE)
_UNIT = 1 << 20  # bytes read at once


def make(space: int, address: int, version: int) -> bytes:
    """One page; `address` in bytes."""
    place = (space << 20) ^ (address // PAGE)
    check = zlib.crc32(struct.pack("<IQ", place, version))
    return _BODY.pack(place, check, version) * _CELLS + _END


def fill(buffer: memoryview, space: int, address: int, version: int) -> None:
    """Fill a buffer with the pages that belong at `address` onwards; version 0: with zeros."""
    length = len(buffer)
    if version == 0:
        buffer[:] = bytes(length)
    else:
        buffer[:] = b"".join(make(space, address + at, version) for at in range(0, length, PAGE))


def versions(data: bytes | memoryview, space: int, address: int) -> list[int]:
    """The version of each page, FOREIGN where it is none. A last page that is not whole counts if it is zeros."""
    found = []
    view = memoryview(data)
    for at in range(0, len(view), PAGE):
        page = bytes(view[at : at + PAGE])
        if page == _ZEROS[: len(page)]:
            found.append(0)
            continue
        version = _BODY.unpack_from(page)[2] if len(page) == PAGE else FOREIGN
        found.append(version if version > 0 and page == make(space, address + at, version) else FOREIGN)
    return found


class PageBuffer:
    """Memory that direct I/O takes (aligned to pages of the machine), reused for every call of one thread."""

    def __init__(self, size: int) -> None:
        import mmap

        self._memory = memoryview(mmap.mmap(-1, size))

    def prepared(self, space: int, address: int, length: int, version: int) -> memoryview:
        """The first `length` bytes, filled."""
        view = self._memory[:length]
        fill(view, space, address, version)
        return view

    def read(self, fd: int, address: int, length: int) -> memoryview:
        """Read exactly `length` bytes; OSError, also for a short read."""
        view = self._memory[:length]
        done = os.preadv(fd, [view], address)
        if done != length:
            raise OSError(5, f"{done} of {length} bytes")
        return view


def read_all(path: str, size: int) -> array[int]:
    """The version of every page of a device, past the kernel's cache."""
    found = array("q")
    buffer = PageBuffer(_UNIT)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    try:
        for address in range(0, size, _UNIT):
            found.extend(versions(buffer.read(fd, address, min(_UNIT, size - address)), 0, address))
    finally:
        os.close(fd)
    return found
