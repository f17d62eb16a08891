"""Keeps a process that serves a block device out of the ways a machine short of memory kills or blocks it.

Dirty pages are written back through this process, so it must not wait for memory that only its own progress can free:
its pages stay in memory (mlockall), its allocations do not start writing to disks (PR_SET_IO_FLUSHER), and the OOM
killer looks elsewhere (oom_score_adj). At the end of a shutdown systemd kills every process and only then unmounts what
is still mounted; it spares those whose command line begins with @. Sources: mlockall(2), PR_SET_IO_FLUSHER(2const),
proc_pid_oom_score_adj(5), https://systemd.io/ROOT_STORAGE_DAEMONS. (That page wants it for daemons of an initrd only,
lest they keep the root file system from being unmounted. These two hold no file there open for writing.)
"""

from __future__ import annotations

import ctypes
import os

__all__ = ["harden"]

_PR_SET_NAME = 15
_PR_SET_IO_FLUSHER = 57
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4
_CAP_IPC_LOCK = 14


def harden(title: str) -> list[str]:
    """Do all of it for this process and name it `title` (15 bytes count); return a warning for each that failed."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NAME, title.encode()[:15], 0, 0, 0)
    warnings = []
    _mark_command_line()
    if not _has_capability(_CAP_IPC_LOCK):
        # Without it, memory beyond RLIMIT_MEMLOCK could not be had at all once future pages are locked.
        warnings.append("memory is not locked: CAP_IPC_LOCK is missing")
    elif libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT):
        # ONFAULT: pages stay once touched; without it every untouched buffer and library page would be brought in.
        warnings.append(f"memory is not locked: mlockall: {os.strerror(ctypes.get_errno())}")
    if libc.prctl(_PR_SET_IO_FLUSHER, 1, 0, 0, 0):
        warnings.append(f"allocations may wait for this disk: PR_SET_IO_FLUSHER: {os.strerror(ctypes.get_errno())}")
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("-1000")
    except OSError as error:
        warnings.append(f"the OOM killer may choose this process: oom_score_adj: {error.strerror}")
    return warnings


def _mark_command_line() -> None:
    """Make the first character of our command line an @, as /proc shows it. Source: proc_pid_stat(5), field 48."""
    with open("/proc/self/stat", "rb") as file:
        arg_start = int(file.read().rpartition(b")")[2].split()[45])
    if arg_start:
        ctypes.memset(arg_start, ord("@"), 1)


def _has_capability(number: int) -> bool:
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> number & 1)
    return False
