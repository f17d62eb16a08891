"""Leaves a control group whose end would be the end of what it holds, as that of a pod's container is.

With systemd a holder is a service, which is in a group of its own from the start. Without it, it joins the group of
process 1, in each hierarchy that there is. Sources: cgroups(7), proc_pid_cgroup(5). Standard library only.
"""

from __future__ import annotations

import os

__all__ = ["join"]

_ROOT = "/sys/fs/cgroup"


def join(pid: int = 1, *, proc: str = "/proc", root: str = _ROOT) -> list[str]:
    """Put this process where process `pid` is; returns a warning for each group that it could not join.

    A hierarchy that is not mounted below `root` is left out: nobody can end anything by it.
    """
    warnings = []
    with open(f"{proc}/{pid}/cgroup") as file:
        lines = file.read().splitlines()
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for name in (controllers.removeprefix("name="), "unified") if controllers else ("", "unified"):
            procs = os.path.join(root, name, path.lstrip("/"), "cgroup.procs")
            if not os.path.exists(procs):
                continue
            try:
                with open(procs, "w") as file:
                    file.write("0")
            except OSError as error:
                warnings.append(f"it stays in its control group: {procs}: {error.strerror}")
            break
    return warnings
