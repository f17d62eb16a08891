"""4 KiB random I/O, and 128 KiB sequential I/O with direct access, at several service times and depths, with peers.

The disk is filled first, so that every read is a request; `requests_per_io` shows whether it was. Writes are measured
with cache=none (each write is one request) and with cache=readwrite, where they are accepted into the write cache; part
of those is on its way to the service when the load ends. The peers that can use the same server use the same blob.
"""

from __future__ import annotations

from tools.benchlib import fio
from tools.benchlib.bench import OURS, Bench, Section
from tools.benchlib.fio import Job, Pattern
from tools.benchlib.meter import Meter
from tools.benchlib.peers import nbdfuse, sdk, wrk
from tools.benchlib.place import Place, open_place
from tools.benchlib.tables import column

__all__ = ["SECTION"]

_SIZE = 512 << 20  # bytes
_NAME = "random"


def _measure(bench: Bench) -> None:
    for service_ms, depths in bench.plan.depths:
        with open_place(service_ms) as place:
            disk = place.make_disk(_NAME, _SIZE)
            with place.attached(disk) as device:
                place.server.configure(latency_ms=0)
                fio.fill(device)
                place.server.configure(latency_ms=service_ms)
                _device(bench, place, device, service_ms, depths, "readwrite", ("randread", "randwrite"))
            with place.attached(disk, "--cache", "none") as device:
                _device(bench, place, device, service_ms, depths, "none", ("randwrite",))
            _peers(bench, place, service_ms, depths)


def _device(
    bench: Bench,
    place: Place,
    device: str,
    service_ms: float,
    depths: tuple[int, ...],
    cache: str,
    patterns: tuple[Pattern, ...],
) -> None:
    meter = place.meter()
    for job in _jobs(bench, patterns, "4k", depths):
        fio.settle(device)
        bench.add(OURS, _setting(job, service_ms) | {"cache": cache}, fio.run(device, job, meter))
    streams: tuple[Pattern, ...] = ("write",) if cache == "none" else ("read", "write")
    for job in _jobs(bench, streams, "128k", bench.plan.stream_depths):
        fio.settle(device)
        bench.add(OURS, _setting(job, service_ms) | {"cache": cache}, fio.run(device, job, meter))


def _peers(bench: Bench, place: Place, service_ms: float, depths: tuple[int, ...]) -> None:
    plan = bench.plan
    with bench.optional(nbdfuse.NAME), nbdfuse.nbdfuse_device(place.url(_NAME), place.root) as (device, processes):
        meter = Meter(processes, place.server)
        for job in _jobs(bench, ("randread",), "4k", depths):
            bench.add(nbdfuse.NAME, _setting(job, service_ms), fio.run(device, job, meter))
    with bench.optional(sdk.NAME):
        for job in _jobs(bench, ("randread", "randwrite"), "4k", plan.sdk_depths):
            values = sdk.run(lambda: place.blob_client(_NAME), job, _SIZE)
            bench.add(sdk.NAME, _setting(job, service_ms), values)
    with bench.optional(wrk.NAME):
        url = place.url(_NAME, write=True)
        for job in _jobs(bench, ("randread", "randwrite"), "4k", depths):
            bench.add(wrk.NAME, _setting(job, service_ms), wrk.run(url, job, _SIZE, place.root))


def _jobs(bench: Bench, patterns: tuple[Pattern, ...], block: str, depths: tuple[int, ...]) -> list[Job]:
    plan = bench.plan
    return [
        Job(pattern, depth, plan.seconds, block=block, ramp_s=plan.ramp_s) for pattern in patterns for depth in depths
    ]


def _setting(job: Job, service_ms: float) -> dict[str, str | int | float]:
    return {"load": job.pattern, "block": job.block, "depth": job.depth, "service_ms": service_ms}


SECTION = Section(
    _NAME,
    "Direct I/O on the device, beside peers on the same blob",
    (
        column("load", "load"),
        column("block", "block"),
        column("service time", "service_ms", "given ms"),
        column("cache", "cache"),
        column("depth", "depth"),
        column("IOPS", "iops"),
        column("MB/s", "mbps", "MB/s"),
        column("mean latency", "mean_us", "us as ms"),
        column("p99", "p99_us", "us as ms"),
        column("CPU per I/O", "cpu_us_per_io", "us"),
        column("requests per I/O", "requests_per_io", "two"),
    ),
    _measure,
)
