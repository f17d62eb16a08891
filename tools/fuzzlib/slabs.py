"""Tables of slabs that no worker gives: refused, or each slab lies within the memory and behind the one before."""

from __future__ import annotations

from typing import Any, cast

from blobfuse_dysk.device.kernel.fuse import IN_HEADER
from blobfuse_dysk.device.native import _channel
from blobfuse_dysk.device.worker.channel import FSYNC
from tools.fuzzlib.script import Script
from tools.fuzzlib.way import Way

__all__ = ["any_slabs"]

_SIZED = [IN_HEADER.pack(IN_HEADER.size + size, FSYNC, size, 2, 0, 0, 1, 0) + bytes(size) for size in (0, 40, 500)]


def any_slabs(script: Script) -> None:
    """A table that no worker gives. The memory is not mapped, so that ASan sees what is beside it."""
    size = script.one_of((4096, 65536, 200_000, 0))
    memory = bytearray(size)
    table, end = [], 8
    for _ in range(4):
        start = script.one_of((end, end, end + 8, end - 8, 0, 8, size, (1 << 63) - 8, -8, script.number(2)))
        each = script.one_of((80, 88, 512, 80, 88, 512, 79, 72, 0, size, (1 << 63) - 8, script.number(2)))
        slots = script.one_of((1, 2, 3, 1, 2, 3, 0, 4096, 4097, -1, size // 80, script.number(2)))
        table.append((start, each, slots))
        end = start + each * slots
    way = Way(True, True)
    try:
        make = cast("Any", _channel.Channel)
        way.channel = make(way.ours.fileno(), 0, memory, way.memory, tuple(table))
    except (ValueError, OverflowError):
        return
    else:
        end = 8
        for start, each, slots in table:
            assert end <= start <= start + each * slots <= size, "slabs that are none"
            end = start + each * slots
        for _ in range(9):
            way.kernel.send(script.one_of(_SIZED))
            if way.channel.take() is None:
                break
            way.channel.end(script.byte())
            way.channel.trim()
            way.heard()
    finally:
        way.close()
