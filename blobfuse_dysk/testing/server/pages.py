"""The pages of one page blob, on a sparse file: anonymous (memfd) or named.

A file of either kind reads as zeros where nothing was written, so that reading is one pread whatever is
allocated. Which pages are *allocated* (written and not cleared since, zeros included) is kept beside it: one
integer of 128 bits for each chunk of 64 KiB that has any. With a directory, these masks go into a second sparse
file at every change, so that a killed server finds them again.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["CHUNK", "PAGE", "Pages"]

PAGE = 512
CHUNK = 65536
PAGES_PER_CHUNK = CHUNK // PAGE
FULL = (1 << PAGES_PER_CHUNK) - 1
MASK_BYTES = PAGES_PER_CHUNK // 8

_PUNCH_HOLE_KEEP_SIZE = 0x02 | 0x01  # linux/falloc.h: FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class Pages:
    """`size` bytes; offsets and lengths of write and clear are multiples of 512 inside it (the caller checks)."""

    def __init__(self, size: int, path: Path | None = None) -> None:
        """An anonymous file, or the file at `path` (and `path`.map), taken up again if it is there."""
        self.size = size
        self.path = path
        self._masks: dict[int, int] = {}
        self._map_fd = -1
        if path is None:
            self._fd = os.memfd_create("page-blob", os.MFD_CLOEXEC)
        else:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._map_fd = os.open(f"{path}.map", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._load_masks()
        os.ftruncate(self._fd, size)

    def read(self, offset: int, length: int) -> bytes:
        """Any offset and length inside the blob, not only whole pages."""
        data = os.pread(self._fd, length, offset)
        while len(data) < length:  # pread of more than 2 GiB comes in pieces
            data += os.pread(self._fd, length - len(data), offset + len(data))
        return data

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Store `data` and mark its pages allocated."""
        rest = memoryview(data)
        position = offset
        while rest:
            done = os.pwrite(self._fd, rest, position)
            rest, position = rest[done:], position + done
        for chunk, mask in _chunks(offset, len(data)):
            old = self._masks.get(chunk, 0)
            if old | mask != old:
                self._set_mask(chunk, old | mask)

    def clear(self, offset: int, length: int) -> None:
        """Free the pages; they read as zeros."""
        self._zero(offset, length)
        for chunk, mask in self._allocated_chunks(offset, length):
            old = self._masks[chunk]
            if old & mask:
                self._set_mask(chunk, old & ~mask)

    def resize(self, size: int) -> None:
        """Cut off the end, or add unallocated pages."""
        if size < self.size:
            self.clear(size, self.size - size)
        os.ftruncate(self._fd, size)
        self.size = size

    def ranges(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """Allocated ranges as (start, end), end exclusive, in order, neighbours joined, clipped to what was asked."""
        start = end = -1
        for chunk, mask in self._allocated_chunks(offset, length):
            for run_start, run_end in _runs(self._masks[chunk] & mask):
                run_start, run_end = chunk * CHUNK + run_start * PAGE, chunk * CHUNK + run_end * PAGE
                if run_start != end:
                    if end > start:
                        yield start, end
                    start = run_start
                end = run_end
        if end > start:
            yield start, end

    def changes(self, before: Pages, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
        """What differs from `before`, an earlier state of this blob: (start, end, whether it is allocated now).

        In order, neighbours of a kind joined; pages written with what they held before are no difference. Behind this
        blob's end there is nothing.
        """
        end = min(offset + length, self.size)
        start, stop, kind = -1, -1, False
        for chunk in sorted(self._masks.keys() | before._masks.keys()):
            wanted = _mask_in_chunk(chunk, offset, end) if chunk * CHUNK < end and (chunk + 1) * CHUNK > offset else 0
            for page, allocated in self._changes_in_chunk(before, chunk, wanted) if wanted else ():
                position = chunk * CHUNK + page * PAGE
                if (position, allocated) != (stop, kind):
                    if stop > start:
                        yield start, stop, kind
                    start, kind = position, allocated
                stop = position + PAGE
        if stop > start:
            yield start, stop, kind

    def _changes_in_chunk(self, before: Pages, chunk: int, wanted: int) -> Iterator[tuple[int, bool]]:
        """(page of the chunk, whether it is allocated now) for each page of `wanted` that differs."""
        base = chunk * CHUNK
        now, old = self._masks.get(chunk, 0), before._masks.get(chunk, 0)
        ours, theirs = self.read(base, min(CHUNK, self.size - base)), before._read_or_zeros(base, CHUNK)
        for page in range(PAGES_PER_CHUNK):
            bit = 1 << page
            if not wanted & bit:
                continue
            part = slice(page * PAGE, (page + 1) * PAGE)
            if now & bit and (not old & bit or ours[part] != theirs[part]):
                yield page, True
            elif old & bit and not now & bit:
                yield page, False

    def _read_or_zeros(self, offset: int, length: int) -> bytes:
        """`length` bytes, zeros behind the end."""
        inside = max(0, min(length, self.size - offset))
        return (self.read(offset, inside) if inside else b"").ljust(length, b"\0")

    @property
    def allocated(self) -> int:
        """Bytes of allocated pages."""
        return PAGE * sum(mask.bit_count() for mask in self._masks.values())

    def copy(self, path: Path | None = None) -> Pages:
        """An independent copy: a snapshot."""
        twin = Pages(self.size, path)
        for start, end in self.ranges(0, self.size):
            for position in range(start, end, 1 << 20):
                twin.write(position, self.read(position, min(1 << 20, end - position)))
        return twin

    def close(self) -> None:
        """Give the memory or the descriptors back; a named file stays."""
        os.close(self._fd)
        if self._map_fd >= 0:
            os.close(self._map_fd)

    def remove(self) -> None:
        """Close, and remove a named file."""
        self.close()
        if self.path is not None:
            self.path.unlink(missing_ok=True)
            Path(f"{self.path}.map").unlink(missing_ok=True)

    def _allocated_chunks(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """(chunk, mask of the pages inside the range) for every chunk of the range that has an allocated page."""
        first, last = offset // CHUNK, (offset + length - 1) // CHUNK
        if last - first < len(self._masks):
            wanted = [chunk for chunk in range(first, last + 1) if chunk in self._masks]
        else:
            wanted = sorted(chunk for chunk in self._masks if first <= chunk <= last)
        for chunk in wanted:
            yield chunk, _mask_in_chunk(chunk, offset, offset + length)

    def _set_mask(self, chunk: int, mask: int) -> None:
        if mask:
            self._masks[chunk] = mask
        else:
            self._masks.pop(chunk, None)
        if self._map_fd >= 0:
            os.pwrite(self._map_fd, mask.to_bytes(MASK_BYTES, "little"), chunk * MASK_BYTES)

    def _load_masks(self) -> None:
        position = 0
        while True:
            try:
                position = os.lseek(self._map_fd, position, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # no data behind this position
                    return
                raise
            position -= position % MASK_BYTES
            end = os.lseek(self._map_fd, position, os.SEEK_HOLE)
            data = os.pread(self._map_fd, end - position, position)
            for index in range(0, len(data), MASK_BYTES):
                mask = int.from_bytes(data[index : index + MASK_BYTES], "little")
                if mask:
                    self._masks[(position + index) // MASK_BYTES] = mask
            position = end

    def _zero(self, offset: int, length: int) -> None:
        if _libc.fallocate(self._fd, _PUNCH_HOLE_KEEP_SIZE, offset, length) == 0:
            return
        if ctypes.get_errno() != errno.EOPNOTSUPP:
            raise OSError(ctypes.get_errno(), "fallocate")
        for start, end in list(self.ranges(offset, length)):
            os.pwrite(self._fd, bytes(end - start), start)


def _mask_in_chunk(chunk: int, start: int, end: int) -> int:
    """The bits of the pages of `chunk` that lie in [start, end)."""
    base = chunk * CHUNK
    first = max(start - base, 0) // PAGE
    last = (min(end - base, CHUNK) + PAGE - 1) // PAGE
    return (1 << last) - (1 << first)


def _chunks(offset: int, length: int) -> Iterator[tuple[int, int]]:
    """(chunk, mask) for each chunk that the range touches."""
    for chunk in range(offset // CHUNK, (offset + length - 1) // CHUNK + 1):
        yield chunk, _mask_in_chunk(chunk, offset, offset + length)


def _runs(mask: int) -> Iterator[tuple[int, int]]:
    """(first, last + 1) of each run of set bits."""
    base = 0
    while mask:
        zeros = (mask & -mask).bit_length() - 1
        mask >>= zeros
        ones = (~mask & (mask + 1)).bit_length() - 1
        yield base + zeros, base + zeros + ones
        mask >>= ones
        base += zeros + ones
