"""Stamped pages (blobfuse_dysk/testing/pages.py) on devices and files, in memory for direct I/O."""

from __future__ import annotations

import mmap
import os
from array import array

from blobfuse_dysk.testing.pages import PAGE, stamped, versions

__all__ = ["PageBuffer", "read_all"]

_UNIT = 1 << 20  # bytes read at once


class PageBuffer:
    """Memory that direct I/O takes (aligned to pages of the machine), reused for every call of one thread."""

    def __init__(self, size: int) -> None:
        self._memory = memoryview(mmap.mmap(-1, size))

    def prepared(self, space: int, address: int, length: int, version: int) -> memoryview:
        """The first `length` bytes, filled with the pages that belong at `address` onwards; version 0: with zeros."""
        view = self._memory[:length]
        first = address // PAGE
        pages = range(first, first + length // PAGE)
        view[:] = b"".join(stamped(version, page, space) for page in pages) if version else bytes(length)
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
            found.extend(versions(buffer.read(fd, address, min(_UNIT, size - address)), address // PAGE))
    finally:
        os.close(fd)
    return found
