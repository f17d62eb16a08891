"""Finds, and removes, what a test left behind: processes, FUSE mounts and loop devices under its own run directory.

Only what belongs to the given directories is looked at, so that tests may run beside other users of this machine.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Leaks", "RunDirs", "end_templates", "find_leaks", "is_template", "remove_leaks", "wait_for_leaks"]

_ESCAPE = re.compile(r"\\([0-7]{3})")
_LOOKS = 10


@dataclass(frozen=True, slots=True)
class RunDirs:
    """The directories of one test, as blobfuse_dysk.environment names them, and a place for anything else."""

    root: Path
    run: Path
    config: Path
    log: Path
    dev: Path

    @property
    def environment(self) -> dict[str, str]:
        """The variables that point a process of this project at these directories."""
        return {
            "DYSK_RUN_DIR": str(self.run),
            "DYSK_CONFIG_DIR": str(self.config),
            "DYSK_LOG_DIR": str(self.log),
            "DYSK_DEV_DIR": str(self.dev),
        }


@dataclass(frozen=True, slots=True)
class Leaks:
    """What was found. Mounts come deepest first, the order in which they can be taken down."""

    processes: dict[int, str]
    loops: dict[str, str]
    mounts: list[str]

    def __bool__(self) -> bool:
        return bool(self.processes or self.loops or self.mounts)

    def __str__(self) -> str:
        lines = [f"process {pid}: {command}" for pid, command in self.processes.items()]
        lines += [f"loop device {name} on {backing}" for name, backing in self.loops.items()]
        lines += [f"mount {mount}" for mount in self.mounts]
        return "\n".join(lines)


def find_leaks(dirs: RunDirs) -> Leaks:
    """What exists now that belongs to `dirs`: processes by their environment, loops by backing file, mounts by path."""
    loops = _loops_under(dirs.root)
    return Leaks(_processes_of(dirs.root), loops, _mounts_of(dirs.root, loops))


def is_template(command: bytes) -> bool:
    """Whether a command line is that of a process which forks holders."""
    return command.rstrip(b"\0 ").endswith(b"/template/template.py")


def end_templates(dirs: RunDirs) -> None:
    """End those who would wait for the next attach for a while. What they have forked stays."""
    for pid, command in _processes_of(dirs.root).items():
        if is_template(command.encode()):
            with contextlib.suppress(ProcessLookupError):
                pidfd = os.pidfd_open(pid)
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                select.select([pidfd], [], [], 5.0)
                os.close(pidfd)


def wait_for_leaks(dirs: RunDirs, limit_s: float = 5.0) -> Leaks:
    """What is still there after `limit_s` seconds: a process that is about to end is not a leak."""
    deadline = time.monotonic() + limit_s
    while (leaks := find_leaks(dirs)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return leaks


def remove_leaks(dirs: RunDirs) -> None:
    """Take down what find_leaks finds, so that one failed test does not fail the ones after it."""
    leaks = find_leaks(dirs)
    for mount in leaks.mounts:
        _abort_fuse(mount)
        subprocess.run(["umount", "-l", mount], capture_output=True, check=False)
    for name in leaks.loops:
        subprocess.run(["losetup", "-d", name], capture_output=True, check=False)
    for pid in leaks.processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_for_leaks(dirs)


def _processes_of(root: Path) -> dict[int, str]:
    """Processes, but not this one, that were started with an environment or a command line that names `root`.

    A process may end between the listing of /proc and the look at it, after it started another one that is not in the
    list: a daemon does. So a look at which one was missed is repeated, a few times, as others come and go here, too.
    """
    needle = os.fsencode(root)
    for _ in range(_LOOKS):
        found, missed = {}, False
        for pid in [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]:
            if pid == os.getpid():
                continue
            try:
                command, environment = (Path(f"/proc/{pid}/{file}").read_bytes() for file in ("cmdline", "environ"))
                missed = missed or (not command and _has_program(pid))
            except (FileNotFoundError, ProcessLookupError):
                missed = True
            except PermissionError:
                continue
            else:
                if needle in command or needle in environment:
                    found[pid] = command.replace(b"\0", b" ").decode(errors="replace").strip()
        if not missed:
            break
    return {pid: command for pid, command in found.items() if command}  # a zombie has no command line


def _has_program(pid: int) -> bool:
    """Whether it runs one: without a command line it is inside execve(2). Zombies and kernel threads have none."""
    try:
        Path(f"/proc/{pid}/exe").readlink()
    except OSError:
        return False
    return True


def _loops_under(root: Path) -> dict[str, str]:
    """Loop devices whose backing file lies under `root`: {/dev/loopN: file}. Source: sysfs, block/loopN/loop."""
    found = {}
    for entry in Path("/sys/block").glob("loop*"):
        with contextlib.suppress(OSError):
            backing = (entry / "loop" / "backing_file").read_text().strip()
            if backing.startswith(f"{root}/"):
                found[f"/dev/{entry.name}"] = backing
    return found


def _mounts_of(root: Path, loops: dict[str, str]) -> list[str]:
    """Mount points under `root` and those of file systems on `loops`, deepest first. Source: proc_pid_mountinfo(5)."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, tail = line.partition(" - ")
        point = _ESCAPE.sub(lambda match: chr(int(match[1], 8)), fields.split()[4])
        device = tail.split()[1]
        if point.startswith(f"{root}/") or any(_is_part_of(device, loop) for loop in loops):
            found.append(point)
    return sorted(found, key=len, reverse=True)


def _is_part_of(device: str, loop: str) -> bool:
    """Whether `device` is the loop device or a partition of it, and not /dev/loop10 for /dev/loop1."""
    return re.fullmatch(rf"{re.escape(loop)}(p\d+)?", device) is not None


def _abort_fuse(mount: str) -> None:
    """Abort the FUSE connection behind a mount, so that nobody waits in it for ever; nothing for other mounts."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, tail = line.partition(" - ")
        if fields.split()[4] == mount and tail.startswith("fuse"):
            minor = fields.split()[2].partition(":")[2]
            with contextlib.suppress(OSError):
                Path("/sys/fs/fuse/connections", minor, "abort").write_text("1")
