"""How long attaching and detaching take, from the start of dyskctl to a device that answers, and what it costs."""

from __future__ import annotations

import mmap
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

from tools.benchlib.place import Place
from tools.benchlib.processes import pss_bytes

__all__ = ["one_by_one", "together"]

_SIZE = 1 << 30  # bytes


def one_by_one(place: Place, count: int) -> dict[str, float]:
    """Attach and detach `count` disks one after the other."""
    attach, detach, memory = [], [], []
    for number in range(count):
        name = f"one{number}"
        disk = place.make_disk(name, _SIZE)
        attach.append(_attach(place, disk, name))
        memory.append(pss_bytes(place.processes()))
        detach.append(_detach(place, name))
    return {
        "count": count,
        "attach_median_s": statistics.median(attach),
        "attach_worst_s": max(attach),
        "detach_median_s": statistics.median(detach),
        "detach_worst_s": max(detach),
        "pss_mib": statistics.median(memory) / 2**20,
    }


def together(place: Place, count: int) -> dict[str, float]:
    """Attach `count` disks at the same time, then detach all at the same time."""
    names = [f"all{number}" for number in range(count)]
    disks = [place.make_disk(name, _SIZE) for name in names]
    with ThreadPoolExecutor(count) as pool:
        start = time.monotonic()
        attach = list(pool.map(lambda disk, name: _attach(place, disk, name), disks, names))
        attached = time.monotonic()
        memory = pss_bytes(place.processes())
        middle = time.monotonic()
        list(pool.map(lambda name: _detach(place, name), names))
        end = time.monotonic()
    return {
        "count": count,
        "attach_all_s": attached - start,
        "attach_median_s": statistics.median(attach),
        "detach_all_s": end - middle,
        "pss_each_mib": memory / count / 2**20,
    }


def _attach(place: Place, disk: str, name: str) -> float:
    start = time.monotonic()
    device = place.run("attach", disk, "--name", name)
    _read_directly(device)
    return time.monotonic() - start


def _detach(place: Place, name: str) -> float:
    start = time.monotonic()
    place.run("detach", name)
    return time.monotonic() - start


def _read_directly(device: str) -> None:
    """Read the first 4 KiB past the page cache: the device answers."""
    descriptor = os.open(device, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, 4096) as buffer:  # direct I/O wants an aligned buffer
            if os.preadv(descriptor, [buffer], 0) != 4096:
                raise OSError(f"{device} gave a short read")
    finally:
        os.close(descriptor)
