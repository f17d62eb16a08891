"""Memory stays bounded: a writer that is much faster than the service, and what the worker comes to hold.

The service takes 20 MB/s; fio writes 1 MiB blocks at depth 32 as fast as they are accepted. The greatest resident set
of the worker, sampled every 20 ms, is set against what was configured, the write cache (nothing is read here, so the
read cache stays empty), and what an idle worker has. `over_mib` is the rest: requests in flight, from the kernel and to
the service. That is to be a constant: it must grow neither with the time nor with the size of the cache.
"""

from __future__ import annotations

import subprocess
import time

from tools.benchlib import fio
from tools.benchlib.bench import OURS, Bench, Section
from tools.benchlib.fio import Job
from tools.benchlib.place import open_place
from tools.benchlib.processes import rss_bytes
from tools.benchlib.tables import column

__all__ = ["SECTION"]

_SIZE = 4 << 30  # bytes
_TIER = "5000/20"  # I/O operations and MB per second
_READ_CACHE = 32  # MiB
_SAMPLE_S = 0.02


def _measure(bench: Bench) -> None:
    with open_place(0) as place:
        for mib in bench.plan.memory_mib:
            name = f"memory{mib}"
            disk = place.make_disk(name, _SIZE)
            place.server.configure(latency_ms=2, tier=_TIER)
            sizes = ("--write-cache-size", f"{mib}MiB", "--read-cache-size", f"{_READ_CACHE}MiB")
            with place.attached(disk, *sizes, throw_away=True) as device:
                worker = place.processes("worker")
                idle = rss_bytes(worker)
                early = _watch(device, worker, bench.plan.memory_s)
                greatest = max(early, _watch(device, worker, 2 * bench.plan.memory_s))
            place.server.configure(latency_ms=0, tier=None)
            place.remove_disk(name)
            bench.add(
                OURS,
                {"load": "writer faster than the service", "write_cache_mib": mib, "read_cache_mib": _READ_CACHE},
                {
                    "idle_rss_mib": idle / 2**20,
                    "early_rss_mib": early / 2**20,
                    "max_rss_mib": greatest / 2**20,
                    "over_mib": (greatest - idle) / 2**20 - mib,
                },
            )


def _watch(device: str, worker: list[int], seconds: float) -> int:
    """The greatest resident set while fio writes, in bytes."""
    command = fio.command(device, Job("write", 32, seconds, block="1m"))
    load = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    greatest = 0
    try:
        while load.poll() is None:
            greatest = max(greatest, rss_bytes(worker))
            time.sleep(_SAMPLE_S)
    finally:
        load.kill()
        load.wait()
    if load.returncode:
        raise RuntimeError(f"fio ended with {load.returncode}")
    return greatest


SECTION = Section(
    "memory",
    "Memory of the worker under a writer that is faster than the service (20 MB/s)",
    (
        column("write cache", "write_cache_mib", "MiB"),
        column("read cache", "read_cache_mib", "MiB"),
        column("idle RSS", "idle_rss_mib", "MiB"),
        column("greatest RSS, first third", "early_rss_mib", "MiB"),
        column("greatest RSS", "max_rss_mib", "MiB"),
        column("above idle and write cache", "over_mib", "MiB"),
    ),
    _measure,
)
