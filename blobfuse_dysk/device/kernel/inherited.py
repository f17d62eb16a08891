"""What a process hands on to those that it starts, beside its environment and its descriptors: as text, to be compared.

Two processes of which this is the same could each have started the other's children: device/template forks holders
only for such as it could have been started by. What every holder sets for itself is left out: session, directory, mask
of files, signals. So is the priority of disk I/O, of which holder and worker do none.
Sources: namespaces(7), fork(2), execve(2), proc_pid_status(5). Standard library only.
"""

from __future__ import annotations

import contextlib
import os

__all__ = ["inherited"]

_STATUS = ("Uid:", "Gid:", "Groups:", "Cap", "NoNewPrivs:", "Seccomp", "Cpus_allowed:", "Mems_allowed:")


def inherited(*, leaves_cgroup: bool, pid: int | None = None) -> str:
    """leaves_cgroup: the process leaves its control group (cgroup.py), so that does not count.

    pid: of another process, which must not end meanwhile; None for this one. Raises OSError.
    """
    proc = f"/proc/{pid or 'self'}"
    root = os.stat(f"{proc}/root")
    found = [f"root {root.st_dev} {root.st_ino}"]
    found += [f"{kind} {os.readlink(f'{proc}/ns/{kind}')}" for kind in sorted(os.listdir(f"{proc}/ns"))]
    for name in ("limits", "oom_score_adj", "loginuid", "coredump_filter", *(() if leaves_cgroup else ("cgroup",))):
        with contextlib.suppress(OSError), open(f"{proc}/{name}") as file:  # of a kernel that has it
            found.append(f"{name} {file.read()}")
    with open(f"{proc}/status") as file:
        found += [line for line in file.read().splitlines() if line.startswith(_STATUS)]
    found.append(f"nice {os.getpriority(os.PRIO_PROCESS, pid or 0)}")
    found.append(f"scheduler {os.sched_getscheduler(pid or 0)} {os.sched_getparam(pid or 0).sched_priority}")
    return "\n".join(found)
