"""Nothing is left behind: what is in a directory of the benchmark is taken down, by the run or by the next one.

A run has directories /run/dysk-bench-*, each with a file `lock` that is locked for as long as the run lives. A run
that was killed outright could not clean up; its lock is free, so the next run finds the directory and takes down what
it has: mounts inside it, loop devices on files inside it, attachments.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tools.benchlib.processes import TEMPLATE, processes_of

__all__ = ["PARENT", "PREFIX", "claimed", "of_killed_runs", "take_down", "variables"]

PARENT = Path("/run")
PREFIX = "dysk-bench-"
_DYSKCTL = str(Path(sys.executable).parent / "dyskctl")
_LIMIT_S = 60.0
_NEW_S = 60.0  # the age of a directory from which on a missing lock means that nobody will take it


def variables(root: Path) -> dict[str, str]:
    """What makes dyskctl use the directories below `root`."""
    return {
        "DYSK_RUN_DIR": str(root / "run"),
        "DYSK_CONFIG_DIR": str(root / "config"),
        "DYSK_LOG_DIR": str(root / "log"),
        "DYSK_DEV_DIR": f"/dev/{root.name}",
    }


@contextlib.contextmanager
def claimed(root: Path) -> Iterator[None]:
    """The directory belongs to a run that lives."""
    with (root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def of_killed_runs() -> list[str]:
    """Take down what killed runs left; returns the names of their directories."""
    found = []
    for root in sorted(PARENT.glob(f"{PREFIX}*")):
        path = root / "lock"
        if not path.exists() and time.time() - root.stat().st_mtime < _NEW_S:
            continue  # a run that has only just begun
        with contextlib.suppress(BlockingIOError), path.open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            take_down(root)
            shutil.rmtree(root)
            found.append(root.name)
    return found


def take_down(root: Path) -> None:
    """Unmount, detach and remove what is in the directory; no error when there is nothing."""
    state = root / "run"
    for mount in _mounts(root):
        if state not in mount.parents and not _call("umount", str(mount)):  # those below it are the holders'
            _call("umount", "--lazy", str(mount))
    for entry in state.glob("*"):
        _call(_DYSKCTL, "detach", entry.name, "--force", "--lose-data", environment=variables(root))
    for pid in processes_of(root, TEMPLATE):  # it would wait a minute for the next attach
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for device in _loop_devices(root):
        _call("losetup", "--detach", device)
    for mount in _mounts(root):
        _call("umount", "--lazy", str(mount))
    with contextlib.suppress(OSError):
        Path(f"/dev/{root.name}").rmdir()


def _mounts(root: Path) -> list[Path]:
    """Mount points below the directory, the innermost first. Source: proc_pid_mountinfo(5)."""
    points = [Path(line.split()[4]) for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return sorted((point for point in points if root in point.parents), key=lambda point: -len(point.parts))


def _loop_devices(root: Path) -> list[str]:
    found = []
    for entry in Path("/sys/block").glob("loop*"):
        with contextlib.suppress(OSError):
            if (entry / "loop" / "backing_file").read_text().startswith(f"{root}/"):
                found.append(f"/dev/{entry.name}")
    return found


def _call(*command: str, environment: dict[str, str] | None = None) -> bool:
    """Whether it succeeded; what it says is of no interest, as it may have been done already."""
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0
