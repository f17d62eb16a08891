"""tools/bench: attaching, memory, 4 KiB I/O, and a peer's reads in the same run, as a table and as JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from pathlib import Path

from tools.benchlib import attaching, fio
from tools.benchlib.peer import nbdfuse_device
from tools.benchlib.place import Place, open_place

_DISK_SIZE = 256 << 20  # bytes
_DEPTHS = (1, 32, 128)
_QUIET = 0.5  # load average below which nobody else is at work
_HEADER = "| what | service time | depth | IOPS | mean latency | p99 | CPU per I/O |\n|---|---|---|---|---|---|---|"


def measure_io(place: Place, latency_ms: float, seconds: float) -> list[dict[str, object]]:
    """4 KiB random I/O on one disk, and the peer's reads of the same blob."""
    disk = place.make_disk("io", _DISK_SIZE)
    device = place.run("attach", disk, "--name", "io")
    fio.fill(device)
    rows = []
    patterns: tuple[fio.Pattern, ...] = ("randread", "randwrite")
    for pattern in patterns:
        for depth in _DEPTHS:
            job = fio.Job(pattern, depth, seconds)
            result = fio.run(device, job, place.processes("worker"))
            rows.append(report(f"blobfuse-dysk {pattern}", latency_ms, depth, result))
    place.run("detach", "io")
    with nbdfuse_device(place.url("io"), place.root) as (peer, processes):
        for depth in _DEPTHS:
            result = fio.run(peer, fio.Job("randread", depth, seconds), processes)
            rows.append(report("nbdfuse + nbdkit curl randread", latency_ms, depth, result))
    return rows


def report(what: str, latency_ms: float, depth: int, result: dict[str, float]) -> dict[str, object]:
    """Print a line of the table; returns it for the JSON."""
    print(
        f"| {what} | {latency_ms:g} ms | {depth} | {result['iops']:,.0f} | {result['mean_us'] / 1000:.2f} ms "
        f"| {result['p99_us'] / 1000:.2f} ms | {result['cpu_us_per_io']:.0f} µs |",
        flush=True,
    )
    return {"what": what, "latency_ms": latency_ms, "depth": depth, **result}


def print_attaching(alone: dict[str, float], together: dict[str, float]) -> None:
    count = f"{together['count']:.0f}"
    for what, value in {
        f"attach, median of {alone['count']:.0f}": f"{alone['attach_median_s'] * 1000:.0f} ms",
        "detach, median": f"{alone['detach_median_s'] * 1000:.0f} ms",
        "memory of an idle attachment (PSS of holder and worker)": f"{alone['pss_mib']:.1f} MiB",
        f"{count} attached at once, until the last": f"{together['attach_all_s']:.2f} s",
        f"{count} detached at once": f"{together['detach_all_s']:.2f} s",
        f"memory of each of the {count}": f"{together['pss_each_mib']:.1f} MiB",
    }.items():
        print(f"| {what} | {value} |", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools/bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="shorter runs, for a first look")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here too")
    options = parser.parse_args()
    seconds, count = (2.0, 5) if options.quick else (8.0, 20)
    load = os.getloadavg()[0]
    if load > _QUIET:
        print(f"This machine is busy (load {load:.1f}): the figures will be worse than they could be.\n")
    result: dict[str, object] = {
        "kernel": platform.release(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "load_before": load,
    }
    print("Service time 2 ms, server and client on this machine\n\n| what | |\n|---|---|")
    with open_place(2) as place:
        alone = attaching.one_by_one(place, count)
        together = attaching.together(place, 32)
        print_attaching(alone, together)
        result |= {"attaching": alone, "attaching_together": together}
    print(f"\n4 KiB blocks, random, through the loop device, {seconds:g} s each\n\n{_HEADER}")
    rows = []
    for latency_ms in (0.0, 2.0):
        with open_place(latency_ms) as place:
            rows += measure_io(place, latency_ms, seconds)
    result["io"] = rows
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
