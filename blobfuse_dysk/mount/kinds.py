"""The file systems that mount can make, and how their mkfs is asked."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["KINDS", "Kind"]


@dataclass(frozen=True, slots=True)
class Kind:
    """How to make one. tool: mkfs.NAME. package: Debian's name of what has it; other systems' differ little.

    flags: so that it says nothing, does not read or write all of the disk, and asks nothing. blkid: its name there.
    unasked: whether a blank disk gets it where only fstype= says so; the others take mkfs=blank as well.
    """

    tool: str
    package: str
    flags: tuple[str, ...]
    blkid: str
    unasked: bool = False


KINDS = {
    "ext4": Kind("mkfs.ext4", "e2fsprogs", ("-q",), "ext4", unasked=True),
    "xfs": Kind("mkfs.xfs", "xfsprogs", ("-q",), "xfs", unasked=True),
    "btrfs": Kind("mkfs.btrfs", "btrfs-progs", ("-q",), "btrfs", unasked=True),
    "ext3": Kind("mkfs.ext3", "e2fsprogs", ("-q",), "ext3"),
    "ext2": Kind("mkfs.ext2", "e2fsprogs", ("-q",), "ext2"),
    "vfat": Kind("mkfs.vfat", "dosfstools", ("-I",), "vfat"),  # -I: on a whole disk
    "exfat": Kind("mkfs.exfat", "exfatprogs", (), "exfat"),
    "ntfs": Kind("mkfs.ntfs", "ntfs-3g", ("-q", "-Q"), "ntfs"),  # -Q: no zeros
    "ntfs3": Kind("mkfs.ntfs", "ntfs-3g", ("-q", "-Q"), "ntfs"),
    "f2fs": Kind("mkfs.f2fs", "f2fs-tools", ("-q",), "f2fs"),
}
