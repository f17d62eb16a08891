"""Reading a file on ext4 from start to end, and what is read that nobody asked for. 2 ms of service time.

A buffered reader of 128 KiB at a time (one system call after the other) is helped by two kinds of read-ahead: the
kernel's (read_ahead_kb of the device) and the worker's (cache=readwrite). All four combinations are measured;
`kernel_ra_kib` says what the kernel's was. With its own set to 0 the kernel reads page by page, whatever the program
asks for, so the row with neither is slower than a program without read-ahead need be: what to compare with is the
direct read with cache=none, one round trip for each 128 KiB. Each attachment is a new one, and fio takes the file out
of the page cache before it begins.

With the kernel's read-ahead the file is read twice, and the second reading is the one to judge by; requests are counted
for each, so it can be seen that nothing is left from the first. On a virtual machine whose host backs memory only when
it is used (and takes free memory back after seconds), the first reading measures how fast the host does that.

`amplification` is bytes that the server sent divided by bytes that the program read; page lists are among the former.
"""

from __future__ import annotations

from tools.benchlib import ext4, fio
from tools.benchlib.bench import OURS, Bench, Section
from tools.benchlib.figures import Setting
from tools.benchlib.fio import Job
from tools.benchlib.place import Place, open_place
from tools.benchlib.tables import column

__all__ = ["SECTION", "SERVICE_MS"]

SERVICE_MS = 2.0
_WHO = {(True, True): "kernel and worker", (True, False): "kernel", (False, True): "worker", (False, False): "none"}


def _measure(bench: Bench) -> None:
    size = bench.plan.file_mib << 20
    with open_place(0) as place:
        disk = place.make_disk("streams", 2 * size + (128 << 20))
        with place.attached(disk) as device:
            ext4.make(device)
            with ext4.mounted(device, place.root) as point:
                fio.fill(str(point / "file"), f"{size}")
        place.server.configure(latency_ms=SERVICE_MS)
        for cache in ("readwrite", "none"):
            for kernel in (True, False):
                _stream(bench, place, disk, cache, kernel)
        _direct(bench, place, disk)


def _stream(bench: Bench, place: Place, disk: str, cache: str, kernel: bool) -> None:
    """The file once, by read(2) calls of 128 KiB. kernel: with the read-ahead that attaching set, or without."""
    with place.attached(disk, "--cache", cache) as device:
        ahead = ext4.set_read_ahead(device, 0)
        if kernel:
            ext4.set_read_ahead(device, ahead)
        with ext4.mounted(device, place.root) as point:
            job = Job("read", 0, bench.plan.stream_s, block="128k", direct=False)
            for load in ("first buffered read", "buffered read") if kernel else ("buffered read",):
                values, count = fio.run_whole(str(point / "file"), job, place.meter())
                setting: dict[str, Setting] = {
                    "load": load,
                    "block": "128k",
                    "cache": cache,
                    "kernel_ra_kib": ahead if kernel else 0,
                    "read_ahead": _WHO[kernel, cache == "readwrite"],
                    "service_ms": SERVICE_MS,
                    "depth": 1,
                }
                requests = {"requests": count.requests("get_blob"), "amplification": count.bytes_read / values["bytes"]}
                bench.add(OURS, setting, values | requests)


def _direct(bench: Bench, place: Place, disk: str) -> None:
    """Without the kernel's page cache: a stream at depth 1; one of large reads, several at once, which need none;
    and random reads, which nothing should read ahead of.
    """
    seconds = bench.plan.stream_s
    for cache, jobs in {
        "readwrite": (
            Job("read", 1, seconds, block="128k"),
            Job("read", 8, seconds, block="1m"),
            Job("randread", 32, seconds),
        ),
        "none": (Job("read", 1, seconds, block="128k"), Job("read", 8, seconds, block="1m")),
    }.items():
        for job in jobs:
            with place.attached(disk, "--cache", cache) as device, ext4.mounted(device, place.root) as point:
                values, count = fio.run_whole(str(point / "file"), job, place.meter())
            setting: dict[str, Setting] = {
                "load": f"direct {job.pattern}",
                "block": job.block,
                "cache": cache,
                "depth": job.depth,
            }
            requests = {"requests": count.requests("get_blob"), "amplification": count.bytes_read / values["bytes"]}
            bench.add(OURS, setting | {"service_ms": SERVICE_MS}, values | requests)


SECTION = Section(
    "streams",
    f"Reading a file on ext4, {SERVICE_MS:g} ms of service time",
    (
        column("load", "load"),
        column("block", "block"),
        column("depth", "depth"),
        column("cache", "cache"),
        column("read-ahead by", "read_ahead"),
        column("kernel's read_ahead_kb", "kernel_ra_kib"),
        column("MB/s", "mbps", "MB/s"),
        column("IOPS", "iops"),
        column("requests", "requests"),
        column("bytes sent / bytes read", "amplification", "two"),
    ),
    _measure,
)
