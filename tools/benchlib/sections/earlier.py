"""This tree beside an earlier one, in alternating rounds; `--earlier DIR` names a checkout that was set up.

Both attach disks of the same server at the same time, each by its own dyskctl into directories of its own, so that both
are measured on the same machine within seconds. Each row is one figure: the medians over the rounds of both, and the
ratio of the medians. CPU time is the worker's, user and system, per I/O; memory is the share of one more attachment
when as many are there as the plan has, or the worker's after reads at depth 128, without ring and read cache, whose
sizes are options; a pause is the longest time between two direct reads around a kill -9 of the worker.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from tools.benchlib import fio
from tools.benchlib.bench import Bench, Section
from tools.benchlib.figures import Setting
from tools.benchlib.fio import Job
from tools.benchlib.peers.start import MissingPeerError
from tools.benchlib.place import Place, open_place, place_of
from tools.benchlib.plan import Plan
from tools.benchlib.processes import mapped_rss_bytes, rss_bytes
from tools.benchlib.sections.attaching import SERVICE_MS, attach, detach, read_directly, together
from tools.benchlib.tables import column

__all__ = ["PROGRAM", "SECTION"]

PROGRAM = Path(".venv/bin/dyskctl")
"""Of a checkout that was set up."""

_SIZE = 512 << 20  # bytes; of a disk that is not filled
_SECONDS = 1.0
_FULL_S = 2.0  # of random writes until the write cache is full
_MOST_S = 10.0
_KILL_AFTER_S = 0.2
_SHARE_OF_MANY = 3  # of the rounds, one in so many: they take long
_READ_S = 1.5  # around a kill
_RING = "/memfd:dysk-ring"  # of the holder, which the worker maps
_DEEP = Job("randread", 128, _SECONDS)

Values = dict[str, float]
Measure = Callable[[], Values]


@dataclass(frozen=True, slots=True)
class _Load:
    """What fio does on a disk attached with these options. figures: {name in a row: key of what fio.run returns}."""

    name: str
    job: Job
    figures: dict[str, str]
    options: tuple[str, ...] = ()
    whole: bool = False  # once over the whole disk; what the page cache has already is not read again

    def prepare(self, place: Place, name: str, plan: Plan, stack: contextlib.ExitStack) -> Measure:
        """Attach a disk, fill it; what is to be called in each round."""
        job = replace(self.job, seconds=min(self.job.seconds, 10 * plan.seconds if self.whole else plan.seconds))
        device = stack.enter_context(place.attached(place.make_disk(name, plan.earlier_mib << 20), *self.options))
        fio.fill(device)
        worker = place.meter(device)

        def measure() -> Values:
            values = fio.run_whole(device, job, worker)[0] if self.whole else fio.run(device, job, worker)
            if "cpu_us_per_io" in values:
                values["cpu_us_per_request"] = values["cpu_us_per_io"] / max(values["requests_per_io"], 1e-3)
            fio.settle(device)  # else what is still unwritten would be sent while the other one is measured
            return {f"{self.name}: {figure}": values[key] for figure, key in self.figures.items()}

        return measure


_COST = {"CPU of an I/O, µs": "cpu_us_per_io", "IOPS": "iops"}
_COST_BEHIND = {"CPU of a request, µs": "cpu_us_per_request", "IOPS": "iops"}  # accepted first, and merged
_LATENCY = {"mean latency, µs": "mean_us"}
_RATE = {"MB/s": "mbps"}
_NONE = ("--cache", "none")
_READ = Job("randread", 32, _SECONDS, ramp_s=0.2)
_WRITE = replace(_READ, pattern="randwrite")
_STREAM = Job("read", 8, _SECONDS, "1m", ramp_s=0.2)
_RANDOM = (
    _Load("read 4 KiB, depth 32", _READ, _COST),
    _Load("write 4 KiB, depth 32, cache=none", _WRITE, _COST, _NONE),
    _Load("write 4 KiB, depth 32, the cache full", replace(_WRITE, ramp_s=_FULL_S), _COST_BEHIND),
)
_ALONE = (
    _Load("read 4 KiB, depth 1", replace(_READ, depth=1), _LATENCY),
    _Load("write 4 KiB, depth 1, cache=none", replace(_WRITE, depth=1), _LATENCY, _NONE),
)
_STREAMS = (
    _Load("read 1 MiB, depth 8", _STREAM, _RATE),
    _Load("read 1 MiB, depth 8, cache=none", _STREAM, _RATE, _NONE),
    _Load("read, buffered, 128 KiB at a time", Job("read", 0, _MOST_S, "128k", direct=False), _RATE, whole=True),
    _Load("write 1 MiB, depth 8", replace(_STREAM, pattern="write"), _RATE),
    _Load("write 1 MiB, depth 8, cache=none", replace(_STREAM, pattern="write"), _RATE, _NONE),
)


def _measure(bench: Bench) -> None:
    with bench.optional("an earlier tree"):
        if bench.earlier is None:
            raise MissingPeerError("none was named", "--earlier DIR, a checkout that its own tools/setup was run in")
        for service_ms, https, loads in (
            (0.0, False, (*_RANDOM, *_ALONE)),
            (0.0, True, _RANDOM),
            (SERVICE_MS, False, _STREAMS),
        ):
            with _sides(bench.earlier, https=https) as sides:
                for load in loads:
                    sides[0].server.configure(latency_ms=0)
                    with contextlib.ExitStack() as stack:
                        turns = [
                            load.prepare(place, f"disk{side}", bench.plan, stack) for side, place in enumerate(sides)
                        ]
                        sides[0].server.configure(latency_ms=service_ms)
                        _take_turns(bench, turns, "https" if https else "http", service_ms, bench.plan.rounds)
                    for side in range(len(sides)):
                        sides[0].remove_disk(f"disk{side}")
        with _sides(bench.earlier) as sides:
            sides[0].server.configure(latency_ms=SERVICE_MS)
            for measure in (_alone, _together, _killed, _deep, _many):
                turns = [functools.partial(measure, place, bench) for place in sides]
                rounds = -(-bench.plan.rounds // _SHARE_OF_MANY) if measure is _many else bench.plan.rounds
                _take_turns(bench, turns, "http", SERVICE_MS, rounds)


@contextlib.contextmanager
def _sides(earlier: Path, *, https: bool = False) -> Iterator[tuple[Place, Place]]:
    """This tree's place and the earlier one's, on one server."""
    with open_place(0, https=https) as now, place_of(now.service, earlier / PROGRAM) as then:
        yield now, then


def _take_turns(bench: Bench, measures: Sequence[Measure], scheme: str, service_ms: float, rounds: int) -> None:
    """A row for each figure: medians of now and then."""
    found: list[list[Values]] = [[], []]
    for _ in range(rounds):
        for values, measure in zip(found, measures, strict=True):
            values.append(measure())
    for what in found[0][0]:
        now, then = (median(each[what] for each in values) for values in found)
        setting: dict[str, Setting] = {"load": what, "scheme": scheme, "service_ms": service_ms}
        bench.add("now / earlier", setting, {"now": now, "then": then, "ratio": now / then, "rounds": rounds})


def _alone(place: Place, bench: Bench) -> Values:
    """One disk is attached and detached."""
    disk = place.make_disk("alone", _SIZE)
    attached, detached = attach(place, disk, "alone"), detach(place, "alone")
    place.remove_disk("alone")
    return {"attach, ms": attached * 1000, "detach, ms": detached * 1000}


def _together(place: Place, bench: Bench) -> Values:
    """As many as the plan says, at once; their memory is that of one when so many are there."""
    count = bench.plan.attach_together
    found = together(place, count)
    return {
        f"attach {count} at once, s": found["attach_all_s"],
        f"detach {count} at once, s": found["detach_all_s"],
        f"memory of one of {count} (PSS), MiB": found["pss_mib"],
    }


def _many(place: Place, bench: Bench) -> Values:
    """More than that: as at the start of a machine with many disks."""
    count = bench.plan.attach_many
    found = together(place, count)
    for number in range(count):
        place.remove_disk(f"all{number}")
    return {f"attach {count} at once, s": found["attach_all_s"], f"detach {count} at once, s": found["detach_all_s"]}


def _killed(place: Place, bench: Bench) -> Values:
    """The worker is killed while one direct read follows the other: the longest time from one to the next."""
    with place.attached(place.make_disk("killed", _SIZE)) as device:
        (worker,) = place.processes("worker")
        threading.Timer(_KILL_AFTER_S, os.kill, (worker, signal.SIGKILL)).start()
        end = (last := time.monotonic()) + _READ_S
        longest = 0.0
        while last < end:
            read_directly(device)
            now = time.monotonic()
            longest, last = max(longest, now - last), now
    return {"pause after kill -9, ms": longest * 1000}


def _deep(place: Place, bench: Bench) -> Values:
    """What the worker has in memory right after reads at depth 128, without what it was given for its caches."""
    with place.attached(place.make_disk("deep", bench.plan.earlier_mib << 20)) as device:
        fio.fill(device)
        fio.run(device, replace(_DEEP, seconds=min(_DEEP.seconds, bench.plan.seconds)))
        worker = place.processes("worker")
        read_bytes = json.loads(place.run("--output", "json", "status", "deep"))["cache"]["read_bytes"]
        bytes_left = rss_bytes(worker) - mapped_rss_bytes(worker, _RING) - read_bytes
        return {"memory after reads at depth 128 (RSS without ring and read cache), MiB": bytes_left / 2**20}


SECTION = Section(
    "earlier",
    "Beside an earlier tree, in turns, medians",
    (
        column("figure", "load"),
        column("scheme", "scheme"),
        column("service time", "service_ms", "given ms"),
        column("rounds", "rounds"),
        column("now", "now", "one"),
        column("earlier", "then", "one"),
        column("ratio", "ratio", "two"),
    ),
    _measure,
)
