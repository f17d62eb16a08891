"""Small synchronous writes: 4 KiB, sequential, with fsync after each or after every 32. 2 ms of service time.

On the device with direct I/O each write reaches the disk by itself: this is where a write cache in the disk helps.
Buffered on ext4 the page cache has merged the 32 writes before fsync hands them on, so little is left to merge.
`requests` is the number of Put Page calls for each 4 KiB written.
"""

from __future__ import annotations

from tools.benchlib import ext4, fio
from tools.benchlib.bench import OURS, Bench, Section
from tools.benchlib.fio import Job
from tools.benchlib.meter import counted
from tools.benchlib.place import Place, open_place
from tools.benchlib.tables import column

__all__ = ["SECTION", "SERVICE_MS"]

SERVICE_MS = 2.0
_SIZE = 128 << 20  # bytes of the disk
_FILE = "32m"


def _measure(bench: Bench) -> None:
    with open_place(SERVICE_MS) as place:
        for cache in ("none", "readwrite"):
            disk = place.make_disk(f"barriers-{cache}", _SIZE)
            with place.attached(disk, "--cache", cache) as device:
                for every in (1, 32):
                    _one(bench, place, device, cache, every, direct=True)
                ext4.make(device)
                with ext4.mounted(device, place.root) as point:
                    fio.fill(str(point / "file"), _FILE)
                    for every in (1, 32):
                        _one(bench, place, str(point / "file"), cache, every, direct=False)


def _one(bench: Bench, place: Place, target: str, cache: str, every: int, *, direct: bool) -> None:
    plan = bench.plan
    job = Job("write", 0, plan.seconds, direct=direct, fsync=every, size=_FILE)
    meter = place.meter()
    with counted(meter) as count:
        values = fio.run(target, job, meter)
    setting = {"load": "device, direct" if direct else "ext4, buffered", "fsync": every, "cache": cache}
    share = count.requests("put_page", "clear_page") / max(values["ios"], 1)
    bench.add(OURS, setting | {"service_ms": SERVICE_MS}, values | {"requests_per_write": share})


SECTION = Section(
    "fsync",
    f"4 KiB sequential writes with fsync, {SERVICE_MS:g} ms of service time",
    (
        column("load", "load"),
        column("fsync every", "fsync"),
        column("cache", "cache"),
        column("writes/s", "iops"),
        column("MB/s", "mbps", "MB/s"),
        column("Put Page per write", "requests_per_write", "two"),
        column("CPU per write", "cpu_us_per_io", "us"),
    ),
    _measure,
)
