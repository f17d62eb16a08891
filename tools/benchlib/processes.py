"""CPU time and memory of processes. Source: proc_pid_stat(5), proc_pid_status(5), proc_pid_smaps(5)."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

__all__ = ["TEMPLATE", "cpu_seconds", "mapped_rss_bytes", "processes_of", "pss_bytes", "rss_bytes"]

TEMPLATE = "/template/template.py"  # the kind of those that fork holders
_TICK = os.sysconf("SC_CLK_TCK")
_MAPPING = re.compile(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \S+\s*(.*)")  # addresses, rights, offset, device, inode, name


def processes_of(root: Path, kind: str = "") -> list[int]:
    """This project's processes whose directories are in `root`, or those of them with `kind` in their command line."""
    needle = os.fsencode(root)
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            command = (entry / "cmdline").read_bytes()
            if needle in (entry / "environ").read_bytes() and (
                b"blobfuse_dysk" in command or b"dysk-monitor" in command
            ):
                found.append((int(entry.name), command))
    return sorted(pid for pid, command in found if kind.encode() in command)


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time, all threads, that the processes have used so far."""
    return sum(_ticks(pid) for pid in pids) / _TICK


def pss_bytes(pids: Iterable[int]) -> int:
    """Proportional set size: private memory, and a fair share of what is shared with other processes."""
    return sum(_kib(Path(f"/proc/{pid}/smaps_rollup"), "Pss:") for pid in pids) * 1024


def rss_bytes(pids: Iterable[int], kind: str = "VmRSS") -> int:
    """Resident set size: all that is in memory now, or one kind of it: RssAnon, RssShmem, RssFile."""
    return sum(_kib(Path(f"/proc/{pid}/status"), f"{kind}:") for pid in pids) * 1024


def mapped_rss_bytes(pids: Iterable[int], name: str) -> int:
    """What is in memory now of the mappings whose name has `name` in it."""
    found = 0
    for pid in pids:
        wanted = False
        for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
            if mapping := _MAPPING.fullmatch(line):
                wanted = name in mapping[1]
            elif wanted and line.startswith("Rss:"):
                found += int(line.split()[1]) * 1024
    return found


def _ticks(pid: int) -> int:
    # The command's name, in parentheses, may hold spaces: the numbers start behind the last one.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])  # utime and stime, fields 14 and 15 of the whole line


def _kib(path: Path, label: str) -> int:
    for line in path.read_text().splitlines():
        if line.startswith(label):
            return int(line.split()[1])
    raise ValueError(f"{path} has no line {label}")
