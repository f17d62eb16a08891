"""What the kernel has of a block device in memory and has not written yet.

Sources: mm/backing-dev.c (bdi_debug_stats_show), cachestat(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import os

__all__ = ["unwritten"]

_DEBUG = "/sys/kernel/debug/bdi"
_CACHESTAT = 451  # on every architecture, since Linux 6.5
_PAGE = os.sysconf("SC_PAGE_SIZE")


def unwritten(device: str, *, mounted: bool) -> int | None:
    """Bytes, file systems on the device included; None where the kernel does not tell.

    debugfs tells it, where it is mounted. Else cachestat(2) does of the device's own pages, which are all there are if
    no file system is mounted.
    """
    try:
        number = os.stat(device).st_rdev
        with open(f"{_DEBUG}/{os.major(number)}:{os.minor(number)}/stats") as file:
            rows = dict(line.split(":", 1) for line in file if ":" in line)
        return sum(int(rows[name].split()[0]) for name in ("BdiWriteback", "BdiReclaimable")) << 10
    except (OSError, KeyError, ValueError, IndexError):
        return None if mounted else _dirty_pages(device)


def _dirty_pages(path: str) -> int | None:
    """Of a file or device itself."""
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            everything = (ctypes.c_uint64 * 2)(0, 0)  # struct cachestat_range: offset, length; 0 is up to the end
            counts = (ctypes.c_uint64 * 5)()  # struct cachestat: cached, dirty, under writeback, evicted, lately
            if ctypes.CDLL(None).syscall(_CACHESTAT, fd, everything, counts, 0) == 0:
                return int(counts[1] + counts[2]) * _PAGE
        finally:
            os.close(fd)
    return None
