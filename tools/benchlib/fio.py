"""Loads made by fio on a device or a file, with what they cost the processes behind it.

A run is: start, ramp (not counted), the measured seconds. fio reports the measured part only; the meter is read twice
well inside of it.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from dataclasses import dataclass
from typing import Any, Literal

from tools import fiojobs
from tools.benchlib.meter import Meter, counted

__all__ = ["Job", "command", "fill", "parse", "run", "run_whole", "settle"]

Pattern = Literal["randread", "randwrite", "read", "write"]
_START_S = 0.35  # from the start of the process to its first I/O, at most


@dataclass(frozen=True, slots=True)
class Job:
    """One load. depth: of asynchronous I/O, or 0 for plain system calls (psync), one at a time."""

    pattern: Pattern
    depth: int
    seconds: float
    block: str = "4k"
    ramp_s: float = 0.0
    direct: bool = True
    fsync: int = 0  # after this many writes; 0: never
    size: str = ""  # of the part of the device, or of the file; all of it if empty


def command(target: str, job: Job, *, timed: bool = True) -> list[str]:
    """The command line: a file of tools/fio with the job's figures; timed=False: once over the whole size at most."""
    return fiojobs.command(
        "log" if job.fsync else job.pattern,
        target,
        "json",
        bs=job.block,
        direct=int(job.direct),
        ioengine="libaio" if job.depth else "psync",
        iodepth=job.depth or None,
        runtime=f"{job.seconds * 1000:.0f}ms",
        time_based=1 if timed else None,
        ramp_time=f"{job.ramp_s * 1000:.0f}ms" if job.ramp_s else None,
        fsync=job.fsync or None,
        size=job.size or None,
    )


def run(target: str, job: Job, meter: Meter | None = None) -> dict[str, float]:
    """Run a load for its seconds; latencies in microseconds. Raises RuntimeError if an I/O failed."""
    meter = meter or Meter()
    with counted(meter) as whole:
        process = subprocess.Popen(command(target, job), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            time.sleep(job.ramp_s + _START_S)
            first = meter.read()
            time.sleep(max(job.seconds - _START_S - 0.05, job.seconds / 2))
            last = meter.read()
            output, errors = process.communicate()
        except BaseException:
            process.kill()
            process.communicate()
            raise
    found = parse(output, errors, process.returncode, job)
    found |= meter.rates(first, last, found["iops"])
    if meter.server:
        found["busy_share"] = whole.busy_share
    return found


def run_whole(target: str, job: Job, meter: Meter | None = None) -> tuple[dict[str, float], counted]:
    """Run a load once over its whole size (or for its seconds, if that is less); the counts are of all of it."""
    with counted(meter or Meter()) as whole:
        done = subprocess.run(command(target, job, timed=False), capture_output=True, text=True, check=False)
    return parse(done.stdout, done.stderr, done.returncode, job), whole


def parse(output: str, errors: str, code: int, job: Job) -> dict[str, float]:
    """What fio reported of the direction that the job has. Raises RuntimeError if fio or an I/O failed."""
    start = output.find("{")  # notes may stand in front
    report: dict[str, Any] = json.loads(output[start:])["jobs"][0] if start >= 0 else {}
    if code or not report or report["error"]:
        raise RuntimeError(f"fio {job.pattern} ended with {code}: {(errors or output).strip()[-300:]}")
    side = report["read" if job.pattern.endswith("read") else "write"]
    return {
        "iops": side["iops"],
        "mbps": side["bw_bytes"] / 1e6,
        "mean_us": side["clat_ns"]["mean"] / 1000,
        "p99_us": side["clat_ns"].get("percentile", {}).get("99.000000", 0) / 1000,
        "bytes": side["io_bytes"],
        "ios": side["total_ios"],
    }


def settle(target: str) -> None:
    """Flush the device or file, so that the next load does not wait for what the last one wrote."""
    descriptor = os.open(target, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fill(target: str, size: str = "") -> None:
    """Write all of it once with random data, to the service, so that every later read costs a request."""
    run_whole(target, Job("write", 4, 600, block="4m", size=size))
    settle(target)
