"""Rounds on the raw device: the node crashes, the worker crashes, another node takes the disk over."""

from __future__ import annotations

import functools
import os
import time
from array import array
from pathlib import Path
from typing import Any

from blobfuse_dysk.testing.pages import PAGE
from tools.soaklib import weather
from tools.soaklib.history import History
from tools.soaklib.history import Place as PagePlace
from tools.soaklib.journal import Journal, read_journal
from tools.soaklib.pages import read_all
from tools.soaklib.place import Node, apart
from tools.soaklib.report import Round
from tools.soaklib.workload import Child, DeviceLoad, Strike, device_load, start

__all__ = [
    "attach_after_crash",
    "attach_options",
    "check_server",
    "crash",
    "device_round",
    "draw_strike",
    "end_well",
    "finished",
    "kill_worker",
    "read_device",
    "set_up",
    "start_load",
    "takeover_round",
    "worker_round",
]

LIMIT_S = 45.0  # beyond the io-timeout; what takes longer hangs
IO_TIMEOUT_S = 30.0


def attach_options(this: Round) -> dict[str, Any]:
    """Options of every attachment of the round; draws the profile first, to which they are fitted.

    wide: reads, writes and flushes all over the disk. hot: few pages are rewritten while they are in flight, all the
    time. scattered: more pages are dirty than requests can be in flight, and they are rewritten while they wait.
    What can go wrong in the last two shows only if the node dies before the next flush or the write delay.
    """
    profile = this.draw("profile", "wide", "hot", "scattered")
    caches = ["none", "readonly"] if this.parameters.get("refusing") else ["readwrite", "readwrite"]
    if profile == "wide":
        caches += ["none", "readonly", "readwrite"]
    return {
        "name": this.name,
        "cache": this.draw("cache", "readwrite", *caches),
        "write_delay_s": this.draw("write_delay_s", *{"hot": (0.01,), "scattered": (1.0,)}.get(profile, (0.05, 1.0))),
        "write_cache_size": this.draw("write_cache_size", 16 << 20, 64 << 20),
        "checksum": this.draw("checksum", "none", "none", "md5"),
        "io_timeout_s": IO_TIMEOUT_S,
    }


def set_up(this: Round, size: int) -> str:
    """Make the round's disk and its weather; returns the disk."""
    server = this.place.server
    this.place.calm()
    times = (0, 2, "lognormal:5,1") if this.parameters["profile"] == "wide" else (2, 15, "lognormal:15,0.5")
    server.configure(latency_ms=this.draw("latency_ms", *times))
    disk = this.place.make_disk(this.name, size)
    if this.draw("faulty", True, True, False) and not this.place.well:
        rules = weather.draw(this.random, checksum=this.parameters.get("checksum") == "md5")
        this.parameters["weather"] = rules
        weather.switch_on(server, rules)
        this.count("rounds with faults of the service")
    return disk


def device_round(this: Round) -> None:
    """Holder and worker are killed at a random moment, two or three times over; what was flushed must be there."""
    refusing = this.draw("refusing", *[False] * 4, True)
    options = attach_options(this)
    size = this.draw("size", 1 << 20, 4 << 20, 16 << 20)
    disk = set_up(this, size)
    if refusing:
        this.place.server.fault("error", status=400, operation="clear_page", probability=0.3)
        this.place.server.fault("error", status=400, operation="put_page", probability=0.02)
        this.count("rounds with writes refused for good")
    history = History()
    node = this.place.nodes[0]
    device = node.attach(disk, **options)
    for life in range(1, this.draw("lives", 2, 3) + 1):
        strike = draw_strike(this, node)
        journal, child = start_load(this, device, size, life, strike)
        crash(this, node, child, journal, strike)
        history.follow(finished(this, child, journal))
        this.report.take(history, errors_allowed=refusing)
        node, device = attach_after_crash(this, node, disk, options)
        found = read_device(this, device, size)
        this.report.findings += history.check(found, history.flushed, f"after crash {life}")
        history = History(found)
    end_well(this, node, disk, options, history, device, size)


def worker_round(this: Round) -> None:
    """The worker alone is killed, several times; nothing acknowledged is lost, and nobody sees an error."""
    options = attach_options(this)
    size = this.draw("size", 1 << 20, 4 << 20, 16 << 20)
    disk = set_up(this, size)
    node = this.place.nodes[0]
    device = node.attach(disk, **options)
    journal, child = start_load(this, device, size, 1)
    for _ in range(this.draw("kills", 1, 2, 3)):
        child.wait_ticks(this.random.randint(1, 20), time.monotonic() + this.random.uniform(0.02, 0.5))
        if this.draw("worker is", "killed", "killed", "replaced") == "killed":
            kill_worker(this, node)
        else:
            replace_worker(this, node)
    child.wait_ticks(1000, time.monotonic() + this.random.uniform(0.0, 0.2))
    child.stop()
    history = History()
    history.follow(finished(this, child, journal))
    this.report.take(history)
    found = read_device(this, device, size)
    this.report.findings += history.check(found, float("inf"), "while attached, after the kills of workers")
    if this.draw("end", "detach", "crash") == "crash":
        node.crash(this.name)
        this.count("kills of a node (holder and worker)")
        node, device = attach_after_crash(this, node, disk, options)
        found = read_device(this, device, size)
        this.report.findings += history.check(found, history.flushed, "after the crash at the end")
        history = History(found)
    end_well(this, node, disk, options, history, device, size)


def takeover_round(this: Round) -> None:
    """Another node breaks the lease. What the first one still has under way, or sends later, must be refused."""
    options = attach_options(this)
    size = this.draw("size", 1 << 20, 4 << 20, 16 << 20)
    disk = set_up(this, size)
    first, second = this.place.nodes
    journal, child = start_load(this, first.attach(disk, **options), size, 1)
    how = this.draw("how", "stopped", "held", "held", "orphan")
    if how == "held":  # by the network: requests that arrive when the second node has the disk
        child.wait_ticks(3, time.monotonic() + 0.2)
        this.place.server.fault("late", operation="write", probability=0.5)
    until_the_moment(this, child)
    Journal(journal).mark("takeover")
    if how == "orphan":
        first.kill(this.name, "holder")
    else:
        first.stop(this.name)
    if how == "held":
        this.place.server.clear_faults()
    device = second.attach(disk, break_lease=True, **options)
    this.count("take-overs")
    found = read_device(this, device, size)
    first.resume(this.name)
    this.place.server.release()
    journal_2, child_2 = start_load(this, device, size, 2)
    until_the_moment(this, child_2)
    history = History()
    history.follow(finished(this, child, journal))
    this.report.take(history)
    this.report.findings += history.check(found, history.flushed, "when taken over")
    child_2.stop()
    history = History(found)
    history.follow(finished(this, child_2, journal_2))
    this.report.take(history)
    found = read_device(this, device, size)
    this.report.findings += history.check(found, float("inf"), "after the first node went on")
    if first.state(this.name):
        first.detach(this.name, force=True)
    end_well(this, second, disk, options, history, device, size)


def kill_worker(this: Round, node: Node) -> None:
    """SIGKILL the worker and wait for the next one."""
    old = node.kill(this.name, "worker")
    this.count("kills of a worker")
    wait_new_worker(this, node, old)


def replace_worker(this: Round, node: Node) -> None:
    """Another worker takes over from one that lives, as dyskctl upgrade has it."""
    old = int((node.state(this.name).get("worker") or {"pid": 0})["pid"])
    node.upgrade(this.name)
    this.count("replacements of a worker")
    wait_new_worker(this, node, old)


def wait_new_worker(this: Round, node: Node, old: int) -> None:
    """Wait until another worker serves the disk."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        found = node.state(this.name)
        if found.get("worker") and found["worker"]["pid"] != old and found["state"] == "attached":
            return
        time.sleep(0.01)
    this.found("hang", f"no new worker within {LIMIT_S:g} s: {node.state(this.name)}")


def start_load(this: Round, device: str, size: int, life: int, strike: Strike | None = None) -> tuple[Path, Child]:
    profile = this.parameters["profile"]
    hot, scattered = profile == "hot", profile == "scattered"
    threads = this.draw("threads", 4, 6) if hot or scattered else this.draw("threads", 1, 3, 6)
    load = DeviceLoad(
        device,
        size,
        seed=f"{this.random.random()}",
        life=life,
        threads=threads,
        flush_share=0.0 if scattered else this.draw("flush_share", 0.02, 0.1, 0.3),
        flusher_gap_s={"hot": 0.03, "scattered": 0.3}.get(profile, 0.0) if this.draw("flusher", True, not hot) else 0.0,
        hot_share=0.95 if hot or scattered else 0.3,
        hot_size=this.draw("hot_size", 2 << 10, 8 << 10) if hot else 64 << 10,
        most=1 << 10 if scattered else 1 << 20,
        step=2 << 10 if scattered else PAGE,
        zero_share=this.draw("zero_share", 0.05, 0.3),
        pause_s=0.0 if hot or scattered else this.draw("pause_s", 0.0, 0.0, 0.002),
        errors=100 if this.parameters.get("refusing") else 0,
    )
    journal = this.directory / f"journal-{life}"
    return journal, start(journal, functools.partial(device_load, load), strike)


def draw_strike(this: Round, node: Node) -> Strike | None:
    """When to kill: as the flush of a random number returns, or at a random time (None)."""
    if this.draw("until", "a flush", "a flush", "a time") == "a time":
        return None
    holder, worker = map(os.pidfd_open, node.processes(this.name))
    return Strike(this.random.randint(1, 30), holder, worker)


def crash(this: Round, node: Node, child: Child, journal: Path, strike: Strike | None) -> None:
    """Kill holder and worker when the time has come."""
    until = time.monotonic() + this.random.uniform(0.05, 0.7)
    child.wait_ticks(strike.count if strike else 1 << 30, until + (0.5 if strike else 0.0))
    Journal(journal).mark("kill")
    node.crash(this.name)
    child.stop()
    this.count("kills of a node (holder and worker)")
    if strike:
        os.close(strike.holder)
        os.close(strike.worker)


def until_the_moment(this: Round, child: Child) -> None:
    """Wait for a random time."""
    child.wait_ticks(1 << 30, time.monotonic() + this.random.uniform(0.05, 0.5))


def finished(this: Round, child: Child, journal: Path) -> list[list[str]]:
    """Wait for a workload whose I/O ended or fails; returns its journal."""
    status = child.wait(LIMIT_S)
    if status != 0:
        this.found("hang" if status is None else "check", f"workload of {journal.name}: exit status {status}")
    return list(read_journal(journal))


def read_device(this: Round, device: str, size: int) -> dict[PagePlace, int]:
    """The version of every page that does not hold zeros."""
    try:
        found: array[int] = apart(lambda: read_all(device, size), LIMIT_S, f"reading {device}")
    except OSError as error:
        this.found("io-error", f"reading {device}: {error}")
        raise
    return {(0, page): version for page, version in enumerate(found) if version}


def attach_after_crash(this: Round, node: Node, disk: str, options: dict[str, Any]) -> tuple[Node, str]:
    """Clear away what is left and attach afresh: by attach itself, or by hand and on another node."""
    if this.draw("weather at attach", "calm", "as before") == "calm":
        this.place.server.clear_faults()
    how = this.draw("after the crash", "attach", "detach, attach", "other node", "other node, detach")
    if how == "attach":
        return node, node.attach(disk, **options)
    other = node if how == "detach, attach" else next(each for each in this.place.nodes if each is not node)
    if how != "other node":
        node.detach(this.name, force=True)
    device = other.attach(disk, break_lease=True, **options)
    if how == "other node":
        node.detach(this.name, force=True)
    return other, device


def end_well(
    this: Round, node: Node, disk: str, options: dict[str, Any], history: History, device: str, size: int
) -> None:
    """Detach in good order and attach once more: now everything must be there. Then look at the server's counts."""
    this.place.server.clear_faults()
    this.place.server.release()
    node.detach(this.name)
    device = node.attach(disk, **options)
    found = read_device(this, device, size)
    this.report.findings += history.check(found, float("inf"), "after an orderly detach")
    node.detach(this.name)
    check_server(this)


def check_server(this: Round) -> None:
    """No write may have gone without lease or epoch, nor together with another on the same range."""
    for key, counts in this.place.server.stats()["blobs"].items():
        if key.endswith(this.name):
            for what in ("overlapping_writes", "writes_without_lease", "writes_without_epoch"):
                if counts[what]:
                    this.found("check", f"{counts[what]} {what.replace('_', ' ')} at the server")
