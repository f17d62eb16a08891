"""Makes a file system as large as its device, where that became larger. With the tools of each kind of file system.

While it is mounted, where that can be done: xfs and btrfs only then. ext4 takes CAP_SYS_RESOURCE for it, which root
does not have everywhere (containers); so without it ext4 grows before it is mounted, and is checked first.
Source: fs/ext4/ioctl.c (ext4_resize_begin), resize2fs(8), e2fsck(8), xfs_growfs(8), btrfs-filesystem(8).
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from blobfuse_dysk.device.kernel.usage import mountpoints
from blobfuse_dysk.errors import DeviceError, DyskError, UsageError
from blobfuse_dysk.mount.tools import device_size, find_tool, reading, run_tool

__all__ = ["GROWING", "grow_file_system", "growing_with", "grows_unmounted"]

_log = logging.getLogger(__name__)

_EXT = ("ext2", "ext3", "ext4")
GROWING = (*_EXT, "xfs", "btrfs")
"""The kinds that this can do."""
_SYS_RESOURCE = 24  # linux/capability.h
_CORRECTED, _LEFT = 1, 4  # e2fsck(8), "EXIT CODE"
_SAYS_NOTHING = ("btrfs-progs ", "Cannot continue, aborting")  # how lines of theirs begin
_LEAST = 4 << 20  # bytes; resize2fs leaves less at the end: a block group has to have room for its own tables
_MAGIC, _INCOMPAT_64BIT = 0xEF53, 0x80  # fs/ext4/ext4.h


def grows_unmounted(fstype: str) -> bool:
    """Whether this process can make it grow only while it is not mounted."""
    return fstype in _EXT and not _has_capability()


def grow_file_system(device: str, mount_point: str | None, fstype: str) -> bool:
    """Whether the file system became larger; False if it has the device's size already.

    mount_point: where it is mounted, writable; None if it is not, and nobody else uses the device. fstype: one of
    GROWING. Raises UsageError for another kind, or one that grows only mounted; DeviceError if a tool is missing, or
    failed, with its own words: the file system is as it was.
    """
    if fstype in _EXT:
        return _grow_ext(device, mount_point, fstype)
    if fstype not in GROWING:
        raise UsageError(f"{fstype} does not grow here", remedy=f"those that do: {', '.join(GROWING)}")
    if mount_point is None:
        raise UsageError(f"{fstype} grows only while it is mounted", remedy="mount it first")
    before = _room(mount_point)
    if fstype == "xfs":
        _run("xfs_growfs", "xfsprogs", [mount_point], fstype, device)
    else:
        _run("btrfs", "btrfs-progs", ["filesystem", "resize", "max", mount_point], fstype, device)
    return _room(mount_point) > before


@contextlib.contextmanager
def growing_with(device: str, directory: str, fstype: str) -> Iterator[None]:
    """Around the mount of a device on a directory: the file system grows before or after it, as it can.

    That it did not is a warning, for it can be used as it is. One that is mounted in another place already is not
    checked and grown beneath that: it grows as a mounted one does, or it is told why not.
    """
    before = grows_unmounted(fstype) and not mountpoints(device)
    if before:
        _try_to_grow(device, None, fstype)
    yield
    if not before:
        _try_to_grow(device, directory, fstype)


def _try_to_grow(device: str, mount_point: str | None, fstype: str) -> None:
    try:
        grow_file_system(device, mount_point, fstype)
    except DyskError as error:
        _log.warning("%s", error.line())


def _grow_ext(device: str, mount_point: str | None, fstype: str) -> bool:
    before = _ext_size(device)
    if before is not None and device_size(device) - before < _LEAST:
        return False
    if mount_point is None:
        _check_ext(device)
    elif not _has_capability():
        raise DeviceError(
            f"a mounted {fstype} grows only with CAP_SYS_RESOURCE, which this process does not have",
            remedy=f"umount {mount_point}, then mount it with -o grow; or run resize2fs {device} where root has it",
        )
    _run("resize2fs", "e2fsprogs", [device], fstype, device)
    after = _ext_size(device)
    return before is not None and after is not None and after > before


def _check_ext(device: str) -> None:
    result = run_tool([find_tool("e2fsck", remedy="install e2fsprogs"), "-f", "-p", device])
    if result.returncode & _LEFT:
        raise DeviceError(
            f"e2fsck found what it does not correct by itself on {device}, so the file system does not grow",
            remedy=f"run e2fsck -f {device}, and answer it",
        )
    if result.returncode & ~_CORRECTED:
        said = _words("e2fsck", result.stderr + result.stdout, result.returncode)
        raise DeviceError(f"e2fsck on {device} failed: {said}", remedy=f"see what is on it: blkid -p {device}")


def _run(name: str, package: str, words: list[str], fstype: str, device: str) -> None:
    result = run_tool([find_tool(name, remedy=f"install {package}"), *words])
    if result.returncode:
        said = _words(name, result.stderr + result.stdout, result.returncode)
        raise DeviceError(f"{name} did not make the {fstype} on {device} larger: {said}", remedy="see dmesg")


def _words(name: str, text: str, code: int) -> str:
    """What a tool said was wrong: that comes first, then what to do about it, behind its own name and version."""
    lines = [line.strip().removeprefix(f"{name}: ") for line in text.splitlines()]
    told = next((line for line in lines if line and not line.startswith((f"{name} ", *_SAYS_NOTHING))), "")
    return told.rstrip(".") or f"exit code {code}"


def _room(mount_point: str) -> int:
    """Bytes of the file system, by its own count."""
    found = os.statvfs(mount_point)
    return found.f_blocks * found.f_frsize


def _ext_size(device: str) -> int | None:
    """Bytes of the ext file system on a device, by its superblock; None if there is none."""
    with reading(device) as fd:
        block = os.pread(fd, 1024, 1024)

    def number(offset: int, length: int) -> int:
        return int.from_bytes(block[offset : offset + length], "little")

    if len(block) < 1024 or number(56, 2) != _MAGIC:
        return None
    count = number(4, 4) | (number(0x150, 4) << 32 if number(96, 4) & _INCOMPAT_64BIT else 0)
    return count << (10 + number(24, 4))


def _has_capability() -> bool:
    """Whether this process has CAP_SYS_RESOURCE."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> _SYS_RESOURCE & 1)
    return False
