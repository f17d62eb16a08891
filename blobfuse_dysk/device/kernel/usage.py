"""Who uses a block device: mounts, swap, other devices built on it, processes that have it open.

Sources: proc_pid_mountinfo(5), proc_swaps(5), sysfs block/DEV/holders, proc_pid_fd(5), open(2) on O_EXCL.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from blobfuse_dysk.device.kernel import loop, mountinfo

__all__ = ["Use", "claimed", "is_dead", "mounted_elsewhere", "mountpoints", "users"]

_ANSWER_S = 2.0


@dataclass(frozen=True, slots=True)
class Use:
    """One use of a block device. text: for people. kind: what uses it; `claim` says the kernel, not for whom.

    where: the mount point (as this process sees it), the swap space, the device that is built on it; else empty.
    """

    kind: Literal["mount", "swap", "device", "process", "claim"]
    text: str
    where: str = ""

    def __str__(self) -> str:
        return self.text


def mountpoints(device: str) -> list[str]:
    """Where the device or a partition of it is mounted, as this process sees it."""
    with contextlib.suppress(OSError):
        return _mountpoints("self", _nodes(device))
    return []


def mounted_elsewhere(device: str) -> list[Use]:
    """Each mount of the device, or of a partition, in another mount namespace, as a container has it."""
    found = _mounts_elsewhere(_nodes(device))
    return [Use("mount", f"process {pid} has it mounted on {point}") for pid, point in found]


def is_dead(device: str) -> bool:
    """Whether a loop device answers every read with an error, as it does once nobody serves its file any more.

    One that does not answer within two seconds is not dead: its service may be away.
    """
    errors: list[int] = []

    def look() -> None:
        try:
            fd = os.open(device, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
            try:
                os.preadv(fd, [mmap.mmap(-1, 4096)], 0)
            finally:
                os.close(fd)
        except OSError as error:
            errors.append(error.errno or 0)

    reader = threading.Thread(target=look, daemon=True)  # in the kernel nothing ends it but an answer
    reader.start()
    reader.join(_ANSWER_S)
    return errors == [errno.EIO]


def users(device: str) -> list[Use]:
    """Each use of the device or of a partition; empty if nobody uses it.

    Looks into every mount namespace that has a process, and asks the kernel for claims that are none of these.
    """
    nodes = _nodes(device)
    found = [Use("mount", f"it is mounted on {point}", point) for point in mountpoints(device)]
    if not found:
        found = mounted_elsewhere(device)
    found += [Use("swap", f"{node} is swap space", node) for node in nodes if node in _swaps()]
    for node in nodes:
        found += [Use("device", f"{holder} is built on {node}", holder) for holder in _holders(node)]
    found += [Use("process", f"{command} (process {pid}) has it open") for pid, command in _openers(nodes)]
    if not found and _is_claimed(device):
        found.append(Use("claim", "the kernel has it in use"))
    return found


def claimed(device: str) -> str:
    """Which of the device and its partitions the kernel has in use, where it is one of them."""
    return next((node for node in loop.partitions(device) if _is_claimed(node)), device)


def _nodes(device: str) -> dict[str, str]:
    """The device and its partitions: {path: "major:minor"}."""
    nodes = {}
    for path in (device, *loop.partitions(device)):
        with contextlib.suppress(OSError):
            number = os.stat(path).st_rdev
            nodes[path] = f"{os.major(number)}:{os.minor(number)}"
    return nodes


def _mountpoints(process: int | str, nodes: dict[str, str]) -> list[str]:
    """By device number, or by source: btrfs shows a number of its own. Raises OSError, also if the process ended."""
    numbers = set(nodes.values())
    found = mountinfo.mounts(process)
    return [mount.directory for mount in found if mount.device in numbers or mount.source in nodes]


def _mounts_elsewhere(nodes: dict[str, str]) -> Iterator[tuple[int, str]]:
    """Mounts in other mount namespaces, with a process that sees each."""
    seen = {os.readlink("/proc/self/ns/mnt")}
    for pid in _processes():
        with contextlib.suppress(OSError):
            namespace = os.readlink(f"/proc/{pid}/ns/mnt")
            if namespace not in seen:
                points = _mountpoints(pid, nodes)
                seen.add(namespace)  # not before: a process that ends meanwhile tells nothing, but another may
                for point in points:
                    yield pid, point


def _swaps() -> set[str]:
    with open("/proc/swaps") as file:
        return {line.split()[0] for line in file.readlines()[1:]}


def _holders(node: str) -> list[str]:
    """Device mapper or RAID devices on a device, as /dev/NAME."""
    name = os.path.basename(node)
    try:
        return [f"/dev/{holder}" for holder in os.listdir(f"/sys/class/block/{name}/holders")]
    except OSError:
        return []


def _openers(nodes: dict[str, str]) -> Iterator[tuple[int, str]]:
    """Processes, but not this one, with a descriptor of one of the devices."""
    numbers = set(nodes.values())
    for pid in _processes():
        if pid == os.getpid():
            continue
        with contextlib.suppress(OSError):
            for fd in os.listdir(f"/proc/{pid}/fd"):
                if _device_of(f"/proc/{pid}/fd/{fd}") in numbers:
                    with open(f"/proc/{pid}/comm") as file:
                        yield pid, file.read().strip()
                    break


def _device_of(fd: str) -> str | None:
    """The number of the block device that a descriptor is of. The link is read first: stat of it could wait."""
    with contextlib.suppress(OSError):
        if os.readlink(fd).startswith("/"):
            status = os.stat(fd) if os.readlink(fd).startswith("/dev/") else None
            if status and stat.S_ISBLK(status.st_mode):
                return f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    return None


def _is_claimed(device: str) -> bool:
    """Whether somebody has the device, or a partition of it, for himself: a mount out of sight, for example."""
    try:
        os.close(os.open(device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        return error.errno == errno.EBUSY
    return False


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]
