"""Has a task's buffer for requests in memory before the kernel copies one into it.

libfuse takes the buffer from malloc() when its task reads for the first time, and then reads into it. malloc() may hand
out what lay free and was given back, and the kernel cannot bring a page in while it copies for a process that is being
killed: then it fails the request with EIO (see kernel/hardening.py). So what a task reads first is no request of the
kernel's. For that one read a file takes the place of the device under its number. The file holds a FORGET of nothing,
which nobody answers, and zeros for as much as any buffer takes; so reading it writes to every page of the buffer. A
task keeps its buffer, and a page that was written to stays. Whose buffer the allocator found where does not matter.

The device's place is taken in one step of the event loop: between `begin` and `end` no other task runs, and no other
thread uses the device. The device stays open under another number meanwhile, so what waits for it in epoll goes on.
Sources: linux/fuse.h; libfuse 3, fuse_session_receive_buf() and do_forget(); dup2(2); epoll(7), questions 6 and 7.
"""

from __future__ import annotations

import os
import struct

__all__ = ["NOTHING", "FirstRead"]

_FUSE_FORGET, _ROOT = 2, 1
_HEADER, _FORGET_IN = struct.Struct("<IIQQIIII"), struct.Struct("<Q")  # see fuse.py; nlookup
_MOST = 256 << 20  # bytes; libfuse's largest buffer is fs.fuse.max_pages_limit pages (at most 65535) and one more
NOTHING = _HEADER.pack(_HEADER.size + _FORGET_IN.size, _FUSE_FORGET, 0, _ROOT, 0, 0, 0, 0) + _FORGET_IN.pack(0)
"""What a task reads first, before the zeros."""


class FirstRead:
    """For the device that is open as `fd`. Raises OSError where descriptors are short."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._device = os.dup(fd)
        self._file = os.memfd_create("dysk-first-read", os.MFD_CLOEXEC)
        os.write(self._file, NOTHING)
        os.truncate(self._file, _MOST)  # a hole: it takes no memory

    def begin(self) -> None:
        """The next read from the device is of the file."""
        os.lseek(self._file, 0, os.SEEK_SET)
        os.dup2(self._file, self._fd, inheritable=False)

    def end(self) -> None:
        """Reads are of the device again."""
        os.dup2(self._device, self._fd, inheritable=False)
