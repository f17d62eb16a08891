"""The file system on a disk: what is there, and making one where nothing is. It prints nothing.

A disk is formatted if and only if it is blank (a VHD's footer aside) by the service's own page map, and by its bytes at
both ends and in between, which are read without that map (device/worker/geometry.py). What blkid(8) finds, or does not
find, is no reason to format: there is content that it does not know.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from blobfuse_dysk import attachment
from blobfuse_dysk.attachment import Attachment
from blobfuse_dysk.errors import DeviceError, DyskError
from blobfuse_dysk.mount.tools import find_tool, run_tool
from blobfuse_dysk.options import FileSystem

__all__ = ["DEFAULT_FILE_SYSTEM", "Wanted", "make_file_system", "prepare", "probe"]

DEFAULT_FILE_SYSTEM = "ext4"  # what a blank disk gets when fstype= does not say it
# Debian's names; other systems' differ little, and a wrong name still tells what to look for.
_PACKAGES = {"ext4": "e2fsprogs", "xfs": "xfsprogs", "btrfs": "btrfs-progs"}
_BLKID_NOTHING, _BLKID_AMBIGUOUS = 2, 8
_BANNER = re.compile(r"(mke2fs|btrfs-progs) v?\d")  # what some tools print before they say what is wrong


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is to be on the disk. make_blank: whether a blank one may be formatted, with these words for mkfs.

    partition: its number, None for the whole disk.
    """

    fstype: FileSystem
    make_blank: bool
    mkfs_options: tuple[str, ...]
    partition: int | None
    read_only: bool


def prepare(attached: Attachment, wanted: Wanted, before_mkfs: Callable[[str], None]) -> tuple[str, str]:
    """The device to mount, and the file system on it; made first if the disk is blank and that is wanted.

    before_mkfs: told the type before one is made. Raises DyskError: nothing was formatted then, or mkfs failed.
    """
    device = _partition_device(attached, wanted.partition)
    return device, _file_system(attached, device, wanted, before_mkfs)


def make_file_system(fstype: str, device: str, options: Sequence[str]) -> None:
    """Make a file system on a device known to be blank; raises DeviceError with the tool's own words."""
    package = _PACKAGES.get(fstype, f"the package with mkfs.{fstype}")
    tool = find_tool(f"mkfs.{fstype}", remedy=f"install {package}, or give the disk a file system elsewhere")
    result = run_tool([tool, "-q", *options, device])
    if result.returncode:
        words = _first_line(result.stderr) or _first_line(result.stdout) or f"exit code {result.returncode}"
        words = words.removeprefix(f"{tool}: ").removeprefix(f"mkfs.{fstype}: ").rstrip(".")
        raise DeviceError(
            f"mkfs.{fstype} on {device} failed: {words}",
            remedy="see mkfs.options in mount.dysk(8)" if options else f"is the disk large enough for {fstype}?",
        )


def probe(device: str) -> dict[str, str]:
    """What blkid(8) finds on the device itself, not in its cache: TYPE, PTTYPE, ...; empty if it finds nothing."""
    result = run_tool([find_tool("blkid", remedy="install util-linux"), "-p", "-o", "export", device])
    if result.returncode == _BLKID_NOTHING:
        return {}
    if result.returncode == _BLKID_AMBIGUOUS:
        raise DeviceError(
            f"{device} has traces of more than one file system",
            remedy=f"look with wipefs {device}, remove the wrong one, or name the right one with fstype=",
        )
    if result.returncode:
        raise DeviceError(f"blkid on {device} failed: {_first_line(result.stderr) or result.returncode}")
    pairs = (line.partition("=") for line in result.stdout.splitlines())
    return {name: value for name, _, value in pairs}


def _partition_device(attached: Attachment, partition: int | None) -> str:
    """The device to mount: the attachment's, or that of the partition asked for."""
    if partition is None:
        return attached.device
    path = f"{attached.device}p{partition}"
    if path not in attached.partitions:
        there = ", ".join(each.removeprefix(f"{attached.device}p") for each in attached.partitions)
        raise DyskError(
            f"{attached.disk} has no partition {partition}",
            remedy=f"it has {there}" if there else "it has none: mount it without partition=",
        )
    return path


def _file_system(attached: Attachment, device: str, wanted: Wanted, before_mkfs: Callable[[str], None]) -> str:
    """The file system on the device; made first if the disk is blank and that is wanted."""
    # A partition is never formatted: that the kernel found it is content, should the page map say what it will.
    if wanted.partition is None and attachment.is_blank(attached.name):
        fstype = DEFAULT_FILE_SYSTEM if wanted.fstype == "auto" else wanted.fstype
        if wanted.read_only:
            raise DyskError(f"{attached.disk} is blank", remedy="mount it once without ro, so that it can be formatted")
        if not wanted.make_blank:
            raise DyskError(f"{attached.disk} is blank, and mkfs=never", remedy=f"mkfs.{fstype} it, or use mkfs=blank")
        before_mkfs(fstype)
        make_file_system(fstype, device, wanted.mkfs_options)
        return fstype
    found = probe(device)
    fstype = found.get("TYPE", "")
    if not fstype and "PTTYPE" in found:
        raise DyskError(f"{attached.disk} has a partition table", remedy="name the partition: -o partition=1")
    what = attached.disk if wanted.partition is None else f"partition {wanted.partition} of {attached.disk}"
    if not fstype:
        partscan = "" if wanted.partition is None else " --partscan"
        raise DyskError(
            f"{what} is not blank, and has no file system that blkid knows; it was not formatted",
            remedy=f"if nothing on it is wanted: dyskctl attach {attached.disk}{partscan}, then mkfs by hand",
        )
    if wanted.fstype not in ("auto", fstype):
        raise DyskError(f"{what} has {fstype} on it, not {wanted.fstype}", remedy=f"use fstype={fstype}")
    return fstype


def _first_line(text: str) -> str:
    """What a tool says is wrong; most follow it up with their usage."""
    lines = [line.strip() for line in text.splitlines()]
    return next((line for line in lines if line and not _BANNER.match(line)), "")
