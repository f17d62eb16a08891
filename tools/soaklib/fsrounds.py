"""Rounds with a file system on the disk: crashes and journal replay; one file against a model under faults."""

from __future__ import annotations

import functools
import subprocess
import time
from pathlib import Path

from tools.soaklib import exerciser
from tools.soaklib.devicerounds import (
    LIMIT_S,
    attach_after_crash,
    attach_options,
    check_server,
    crash,
    draw_strike,
    finished,
    kill_worker,
    set_up,
)
from tools.soaklib.fileload import FileLoad, check_names, file_load, read_files
from tools.soaklib.history import History
from tools.soaklib.history import Place as PagePlace
from tools.soaklib.place import Hang, apart
from tools.soaklib.report import Round
from tools.soaklib.workload import start

__all__ = ["fs_round", "fsx_round"]

_MKFS = {
    "ext4": (64 << 20, ["mkfs.ext4", "-q", "-F", "-E", "nodiscard"]),
    "xfs": (320 << 20, ["mkfs.xfs", "-q", "-f", "-K"]),
    "btrfs": (160 << 20, ["mkfs.btrfs", "-q", "-f", "-K"]),
}
_CHECK = {
    "ext4": ["e2fsck", "-fn"],
    "xfs": ["xfs_repair", "-n"],
    "btrfs": ["btrfs", "check", "--readonly"],
}
_COMMAND_S = 60.0


def fs_round(this: Round) -> None:
    """As a device round, through a file system: what fsync promised is there after the journal's replay."""
    options = attach_options(this)
    kind = this.draw("fs", "ext4", "ext4", "xfs", "btrfs")
    size, make = _MKFS[kind]
    disk = set_up(this, size)
    node = this.place.nodes[0]
    device = node.attach(disk, **options)
    run(*make, device)
    history = History()
    for life in range(1, this.draw("lives", 1, 2) + 1):
        point = _mount(this, device)
        load = FileLoad(
            point,
            seed=f"{this.random.random()}",
            life=life,
            threads=this.draw("threads", 1, 3),
            sync_share=this.draw("sync_share", 0.05, 0.2),
        )
        journal = this.directory / f"journal-{life}"
        strike = draw_strike(this, node)
        child = start(journal, functools.partial(file_load, load), strike)
        crash(this, node, child, journal, strike)
        history.follow(finished(this, child, journal))
        this.report.take(history)
        run("umount", str(point))
        node, device = attach_after_crash(this, node, disk, options)
        found, names = _read(this, _mount(this, device))
        gone = {space for space, events in history.names.items() if "gone" in events}
        kept = {place: version for place, version in found.items() if place[0] not in gone}
        floors = {space: line for space, line in history.flushed.items() if space not in gone}
        this.report.findings += history.check(kept, floors, f"after crash {life}, by {kind}")
        this.report.findings += check_names(history, names)
        history = History(found)
        run("umount", str(point))
        _check_fs(this, kind, device)
    this.place.server.clear_faults()
    node.detach(this.name)
    check_server(this)


def fsx_round(this: Round) -> None:
    """One file, random reads, writes, truncations, maps and holes against a model in memory; workers are killed."""
    options = attach_options(this)
    kind = this.draw("fs", "ext4", "xfs")
    size, make = _MKFS[kind]
    disk = set_up(this, size)
    node = this.place.nodes[0]
    device = node.attach(disk, **options)
    run(*make, device)
    point = _mount(this, device)
    work = exerciser.Exerciser(point / "file", f"{this.random.random()}", model=this.directory / "model")
    child = start(this.directory / "journal-1", work.run)
    for _ in range(this.draw("kills", 0, 1, 2)):
        child.wait_ticks(this.random.randint(1, 10), time.monotonic() + this.random.uniform(0.1, 0.6))
        kill_worker(this, node)
    child.wait_ticks(1 << 30, time.monotonic() + this.random.uniform(0.2, 1.0))
    child.stop()
    journal = finished(this, child, this.directory / "journal-1")
    for line in journal:
        if line[1] == "m":
            this.found("foreign", " ".join(line[2:]))
        this.count("fsx operations", line[1] == "+")
        if line[1] == "!":
            this.found("io-error", " ".join(line))
    run("umount", str(point))
    this.place.server.clear_faults()
    node.detach(this.name)
    device = node.attach(disk, **options)
    point = _mount(this, device)
    if error := apart(lambda: exerciser.compare(point / "file", this.directory / "model"), LIMIT_S, "comparing"):
        this.found("lost", error)
    run("umount", str(point))
    _check_fs(this, kind, device)
    node.detach(this.name)
    check_server(this)


def run(*command: str) -> None:
    """Run a command that must succeed; Hang if it does not end."""
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=_COMMAND_S)
    except subprocess.TimeoutExpired:
        raise Hang(f"{command} did not end within {_COMMAND_S:g} s") from None
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"{command}: {error.stdout.decode()} {error.stderr.decode()}") from None


def _mount(this: Round, device: str) -> Path:
    point = this.place.root / "m"
    point.mkdir(exist_ok=True)
    run("mount", "-o", "noatime", device, str(point))
    return point


def _read(this: Round, point: Path) -> tuple[dict[PagePlace, int], dict[int, list[str]]]:
    ours = point
    return apart(lambda: read_files(ours), LIMIT_S, f"reading the files of {this.name}")


def _check_fs(this: Round, kind: str, device: str) -> None:
    """What the file system's own checker says, without changing anything."""
    done = subprocess.run([*_CHECK[kind], device], capture_output=True, text=True, timeout=_COMMAND_S, check=False)
    this.count(f"checks by {_CHECK[kind][0]}")
    if done.returncode:
        this.found("check", f"{' '.join(_CHECK[kind])}: {done.returncode}\n{done.stdout}{done.stderr}")
