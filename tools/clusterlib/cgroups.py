"""The cgroups of a node: made before its kubelet starts, which wants its root to exist, and removed after the node.

Version 1 (a hierarchy for each controller) and version 2 (one for all) alike: a folder in each that is mounted.
"""

from __future__ import annotations

import time
from pathlib import Path

from tools.clusterlib.places import ClusterError

__all__ = ["create", "remove"]

_TOP = Path("/sys/fs/cgroup")
_DEADLINE_S = 10.0


def _folders(name: str) -> list[Path]:
    """Where the cgroup is, or would be, in every hierarchy; links to hierarchies with two controllers left out."""
    roots = [_TOP] if (_TOP / "cgroup.procs").exists() else [path for path in _TOP.iterdir() if not path.is_symlink()]
    return [root / name.strip("/") for root in roots if root.is_dir()]


def create(name: str) -> None:
    """Makes the cgroup in every hierarchy; one of cpuset can take no process before it has processors and memory."""
    for folder in _folders(name):
        folder.mkdir(exist_ok=True)
        for file in ("cpuset.cpus", "cpuset.mems"):
            if (folder / file).exists() and not (folder / file).read_text().strip():
                (folder / file).write_text((folder.parent / file).read_text())


def remove(name: str) -> None:
    """Removes the cgroup and what is below, in every hierarchy. Its processes have ended, or are about to."""
    deadline = time.monotonic() + _DEADLINE_S
    for top in _folders(name):
        below = [path for path in top.rglob("*") if path.is_dir()] if top.exists() else []
        for folder in sorted([top, *below], key=lambda path: len(path.parts), reverse=True):
            while folder.exists():
                try:
                    folder.rmdir()
                except OSError as error:
                    if time.monotonic() > deadline:
                        raise ClusterError(f"cgroup {folder} stays ({error.strerror}): see its cgroup.procs") from error
                    time.sleep(0.05)
