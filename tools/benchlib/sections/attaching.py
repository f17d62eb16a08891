"""How long attaching and detaching take, from the start of dyskctl to a device that answers, and what it costs.

2 ms of service time; new, blank disks, but for the one of 8 TiB, which has as many extents as its row says. A device
answers when 4 KiB of it were read past the page cache; on the disk with extents that takes the first page list.
"""

from __future__ import annotations

import mmap
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

from tools.benchlib.bench import OURS, Bench, Section
from tools.benchlib.figures import Setting
from tools.benchlib.meter import counted
from tools.benchlib.place import Place, open_place
from tools.benchlib.scattered import scatter
from tools.benchlib.tables import column

__all__ = ["SECTION", "SERVICE_MS", "attach", "detach", "fragmented", "one_by_one", "read_directly", "together"]

SERVICE_MS = 2.0
_SIZE = 1 << 30  # bytes
_LARGEST = 8 << 40  # bytes


def _measure(bench: Bench) -> None:
    plan = bench.plan
    with open_place(SERVICE_MS) as place:
        bench.add(OURS, {"load": "alone", "disks": plan.attach_alone}, one_by_one(place, plan.attach_alone))
        bench.add(OURS, {"load": "at once", "disks": plan.attach_together}, together(place, plan.attach_together))
    with open_place(SERVICE_MS) as place:
        setting: dict[str, Setting] = {"load": f"8 TiB, {plan.extents:,} extents", "disks": 1, "extents": plan.extents}
        bench.add(OURS, setting, fragmented(place, plan.extents))


def one_by_one(place: Place, count: int) -> dict[str, float]:
    """Attach and detach `count` disks one after the other."""
    attached, detached, memory = [], [], []
    for number in range(count):
        name = f"one{number}"
        disk = place.make_disk(name, _SIZE)
        attached.append(attach(place, disk, name))
        memory.append(place.memory())
        detached.append(detach(place, name))
    return {
        "attach_s": statistics.median(attached),
        "attach_worst_s": max(attached),
        "detach_s": statistics.median(detached),
        "detach_worst_s": max(detached),
        "pss_mib": statistics.median(memory) / 2**20,
    }


def together(place: Place, count: int) -> dict[str, float]:
    """Attach `count` disks at the same time, then detach all at the same time; *_all_s is until the last."""
    names = [f"all{number}" for number in range(count)]
    disks = [place.make_disk(name, _SIZE) for name in names]
    with ThreadPoolExecutor(count) as pool:
        start = time.monotonic()
        attached = list(pool.map(lambda disk, name: attach(place, disk, name), disks, names))
        all_attached = time.monotonic()
        memory = place.memory()
        middle = time.monotonic()
        detached = list(pool.map(lambda name: detach(place, name), names))
        end = time.monotonic()
    return {
        "attach_s": statistics.median(attached),
        "attach_worst_s": max(attached),
        "attach_all_s": all_attached - start,
        "detach_s": statistics.median(detached),
        "detach_worst_s": max(detached),
        "detach_all_s": end - middle,
        "pss_mib": memory / count / 2**20,
    }


def fragmented(place: Place, extents: int) -> dict[str, float]:
    """The largest disk, with so many extents: three times, the median; requests of one attach with its first read."""
    place.server.configure(latency_ms=0)
    disk = place.make_disk("fragmented", _LARGEST)
    scatter(place.url("fragmented", write=True), _LARGEST, extents)
    place.server.configure(latency_ms=SERVICE_MS)
    attached, detached, requests, memory = [], [], [], []
    for _ in range(3):
        with counted(place.meter()) as count:
            attached.append(attach(place, disk, "fragmented"))
        requests.append(count.requests())
        memory.append(place.memory())
        detached.append(detach(place, "fragmented"))
    return {
        "attach_s": statistics.median(attached),
        "attach_worst_s": max(attached),
        "detach_s": statistics.median(detached),
        "detach_worst_s": max(detached),
        "pss_mib": statistics.median(memory) / 2**20,
        "requests": statistics.median(requests),
    }


def attach(place: Place, disk: str, name: str) -> float:
    """Seconds until the device of a disk that is attached now has answered."""
    start = time.monotonic()
    device = place.run("attach", disk, "--name", name)
    read_directly(device)
    return time.monotonic() - start


def detach(place: Place, name: str) -> float:
    """Seconds that detaching takes."""
    start = time.monotonic()
    place.run("detach", name)
    return time.monotonic() - start


def read_directly(device: str) -> None:
    """Read the first 4 KiB past the page cache: the device answers."""
    descriptor = os.open(device, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, 4096) as buffer:  # direct I/O wants an aligned buffer
            if os.preadv(descriptor, [buffer], 0) != 4096:
                raise OSError(f"{device} gave a short read")
    finally:
        os.close(descriptor)


SECTION = Section(
    "attaching",
    f"Attaching and detaching, {SERVICE_MS:g} ms of service time",
    (
        column("disks", "load"),
        column("number", "disks"),
        column("attach, median", "attach_s", "ms"),
        column("worst", "attach_worst_s", "ms"),
        column("until the last", "attach_all_s", "s"),
        column("detach, median", "detach_s", "ms"),
        column("worst", "detach_worst_s", "ms"),
        column("until the last", "detach_all_s", "s"),
        column("PSS of holder, worker and monitor", "pss_mib", "MiB"),
        column("requests", "requests"),
    ),
    _measure,
)
