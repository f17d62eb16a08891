"""Who uses a block device: mounts, swap, other devices built on it, processes that have it open.

Sources: proc_pid_mountinfo(5), proc_swaps(5), sysfs block/DEV/holders, proc_pid_fd(5), open(2) on O_EXCL.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator

from blobfuse_dysk.device.kernel import loop

__all__ = ["mounted_elsewhere", "mountpoints", "users"]

_ESCAPE = re.compile(r"\\([0-7]{3})")


def mountpoints(device: str) -> list[str]:
    """Where the device or a partition of it is mounted, as this process sees it."""
    return _mountpoints("/proc/self/mountinfo", _nodes(device))


def mounted_elsewhere(device: str) -> list[str]:
    """One text for each mount of the device, or of a partition, in another mount namespace, as a container has it."""
    return [f"process {pid} has it mounted on {point}" for pid, point in _mounts_elsewhere(_nodes(device))]


def users(device: str) -> list[str]:
    """One text for each use of the device or of a partition, for people; empty if nobody uses it.

    Looks into every mount namespace that has a process, and asks the kernel for claims that are none of these.
    """
    nodes = _nodes(device)
    found = [f"it is mounted on {point}" for point in mountpoints(device)]
    if not found:
        found = mounted_elsewhere(device)
    found += [f"{node} is swap space" for node in nodes if node in _swaps()]
    for node in nodes:
        found += [f"{holder} is built on {node}" for holder in _holders(node)]
    found += [f"{command} (process {pid}) has it open" for pid, command in _openers(nodes)]
    if not found and _is_claimed(device):
        found.append("the kernel has it in use")
    return found


def _nodes(device: str) -> dict[str, str]:
    """The device and its partitions: {path: "major:minor"}."""
    nodes = {}
    for path in (device, *loop.partitions(device)):
        with contextlib.suppress(OSError):
            number = os.stat(path).st_rdev
            nodes[path] = f"{os.major(number)}:{os.minor(number)}"
    return nodes


def _mountpoints(mountinfo: str, nodes: dict[str, str]) -> list[str]:
    """By device number, or by source: btrfs shows a number of its own."""
    found = []
    numbers = set(nodes.values())
    with contextlib.suppress(OSError), open(mountinfo, encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            left, _, right = line.partition(" - ")
            fields = left.split()
            if fields[2] in numbers or right.split()[1] in nodes:
                found.append(_ESCAPE.sub(lambda match: chr(int(match[1], 8)), fields[4]))
    return found


def _mounts_elsewhere(nodes: dict[str, str]) -> Iterator[tuple[int, str]]:
    """Mounts in other mount namespaces, with a process that sees each."""
    seen = {os.readlink("/proc/self/ns/mnt")}
    for pid in _processes():
        with contextlib.suppress(OSError):
            namespace = os.readlink(f"/proc/{pid}/ns/mnt")
            if namespace not in seen:
                seen.add(namespace)
                for point in _mountpoints(f"/proc/{pid}/mountinfo", nodes):
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
