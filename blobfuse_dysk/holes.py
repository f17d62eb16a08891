"""Gives the memory of a part of a memfd back to the kernel. Source: fallocate(2)."""

from __future__ import annotations

import ctypes

__all__ = ["punch"]

_PUNCH_HOLE, _KEEP_SIZE = 2, 1  # linux/falloc.h


def punch(fd: int, offset: int, length: int) -> None:
    """Give a range back: it holds zeros then, and takes memory again where it is written to.

    Some milliseconds, if there is much. Where the kernel does not do it, all stays as it is.
    """
    words = (ctypes.c_int(_PUNCH_HOLE | _KEEP_SIZE), ctypes.c_int64(offset), ctypes.c_int64(length))
    ctypes.CDLL(None).fallocate64(fd, *words)
