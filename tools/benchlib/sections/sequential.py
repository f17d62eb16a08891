"""Side by side: sequential reads with either cache, and those of a peer, by contenders that take turns; medians.

All are on blobs of the same server. Direct: 1 MiB, eight at once, for a second. Buffered: the whole disk once, by
read(2) calls of 128 KiB, through the page cache, which fio empties before; all with the read-ahead of the kernel that
attaching sets. Each is the first of a round equally often: on a virtual machine whose host takes free memory back, who
fills the page cache after a while has it brought in again, page by page, as CPU time of whoever copies into it. CPU is
that of the processes behind the device.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import replace

from tools.benchlib import ext4, fio
from tools.benchlib.bench import OURS, Bench, Section
from tools.benchlib.figures import Setting
from tools.benchlib.fio import Job
from tools.benchlib.meter import Meter
from tools.benchlib.peers import nbdfuse
from tools.benchlib.place import Place, open_place
from tools.benchlib.tables import column
from tools.benchlib.turns import medians, take_turns

__all__ = ["SECTION"]

_NAME = "sequential"
_CACHES = ("readwrite", "none")
_SERVICE_MS = (0.0, 2.0, 10.0)
_DIRECT = Job("read", 8, 1.0, "1m", ramp_s=0.2)
_BUFFERED = Job("read", 0, 10.0, "128k", direct=False)

Values = dict[str, float]
Run = Callable[[Job], Values]


def _measure(bench: Bench) -> None:
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(open_place(0))
        contenders = _contenders(bench, stack, place)
        for service_ms in _SERVICE_MS:
            place.server.configure(latency_ms=service_ms)
            for load, job in (("direct", _DIRECT), ("buffered", _BUFFERED)):
                job = replace(job, seconds=min(job.seconds, 10 * bench.plan.seconds))
                turns = {name: functools.partial(run, job) for name, run in contenders.items()}
                for name, rounds in take_turns(turns, bench.plan.rounds).items():
                    setting: dict[str, Setting] = {"load": load, "block": job.block, "service_ms": service_ms}
                    bench.add(name, setting, medians(rounds, "mbps"))
        place.server.configure(latency_ms=0)


def _contenders(bench: Bench, stack: contextlib.ExitStack, place: Place) -> dict[str, Run]:
    """What each does in a round; those that are missing are noted and left out."""
    contenders: dict[str, Run] = {}
    read_ahead_kib = 0
    for cache in _CACHES:
        others = place.processes("worker")
        disk = place.make_disk(f"{_NAME}-{cache}", bench.plan.earlier_mib << 20)
        device = stack.enter_context(place.attached(disk, "--cache", cache))
        fio.fill(device)
        read_ahead_kib = ext4.read_ahead(device)
        workers = [pid for pid in place.processes("worker") if pid not in others]
        contenders[f"{OURS}, {cache}"] = _runs(device, Meter(tuple(workers)))
    with bench.optional(nbdfuse.NAME):
        peer, processes = stack.enter_context(nbdfuse.nbdfuse_device(place.url(f"{_NAME}-{_CACHES[0]}"), place.root))
        ext4.set_read_ahead(peer, read_ahead_kib)
        contenders[nbdfuse.NAME] = _runs(peer, Meter(processes))
    return contenders


def _runs(device: str, meter: Meter) -> Run:
    def run(job: Job) -> Values:
        if job.depth:
            values = fio.run(device, job, meter)
            return {"mbps": values["mbps"], "cpu_us_per_mib": values["cpu_us_per_io"]}
        values, whole = fio.run_whole(device, job, meter)
        cpu_s = whole.last.cpu_s - whole.first.cpu_s
        return {"mbps": values["mbps"], "cpu_us_per_mib": cpu_s * 1e6 / (values["bytes"] / 2**20)}

    return run


SECTION = Section(
    _NAME,
    "Side by side: sequential reads, contenders in turns, medians",
    (
        column("load", "load"),
        column("block", "block"),
        column("service time", "service_ms", "given ms"),
        column("rounds", "rounds"),
        column("MB/s", "mbps", "one"),
        column("least", "least", "one"),
        column("most", "most", "one"),
        column("CPU per MiB", "cpu_us_per_mib", "us"),
    ),
    _measure,
)
