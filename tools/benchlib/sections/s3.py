"""s3backer, which does for S3 what this project does for page blobs; see peers/s3backer.py for what it runs against."""

from __future__ import annotations

import socket

from tools.benchlib import fio
from tools.benchlib.bench import Bench, Section
from tools.benchlib.fio import Job, Pattern
from tools.benchlib.meter import Meter
from tools.benchlib.peers import s3backer
from tools.benchlib.place import Place, open_place
from tools.benchlib.tables import column

__all__ = ["SECTION"]


def _measure(bench: Bench) -> None:
    with bench.optional(s3backer.NAME), open_place(0) as place, s3backer.s3rver(place.root, _free_port()) as url:
        _loads(bench, place, url)


def _loads(bench: Bench, place: Place, url: str) -> None:
    plan = bench.plan
    with s3backer.s3backer_device(place.root, plan.s3_mib << 20, url) as (device, processes):
        fio.run_whole(device, Job("write", 16, 120))
        patterns: tuple[Pattern, ...] = ("randread", "randwrite")
        for pattern in patterns:
            for depth in plan.s3_depths:
                values = fio.run(device, Job(pattern, depth, plan.seconds, ramp_s=plan.ramp_s), Meter(processes))
                bench.add(s3backer.NAME, {"load": pattern, "block": "4k", "depth": depth}, values)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


SECTION = Section(
    "s3",
    "s3backer: direct I/O on a loop device on its file, no service time, caches off",
    (
        column("load", "load"),
        column("block", "block"),
        column("depth", "depth"),
        column("IOPS", "iops"),
        column("mean latency", "mean_us", "us as ms"),
        column("p99", "p99_us", "us as ms"),
        column("CPU per I/O", "cpu_us_per_io", "us"),
    ),
    _measure,
)
