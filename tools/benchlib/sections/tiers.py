"""What a tier sells, and how much of it a disk delivers: the server limited to P10 to P40, 2 ms of service time.

The server lets 50 ms of work through at once and answers 503 to what would wait for more than another 50 ms. Rates are
between two moments of a steady load: `device_iops` and `device_mbps` are the kernel's counts of the loop device (fio's
own leave out the I/O that its ramp left in flight, which is 2 % of a slow tier), `served_per_s` and `service_mbps` the
server's. `of_limit` is of the device. But with cache=readwrite a write is accepted before it is sent, and neighbours
are merged: there it is of the server. `busy_share` is the part of all requests, from the first on, that was answered
503.
"""

from __future__ import annotations

from dataclasses import dataclass

from blobfuse_dysk.testing.server.throttle import TIERS
from tools.benchlib import fio
from tools.benchlib.bench import OURS, Bench, Section
from tools.benchlib.figures import Setting
from tools.benchlib.fio import Job, Pattern
from tools.benchlib.place import Place, open_place
from tools.benchlib.tables import column

__all__ = ["LOADS", "SECTION", "SERVICE_MS"]

SERVICE_MS = 2.0
_FILLED = 512 << 20  # bytes of the disk that is read
_SIZE = 4 << 30  # bytes of a disk that is written: random writes seldom have neighbours


@dataclass(frozen=True, slots=True)
class _Load:
    pattern: Pattern
    block: str
    depth: int
    cache: str
    limit: int  # 0: of operations, 1: of bytes


LOADS = (
    _Load("randread", "4k", 64, "readwrite", 0),
    _Load("randwrite", "4k", 64, "none", 0),
    _Load("randwrite", "4k", 64, "readwrite", 0),
    _Load("read", "1m", 8, "readwrite", 1),
    _Load("write", "1m", 8, "none", 1),
    _Load("write", "1m", 8, "readwrite", 1),
)


def _measure(bench: Bench) -> None:
    for tier in bench.plan.tiers:
        with open_place(0) as place:
            filled = place.make_disk("filled", _FILLED)
            with place.attached(filled) as device:
                fio.fill(device)
            place.server.configure(latency_ms=SERVICE_MS, tier=tier)
            for number, load in enumerate(LOADS):
                if load.pattern.endswith("read"):
                    _one(bench, place, filled, tier, load)
                else:
                    _one(bench, place, place.make_disk(f"blank{number}", _SIZE), tier, load)
                    place.remove_disk(f"blank{number}")


def _one(bench: Bench, place: Place, disk: str, tier: str, load: _Load) -> None:
    """Attached afresh, so that nothing is known of the limits, and detached by force: nobody needs what was written."""
    plan = bench.plan
    job = Job(load.pattern, load.depth, plan.seconds, load.block, plan.tier_ramp_s)
    with place.attached(disk, "--cache", load.cache, throw_away=True) as device:
        values = fio.run(device, job, place.meter(device))
    limit = TIERS[tier][load.limit]
    behind = load.pattern.endswith("write") and load.cache == "readwrite"
    if load.limit == 0:
        done = values["served_per_s" if behind else "device_iops"]
    else:
        done = values["service_mbps" if behind else "device_mbps"] * 1e6
    setting: dict[str, Setting] = {
        "load": load.pattern,
        "block": load.block,
        "depth": load.depth,
        "cache": load.cache,
        "tier": tier,
    }
    bench.add(OURS, setting | {"service_ms": SERVICE_MS}, values | {"of_limit": done / limit, "limit": limit})


SECTION = Section(
    "tiers",
    f"Limits of a tier, {SERVICE_MS:g} ms of service time",
    (
        column("tier", "tier"),
        column("load", "load"),
        column("block", "block"),
        column("depth", "depth"),
        column("cache", "cache"),
        column("IOPS", "device_iops"),
        column("MB/s", "device_mbps", "MB/s"),
        column("requests/s", "served_per_s"),
        column("MB/s of the service", "service_mbps", "MB/s"),
        column("of the limit", "of_limit", "percent"),
        column("answers 503", "busy_share", "percent"),
        column("CPU per I/O", "cpu_us_per_io", "us"),
        column("worker's CPU", "cpu_percent", "one"),
    ),
    _measure,
)
