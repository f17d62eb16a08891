"""What a load costs: CPU time of the processes that serve it, and requests that the service counted.

Readings are taken at two moments while the load is running steadily, so that neither its start nor its end is in the
rates; `busy_share` alone is of the whole run, since most refusals come while the limits are still to be found.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blobfuse_dysk.testing import PageBlobServer
from tools.benchlib.processes import cpu_seconds

__all__ = ["Meter", "Reading", "counted"]


@dataclass(frozen=True, slots=True)
class Reading:
    """The counters at one moment. stats: those of PageBlobServer.stats(), or None where nobody counts."""

    at: float
    cpu_s: float
    stats: dict[str, Any] | None
    device_ios: int = 0
    device_bytes: int = 0

    @property
    def requests(self) -> int:
        return self.stats["total_requests"] if self.stats else 0

    @property
    def refused(self) -> int:
        """Answers 503."""
        return self.stats["statuses"].get("503", 0) if self.stats else 0

    def kind(self, name: str) -> int:
        """Requests of one kind, such as put_page, refused ones included."""
        return self.stats["requests"].get(name, 0) if self.stats else 0

    @property
    def bytes_read(self) -> int:
        """Bodies of all answers."""
        return self.stats["bytes_out"] if self.stats else 0

    @property
    def bytes_moved(self) -> int:
        """Bodies of all requests and answers."""
        return self.stats["bytes_in"] + self.stats["bytes_out"] if self.stats else 0


@dataclass(frozen=True, slots=True)
class Meter:
    """Reads the counters of some processes, of a server, and of a block device; each may be missing."""

    pids: tuple[int, ...] = ()
    server: PageBlobServer | None = None
    device: str = ""

    def read(self) -> Reading:
        stats = self.server.stats() if self.server else None
        return Reading(time.monotonic(), cpu_seconds(self.pids), stats, *_device_counts(self.device))

    def rates(self, first: Reading, last: Reading, iops: float) -> dict[str, float]:
        """CPU time per I/O, and what the service saw per second, between two readings of a steady load.

        iops: as who made the load found them, over all of it. Where a device is read as well, its own I/Os between the
        two readings count: a machine may be half as fast in one half second as in the next.
        """
        span = max(last.at - first.at, 1e-6)
        if self.device:
            iops = (last.device_ios - first.device_ios) / span
        found: dict[str, float] = {}
        if self.pids:
            found["cpu_us_per_io"] = (last.cpu_s - first.cpu_s) / span / max(iops, 1e-9) * 1e6
            found["cpu_percent"] = (last.cpu_s - first.cpu_s) / span * 100
        if self.server:
            refused = last.refused - first.refused
            found["requests_per_s"] = (last.requests - first.requests) / span
            found["requests_per_io"] = found["requests_per_s"] / max(iops, 1e-9)
            found["service_mbps"] = (last.bytes_moved - first.bytes_moved) / span / 1e6
            found["served_per_s"] = (last.requests - first.requests - refused) / span
        if self.device:
            found["device_iops"] = iops
            found["device_mbps"] = (last.device_bytes - first.device_bytes) / span / 1e6
        return found


def _device_counts(device: str) -> tuple[int, int]:
    """I/Os that were completed, and their bytes. Source: Documentation/block/stat.rst of the kernel."""
    if not device:
        return 0, 0
    fields = (Path("/sys/block") / Path(device).name / "stat").read_text().split()
    return int(fields[0]) + int(fields[4]), (int(fields[2]) + int(fields[6])) * 512


@dataclass(slots=True)
class counted:
    """`with counted(meter) as count:` around a whole load; afterwards count.first and count.last are its readings."""

    meter: Meter
    first: Reading = field(init=False)
    last: Reading = field(init=False)

    def __enter__(self) -> counted:
        self.first = self.meter.read()
        return self

    def __exit__(self, *_: object) -> None:
        self.last = self.meter.read()

    @property
    def seconds(self) -> float:
        return self.last.at - self.first.at

    def requests(self, *kinds: str) -> int:
        """How many there were of these kinds together; of all kinds if none is named."""
        if not kinds:
            return self.last.requests - self.first.requests
        return sum(self.last.kind(kind) - self.first.kind(kind) for kind in kinds)

    @property
    def busy_share(self) -> float:
        """The part of all requests that was answered with 503."""
        return (self.last.refused - self.first.refused) / max(self.requests(), 1)

    @property
    def bytes_read(self) -> int:
        return self.last.bytes_read - self.first.bytes_read
