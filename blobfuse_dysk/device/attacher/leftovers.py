"""What is left of attachments that no process holds any more, and that no state.json tells of.

A dead attachment with a readable state is shown by `dyskctl list`, and goes with the next attach or detach of it. Here
is the rest: what a machine has after processes were killed at a bad moment, or after somebody removed files by hand.

A device, or a link, whose attachment is not seen here may be a living disk of the host or of another container. What is
advised to be taken away is dead: no read of it is answered, nobody uses it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex

from blobfuse_dysk.device.ipc import state
from blobfuse_dysk.device.kernel import devlink, loop
from blobfuse_dysk.device.kernel.usage import is_dead, users
from blobfuse_dysk.errors import DeviceError

__all__ = ["elsewhere", "leftovers"]

_LOOP = re.compile(r"loop[0-9]+\Z")


def leftovers(run: str, dev: str) -> list[tuple[str, str]]:
    """Each as what it is and what to do about it. run: as the kernel shows it (no symbolic links)."""
    try:
        with state.lock(run):  # nobody is half way through making one
            names = state.names(run)
            found = [text for name in names for text in _directory(run, name)]
    except FileNotFoundError:
        names, found = [], []
    except PermissionError:
        names, found = state.names(run), []  # not root's doctor, which says so
    except DeviceError as error:
        names, found = state.names(run), [(str(error), error.remedy or "")]
    for name, device in _loop_devices(run):
        if name not in names and not users(device) and is_dead(device):
            found.append((f"{device} has a file of {name}, which is gone, behind it", f"losetup -d {device}"))
    return found + _links(run, dev, names)


def elsewhere(run: str) -> list[str]:
    """Loop devices with disks of attachments that this process does not see, though they may be well.

    As in a container that shares /dev with the host, or with other containers, but not /run.
    """
    names = state.names(run)
    return [device for name, device in _loop_devices(run) if name not in names]


def _directory(run: str, name: str) -> list[tuple[str, str]]:
    remedy = f"dyskctl detach {name} --force"
    try:
        if state.read(run, name) is None:
            return [(f"{state.directory(run, name)} was begun and never finished", remedy)]
    except DeviceError as error:
        return [(str(error), error.remedy or remedy)]
    return []


def _loop_devices(run: str) -> list[tuple[str, str]]:
    """(name, device) of each loop device with the disk of an attachment behind it, whether that exists or not."""
    found = []
    for entry in sorted(filter(_LOOP.match, os.listdir("/sys/block"))):
        path = loop.backing_file(f"/dev/{entry}") or ""
        if path.startswith(f"{run}/") and path.endswith("/fs/disk"):
            found.append((path.removeprefix(f"{run}/").partition("/")[0], f"/dev/{entry}"))
    return found


def _links(run: str, dev: str, names: list[str]) -> list[tuple[str, str]]:
    """Links that belong to no attachment, and lead to no disk."""
    disks = []
    for name in names:
        with contextlib.suppress(DeviceError):
            found = state.read(run, name)
            disks += [found["disk"]] if found else []
    return [
        (f"{path} points to {target} and belongs to no attachment", f"rm {shlex.quote(path)}")
        for path, target in devlink.of_others(dev, names, disks)
    ]
