"""The same through Azurite, Microsoft's emulator: what a developer without an account sees. It is slow by itself.

cache=none, so that each I/O is a request; the last row has the caches, for a stream.
"""

from __future__ import annotations

from blobfuse_dysk.errors import DyskError
from blobfuse_dysk.testing.azurite import Azurite
from tools.benchlib import fio
from tools.benchlib.bench import OURS, Bench, Section
from tools.benchlib.figures import Setting
from tools.benchlib.fio import Job, Pattern
from tools.benchlib.peers import sdk
from tools.benchlib.peers.start import MissingPeerError
from tools.benchlib.place import Place, place_of
from tools.benchlib.tables import column

__all__ = ["SECTION"]

_SIZE = 64 << 20  # bytes: more than the read cache
_LOADS: tuple[tuple[Pattern, str, int, str], ...] = (
    ("randread", "4k", 1, "none"),
    ("randread", "4k", 32, "none"),
    ("randwrite", "4k", 32, "none"),
    ("read", "128k", 1, "none"),
    ("write", "128k", 1, "none"),
    ("read", "128k", 1, "readwrite"),
)


def _measure(bench: Bench) -> None:
    with bench.optional("Azurite"):
        try:
            with Azurite() as azurite, place_of(azurite) as place:
                _loads(bench, place.make_disk("azurite", _SIZE), place)
        except DyskError as error:
            raise MissingPeerError(str(error), "tools/setup installs it") from None


def _loads(bench: Bench, disk: str, place: Place) -> None:
    plan = bench.plan
    with place.attached(disk) as device:
        fio.fill(device)
    for cache in ("none", "readwrite"):
        with place.attached(disk, "--cache", cache) as device:
            for pattern, block, depth, wanted in _LOADS:
                if wanted == cache:
                    job = Job(pattern, depth, plan.seconds, block, plan.ramp_s)
                    setting: dict[str, Setting] = {"load": pattern, "block": block, "depth": depth, "cache": cache}
                    bench.add(OURS, setting, fio.run(device, job, place.meter()))
    with bench.optional(sdk.NAME):
        job = Job("randread", 8, plan.seconds)  # more threads only fight for the interpreter
        values = sdk.run(lambda: place.blob_client("azurite"), job, _SIZE)
        bench.add(sdk.NAME, {"load": "randread", "block": "4k", "depth": job.depth}, values)


SECTION = Section(
    "azurite",
    "Direct I/O on the device, service: Azurite",
    (
        column("load", "load"),
        column("block", "block"),
        column("depth", "depth"),
        column("cache", "cache"),
        column("IOPS", "iops"),
        column("MB/s", "mbps", "MB/s"),
        column("mean latency", "mean_us", "us as ms"),
        column("CPU per I/O", "cpu_us_per_io", "us"),
    ),
    _measure,
)
