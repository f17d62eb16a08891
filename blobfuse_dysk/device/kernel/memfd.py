"""The memory in which a worker's configuration travels, secrets included: it cannot be changed, nor be swapped out.

Sources: memfd_create(2), fcntl(2), "File Sealing", mmap(2), MAP_LOCKED. Standard library only, as the holder.
"""

from __future__ import annotations

import fcntl
import mmap
import os

__all__ = ["locked", "sealed"]

_MAP_LOCKED = 0x2000  # asm-generic/mman.h
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


def sealed(name: str, data: bytes) -> int:
    """A memfd that holds this for good. Raises OSError; the descriptor belongs to the caller."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(os.dup(fd), "wb", buffering=0) as file:
            if file.write(data) != len(data):
                raise OSError(f"{name}: only a part was written")
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


def locked(fd: int) -> mmap.mmap | None:
    """Keep what a memfd holds in memory for as long as the result is; None if it is empty or cannot be locked.

    Nothing of it is read, and no child has it. Private and for reading only: a sealed one is mapped in no other way
    before Linux 6.7, and its pages are those of the memfd all the same.
    """
    from blobfuse_dysk.device.kernel import hardening  # loads ctypes, which those who only seal do without

    try:
        with hardening.at_once():
            memory = mmap.mmap(fd, os.fstat(fd).st_size, flags=mmap.MAP_PRIVATE | _MAP_LOCKED, prot=mmap.PROT_READ)
        memory.madvise(mmap.MADV_DONTFORK)
        return memory
    except (OSError, ValueError):
        return None
