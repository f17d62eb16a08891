"""mkfs.ext4 on blank disks: it writes little, but over the whole disk. 2 ms of service time, requests counted.

Time and requests are up to the end of mkfs, which flushes; detaching adds the release of the lease.
"""

from __future__ import annotations

from tools.benchlib import ext4
from tools.benchlib.bench import OURS, Bench, Section
from tools.benchlib.meter import counted
from tools.benchlib.place import open_place
from tools.benchlib.tables import column

__all__ = ["SECTION", "SERVICE_MS"]

SERVICE_MS = 2.0


def _measure(bench: Bench) -> None:
    with open_place(SERVICE_MS) as place:
        for tib in bench.plan.mkfs_tib:
            disk = place.make_disk(f"blank{tib}", tib << 40)
            with place.attached(disk) as device, counted(place.meter()) as count:
                ext4.make(device)
            values = {
                "seconds": count.seconds,
                "requests": count.requests(),
                "put_pages": count.requests("put_page"),
                "clear_pages": count.requests("clear_page"),
                "reads": count.requests("get_blob"),
                "page_lists": count.requests("get_page_ranges"),
                "written_mib": (count.last.stats or {}).get("bytes_in", 0) / 2**20
                - (count.first.stats or {}).get("bytes_in", 0) / 2**20,
            }
            bench.add(OURS, {"load": "mkfs.ext4", "tib": tib, "service_ms": SERVICE_MS}, values)
            place.remove_disk(f"blank{tib}")


SECTION = Section(
    "mkfs",
    f"mkfs.ext4 on a blank disk, {SERVICE_MS:g} ms of service time",
    (
        column("size, TiB", "tib"),
        column("time", "seconds", "s"),
        column("requests", "requests"),
        column("Put Page", "put_pages"),
        column("Clear Pages", "clear_pages"),
        column("Get Blob", "reads"),
        column("Get Page Ranges", "page_lists"),
        column("written", "written_mib", "MiB"),
    ),
    _measure,
)
