"""The attachments of this node's volumes: how they are named, found, and told from those of others.

A volume's attachment is named after a digest of its id, so that any call finds it by the id alone, also after the
driver was killed. Whether it really is this volume's is what state.json says: the disk, and, where the call knows it,
the endpoint. Whatever else has that name is somebody else's, and is left alone.

Where the disk is mounted is asked of the kernel, by the number of the device that has this attachment's file behind it;
neither a path that losetup shows nor what was said earlier counts.
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from blobfuse_dysk import environment
from blobfuse_dysk.attached import Attachment, describe
from blobfuse_dysk.device.attacher import teardown
from blobfuse_dysk.device.ipc import state
from blobfuse_dysk.device.ipc.statefile import StateFile
from blobfuse_dysk.device.kernel import loop
from blobfuse_dysk.device.kernel.mountinfo import Mount, mounts
from blobfuse_dysk.device.kernel.usage import is_dead
from blobfuse_dysk.errors import AttachedError, LaterError

__all__ = ["Own", "find", "is_left_over", "name_of", "run_dir"]


class Own:
    """An attachment of a volume. device: /dev/loopN, by the kernel's own list; None if it is dead and has none.

    rdev: the device's number.
    """

    def __init__(self, fields: StateFile, device: str | None) -> None:
        self.fields = fields
        self.device = device
        self.rdev = Path(device).stat().st_rdev if device else None

    @property
    def attachment(self) -> Attachment:
        """As it is shown."""
        return describe(self.fields)

    def shows(self, mount: Mount | None) -> bool:
        """Whether a mount is of this volume: its file system, or the device itself (raw block)."""
        if mount is None or self.rdev is None:
            return False
        if mount.fstype == "btrfs":  # has a number of its own; while it is mounted the device is no other file's
            return mount.source == self.device
        return mount.device == f"{os.major(self.rdev)}:{os.minor(self.rdev)}" or self._shows_node(mount)

    def is_node(self, status: os.stat_result) -> bool:
        """Whether this is the device itself."""
        return stat.S_ISBLK(status.st_mode) and status.st_rdev == self.rdev

    def _shows_node(self, mount: Mount) -> bool:
        if not self.device or Path(mount.root).name != Path(self.device).name:
            return False
        try:
            return self.is_node(Path(mount.directory).stat())
        except OSError:
            return False

    def places(self) -> list[Mount]:
        """Where it is, as this process sees it, in the order in which it came there."""
        return [mount for mount in mounts() if self.shows(mount)]


def name_of(handle: str, prefix: str) -> str:
    """The attachment's name for a volume's id."""
    return prefix + hashlib.sha256(handle.encode()).hexdigest()[:20]


def find(name: str, disk: str, endpoint: str | None = None) -> Own | None:
    """The attachment of this name, also a dead one; None if there is none.

    Raises AttachedError if it is another disk's, or the same name's at another endpoint; LaterError while it begins.
    """
    run = run_dir()
    if name not in state.names(run):
        return None
    found = state.read(run, name)
    if found is None:
        raise LaterError(f"{name} is being attached or detached right now", remedy="it is tried again")
    if found["disk"] != disk or (endpoint is not None and found["endpoint"] != endpoint):
        raise AttachedError(
            f"{name} is an attachment of {found['disk']} at {found['endpoint']}, not of {disk}",
            remedy=f"see who made it: dyskctl get {name}; it is left alone",
        )
    alive = state.alive(found["holder"])
    if alive and found["device"] is None:
        raise LaterError(f"{disk} is being attached right now", remedy="it is tried again")
    return Own(found, teardown.device_of(run, found))


def is_left_over(mount: Mount) -> bool:
    """Whether a mount is what an attachment left that is gone: nothing of the loop device below it can be read."""
    if not mount.source.startswith("/dev/loop"):
        return False
    return loop.backing_file(mount.source) is None or is_dead(mount.source)


def run_dir() -> str:
    """Where the node's attachments are, as the kernel shows it."""
    return str(environment.run_dir().resolve())
