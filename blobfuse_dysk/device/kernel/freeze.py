"""Freezing file systems: which are on a device, keeping them from writing, letting them go on.

A frozen file system is clean on its device: FIFREEZE ends the writes under way, holds new ones back, writes everything
out and empties the journal. It takes as long as the device takes, in a system call that no signal interrupts. The file
system stays frozen when the process that froze it ends, until somebody asks for FITHAW; there is no question whether it
is frozen but FIFREEZE, which answers EBUSY.

It imports what a holder has anyway. Source: linux/fs.h; fs/ioctl.c, ioctl_fsfreeze(); fs/super.c, freeze_super().
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os

from blobfuse_dysk.device.kernel import loop, mountinfo

TYPE_CHECKING = False  # importing typing would cost the holder half a MiB
if TYPE_CHECKING:
    from collections.abc import Iterator

    from blobfuse_dysk.device.kernel.mountinfo import Mount

__all__ = ["FileSystem", "device_at", "file_systems", "freeze", "nodes", "open_root", "spans", "thaw"]

_FIFREEZE, _FITHAW = 0xC0045877, 0xC0045878
_BLOCK = "/sys/class/block"
_BTRFS = "/sys/fs/btrfs"


class FileSystem:
    """A mounted file system. device: as in mountinfo; mounts: all of it that this process sees, at least one."""

    __slots__ = ("device", "fstype", "mounts")

    def __init__(self, device: str, fstype: str, mounts: list[Mount]) -> None:
        self.device = device
        self.fstype = fstype
        self.mounts = mounts

    @property
    def directory(self) -> str:
        """Where it is mounted, for people."""
        return self.mounts[0].directory


def nodes(device: str) -> dict[str, str]:
    """The device, its partitions, and all that is built on these (LVM, LUKS, md): {path: "major:minor"}."""
    found: dict[str, str] = {}
    waiting = [device, *loop.partitions(device)]
    while waiting:
        path = waiting.pop(0)
        if path in found:
            continue
        with contextlib.suppress(OSError):
            found[path] = _read(f"{_BLOCK}/{os.path.basename(path)}/dev")
            waiting += [f"/dev/{holder}" for holder in sorted(os.listdir(f"{_BLOCK}/{os.path.basename(path)}/holders"))]
    return found


def file_systems(device: str) -> list[FileSystem]:
    """Those on the device that are mounted where this process sees it, each once, the last mounted first."""
    there = nodes(device)
    numbers, found = set(there.values()), dict[str, FileSystem]()
    for mount in mountinfo.mounts():
        # btrfs has a number of its own.
        if mount.device in numbers or (mount.source.startswith("/dev/") and os.path.realpath(mount.source) in there):
            found.setdefault(mount.device, FileSystem(mount.device, mount.fstype, [])).mounts.append(mount)
    return list(reversed(found.values()))


def spans(device: str) -> str | None:
    """Another device that something on this one needs as well, for people; None if all of it is on this device."""
    there = nodes(device)
    mine = {os.path.basename(path) for path in there}
    for name in mine:
        for other in _listed(f"{_BLOCK}/{name}/slaves"):
            if other not in mine:
                return f"{name} is also on {other}"
    for pool in _listed(_BTRFS):
        members = set(_listed(f"{_BTRFS}/{pool}/devices"))
        if members & mine and members - mine:
            return f"its btrfs is also on {min(members - mine)}"
    return None


def device_at(path: str) -> str | None:
    """The `major:minor` of the file system at a path, as mountinfo has it; None if it cannot be told."""
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return next((mount.device for mount in mountinfo.mounts() if mount.id == _mount_id(fd)), None)
    finally:
        os.close(fd)


def open_root(file_system: FileSystem) -> int:
    """A descriptor of the file system itself, which keeps it mounted. Raises OSError.

    Whatever has been mounted over it, or unmounted, meanwhile: never one of another file system.
    """
    problem: OSError | None = None
    for mount in file_system.mounts:
        try:
            # Whatever the mount's root is, this waits for nobody on the other side of it.
            fd = os.open(mount.directory, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY)
        except OSError as error:
            problem = error
            continue
        found = _mount_id(fd)
        if any(each.id == found and each.device == file_system.device for each in mountinfo.mounts()):
            return fd
        os.close(fd)
    raise problem or OSError(errno.ESTALE, "it is not mounted there any more")


def freeze(fd: int) -> bool:
    """Freeze the file system; False if it was frozen already, by somebody else. Raises OSError."""
    try:
        fcntl.ioctl(fd, _FIFREEZE, 0)
    except OSError as error:
        if error.errno == errno.EBUSY:
            return False
        raise
    return True


def thaw(fd: int) -> bool:
    """Let it go on; False if it was not frozen. Raises OSError."""
    try:
        fcntl.ioctl(fd, _FITHAW, 0)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise
    return True


def _mount_id(fd: int) -> str:
    with open(f"/proc/self/fdinfo/{fd}") as file:
        return next((line.split()[1] for line in file if line.startswith("mnt_id:")), "")


def _listed(directory: str) -> Iterator[str]:
    with contextlib.suppress(OSError):
        yield from sorted(os.listdir(directory))


def _read(path: str) -> str:
    with open(path) as file:
        return file.read().strip()
