"""The file systems that mount can make, and how their mkfs is asked.

mke2fs makes blocks of 1 KiB where there are less than 512 MiB. Nothing mounts those on a device with sectors of 4096
bytes, as a disk may have the next time (sector-size), so it is asked for blocks of 4 KiB at least; not below 8 MiB,
where there would be no room for a journal then. Source: mke2fs(8), -b and -T; e2fsprogs, ext2fs_default_journal_size.
"""

from __future__ import annotations

from collections.abc import Sequence
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

    def words(self, options: Sequence[str], size: int) -> list[str]:
        """mkfs's words before the device of `size` bytes. options: the user's, which decide."""
        own = list(self.flags)
        if self.tool in _EXT and size >= _FOR_A_JOURNAL and not any(word.startswith(("-b", "-T")) for word in options):
            own += ["-b", f"-{_BLOCK}"]
        return [*own, *options]


_EXT = ("mkfs.ext4", "mkfs.ext3", "mkfs.ext2")
_BLOCK = 4096
_FOR_A_JOURNAL = 2048 * _BLOCK
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
