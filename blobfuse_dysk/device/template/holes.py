"""Fills the holes in the memory of a template, so that its children put what they make close together.

What a program has after it was loaded is full of holes: pieces that were freed, with others around them that stay. Both
allocators, Python's and malloc(), hand these out first. In a child, which shares its memory until it writes to it, that
is the worst place for a new object: a page is copied for each few of them, up to three times for an attachment, since
holder, worker and monitor each do so. So before the first fork the holes are taken, and never used. Then a child begins
with pages that are its own alone. What the template has for that, some 0.5 MiB, all its children share.

Python has pools of 16 KiB, each of pieces of one size, 16 to 512 bytes; it takes a free pool for a size when no other
one has room. So a pool of which (nearly) all was handed out here was free before, and no holes of its size are left.
malloc() takes from the end of its heap when no hole is large enough. Where memory is handed out in some other way, each
of the bounds below ends this. Sources: Objects/obmalloc.c; mallopt(3), malloc_trim(3).
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator

__all__ = ["fill"]

_POOL_BITS, _POOL_HEADER, _STEP, _LARGEST = 14, 48, 16, 512  # bytes, but for the first
_SPARE = 16  # of so many pieces of a pool, one may go to what is made here meanwhile
_MOST_OF_A_SIZE = 128 << 10  # bytes
_HEAP_LARGEST, _HEAP_SMALLEST = 120 << 10, 24  # bytes: below what has a mapping of its own; all that malloc() has
_HEAP_FINE = 1024  # bytes, up to which each size has holes of its own
_MOST_OF_HEAP = 8 << 20  # bytes

_kept: list[list[object]] = []


def fill() -> None:
    """Take all holes, for good. To be called once nothing more is loaded; takes some 10 ms."""
    for size in range(_STEP, _LARGEST + 1, _STEP):
        _fill_pools(size)
    _fill_heap()


def _fill_pools(size: int) -> None:
    """Take Python's free pieces of this size, but for those in pools that were free."""
    most = _MOST_OF_A_SIZE // size
    kept: list[object] = [None] * most  # made at once: a list that grows would take holes and leave others
    taken: dict[int, int] = {}
    pieces = ((1 << _POOL_BITS) - _POOL_HEADER) // size
    full = pieces - pieces // _SPARE
    make = _maker(size)
    for place in range(most):
        kept[place] = make()
        pool = id(kept[place]) >> _POOL_BITS
        taken[pool] = taken.get(pool, 0) + 1
        if taken[pool] >= full:
            kept[:] = [each for each in kept[: place + 1] if id(each) >> _POOL_BITS != pool]
            break
    _kept.append(kept)


def _maker(size: int) -> Callable[[], object]:
    """What makes an object that takes a piece of this size."""
    if size < b"".__sizeof__() + 2:  # the shortest ones are there already, once for all
        return object if size <= object().__sizeof__() else lambda: float(size)
    length = size - b"".__sizeof__()
    return lambda: bytes(length)


def _fill_heap() -> None:
    """Take malloc()'s free pieces, from the largest down, up to where the heap's unused end begins."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    with contextlib.suppress(AttributeError):  # glibc's own
        libc.malloc_trim(ctypes.c_size_t(0))  # joins small ones that lie side by side
    end = libc.malloc(ctypes.c_size_t(_HEAP_LARGEST))
    libc.free(ctypes.c_void_p(end))
    left = _MOST_OF_HEAP
    for size in _heap_sizes():
        while left > 0 and (at := libc.malloc(ctypes.c_size_t(size))):
            if at >= end:
                libc.free(ctypes.c_void_p(at))
                break
            left -= size


def _heap_sizes() -> Iterator[int]:
    size = _HEAP_LARGEST
    while size >= _HEAP_SMALLEST:
        yield size
        size = size * 7 // 8 if size > _HEAP_FINE else size - _STEP
