"""Random and sequential I/O on a device, by fio, with the CPU time that it cost the processes behind the device."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from tools.benchlib.processes import cpu_seconds

__all__ = ["Job", "fill", "run"]

Pattern = Literal["randread", "randwrite"]


@dataclass(frozen=True, slots=True)
class Job:
    """One fio run: 4 KiB blocks, direct I/O."""

    pattern: Pattern
    depth: int
    seconds: float


def run(device: str, job: Job, pids: Iterable[int]) -> dict[str, float]:
    """Run a job on a device; `pids` are the processes that serve it. Latencies in microseconds."""
    pids = list(pids)
    before = cpu_seconds(pids)
    result = _fio(
        device, f"--rw={job.pattern}", "--bs=4k", f"--iodepth={job.depth}", "--time_based", f"--runtime={job.seconds}"
    )
    used = cpu_seconds(pids) - before
    side = result["read" if job.pattern == "randread" else "write"]
    return {
        "iops": side["iops"],
        "mean_us": side["clat_ns"]["mean"] / 1000,
        "p99_us": side["clat_ns"]["percentile"]["99.000000"] / 1000,
        "cpu_us_per_io": used / max(side["total_ios"], 1) * 1e6,
    }


def fill(device: str) -> None:
    """Write the whole device once with random data, so that every later read costs a request."""
    _fio(device, "--rw=write", "--bs=4m", "--iodepth=4")


def _fio(device: str, *options: str) -> dict[str, Any]:
    command = ["fio", "--name=bench", f"--filename={device}", "--direct=1", "--ioengine=libaio", "--output-format=json"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=True)
    report: dict[str, Any] = json.loads(done.stdout)["jobs"][0]
    return report
