"""Memory of taken requests in tests: what the kernel waits for, what is kept, what of it is in memory."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from blobfuse_dysk.device.kernel import fuse
from blobfuse_dysk.device.worker.channel import ROOM, Request
from blobfuse_dysk.device.worker.taken import Taken
from tests.unit.fusefile import pattern
from tests.unit.fusekernel import IN, LARGE, MOST, fsync_request, read_request, request, write_request

GETATTR, LOOKUP, FORGET, INTERRUPT, BATCH_FORGET = 3, 1, 2, 36, 42
OF_EACH_KIND = [
    read_request(2, 4096, 512),
    fsync_request(4),
    write_request(6, 512, b"d" * 512),
    write_request(8, 4096, pattern(4096)),
    write_request(10, 8192, pattern(8192)),
    write_request(12, 0, pattern(LARGE - 1)),
    write_request(14, 0, pattern(LARGE)),
    write_request(16, MOST, pattern(MOST)),
    request(GETATTR, 18, bytes(16)),
    request(LOOKUP, 20, b"disk\0"),
    request(4711, 22, pattern(100_000)),
]


def number(message: bytes) -> int:
    return int(IN.unpack_from(message)[2])


class Kernel:
    """What it waits for, and what it was told to fail."""

    def __init__(self) -> None:
        self.waits: set[int] = set()
        self.refused: list[tuple[int, int]] = []


@pytest.fixture(autouse=True)
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel()
    monkeypatch.setattr(fuse, "waits_for", lambda fd, unique: unique in kernel.waits)
    monkeypatch.setattr(fuse, "refuse", lambda fd, unique, code: kernel.refused.append((unique, code)))
    return kernel


@pytest.fixture
def memory() -> Iterator[int]:
    fd = os.memfd_create("taken")
    yield fd
    os.close(fd)


def opened(memory: int) -> Taken:
    return Taken(memory, MOST + ROOM)


def found(memory: int) -> list[bytes]:
    """What the next worker finds there, as the kernel sent it; all else is emptied."""
    taken = opened(memory)
    places = taken.left(-1)
    return [os.pread(memory, struct.unpack("I", os.pread(memory, 4, at))[0], at) for at in places]


def kept(memory: int) -> list[bytes]:
    """What is in the slots that are not empty."""
    slots = [at for slab in opened(memory).slabs for at in range(slab.start, slab.end, slab.size)]
    lengths = {at: struct.unpack("I", os.pread(memory, 4, at))[0] for at in slots}
    return [os.pread(memory, length, at) for at, length in lengths.items() if length]


def lengths(memory: int) -> int:
    """How many slots are not empty."""
    return len(kept(memory))


def in_memory(memory: int) -> int:
    return os.fstat(memory).st_blocks * 512


def same(one: Any, other: Any) -> bool:
    """Data in a buffer is what it is in bytes."""
    return (bytes(one) if isinstance(one, memoryview) else one) == (
        bytes(other) if isinstance(other, memoryview) else other
    )


def alike(one: Request | bytes, other: Request | bytes) -> bool:
    if isinstance(one, tuple) and isinstance(other, tuple):
        return all(same(*each) for each in zip(one, other, strict=True))
    return one == other


def put(memory: int, at: int, message: bytes) -> None:
    assert os.pwrite(memory, message, at) == len(message)


def resident(offset: int, size: int) -> int:
    """Bytes of this range of the memory that are mapped here, by all that this process has of it."""
    most, entry = 0, None
    page = mmap.PAGESIZE
    with Path("/proc/self/maps").open() as maps, Path("/proc/self/pagemap").open("rb", buffering=0) as pages:
        for line in maps:
            where, _, start, _, inode, *name = line.split()
            if not name or "memfd:taken" not in name[0] or inode == "0":
                continue
            begin, end = (int(each, 16) for each in where.split("-"))
            first, last = max(offset, int(start, 16)), min(offset + size, int(start, 16) + end - begin)
            if first >= last:
                continue
            entry = os.pread(pages.fileno(), (last - first) // page * 8, (begin + first - int(start, 16)) // page * 8)
            most = max(most, page * sum(each >> 63 for each in struct.unpack(f"{len(entry) // 8}Q", entry)))
    return most
