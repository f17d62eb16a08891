"""The file system on a disk: what is there, and making one where nothing is. It prints nothing.

A disk is formatted if and only if it is blank (a VHD's footer aside) by the service's own page map, and by its bytes at
both ends and in between, which are read without that map (device/worker/geometry.py). What blkid(8) finds, or does not
find, is no reason to format: there is content that it does not know.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from blobfuse_dysk import attachment
from blobfuse_dysk.attachment import Attachment
from blobfuse_dysk.disk import DiskAddress, format_size
from blobfuse_dysk.errors import DeviceError, DyskError
from blobfuse_dysk.imageformat import OPENED_BY, Found, inspect
from blobfuse_dysk.mount.kinds import KINDS
from blobfuse_dysk.mount.tools import device_size, find_tool, reading, run_tool
from blobfuse_dysk.options import FileSystem

__all__ = ["DEFAULT_FILE_SYSTEM", "Told", "Wanted", "content", "lacks_journal", "make_file_system", "prepare", "probe"]

DEFAULT_FILE_SYSTEM = "ext4"  # what a blank disk gets when fstype= does not say it
_BLKID_NOTHING, _BLKID_AMBIGUOUS = 2, 8
# How far from both ends libblkid 2.38 looks (traced), rounded up; bytes.
_BLKID_HEAD, _BLKID_TAIL = 5 << 20, 2 << 20
# What some tools print before they say what is wrong.
_BANNER = re.compile(r"(mke2fs|btrfs-progs|mkfs\.fat|exfatprogs)\b.* v?\d|Filesystem too small for a journal$")
_EXT_MAGIC, _EXT_HAS_JOURNAL = 0xEF53, 0x4  # linux/fs/ext4/ext4.h: s_magic, s_feature_compat


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is to be on the disk. make_blank: whether a blank one may be formatted, with these words for mkfs; None: if
    that is of the kinds that are made unasked.

    partition: its number, None for the whole disk.
    """

    fstype: FileSystem
    make_blank: bool | None
    mkfs_options: tuple[str, ...]
    partition: int | None
    read_only: bool


class Told(Protocol):
    """Who hears of a file system that is made: its type before, and what became of it in words.

    held: descriptors that mkfs keeps open for as long as it runs, whatever becomes of this process.
    """

    @property
    def held(self) -> Sequence[int]: ...
    def before_mkfs(self, fstype: str) -> None: ...
    def after_mkfs(self, text: str) -> None: ...


def prepare(attached: Attachment, wanted: Wanted, told: Told) -> tuple[str, str]:
    """The device to mount, and the file system on it; made first if the disk is blank and that is wanted.

    Raises DyskError: nothing was formatted then, or mkfs failed.
    """
    device = _partition_device(attached, wanted.partition)
    return device, _file_system(attached, device, wanted, told)


def make_file_system(fstype: str, device: str, options: Sequence[str], held: Sequence[int] = ()) -> None:
    """Make a file system on a device known to be blank; raises DeviceError with the tool's own words.

    held: see Told.
    """
    kind = KINDS[fstype]
    tool = find_tool(kind.tool, remedy=f"install {kind.package}, or give the disk a file system elsewhere")
    result = run_tool([tool, *kind.words(options, device_size(device)), device], held=held)
    if result.returncode:
        words = _first_line(result.stderr) or _first_line(result.stdout) or f"exit code {result.returncode}"
        words = words.removeprefix(f"{tool}: ").removeprefix(f"mkfs.{fstype}: ").rstrip(".")
        raise DeviceError(
            f"mkfs.{fstype} on {device} failed: {words}",
            remedy="see mkfs.options in mount.dysk(8)" if options else f"is the disk large enough for {fstype}?",
        )


def lacks_journal(fstype: str, device: str) -> bool:
    """Whether the ext3 or ext4 on the device was made without a journal, as mkfs does where it is small.

    Raises DeviceError if it cannot be read.
    """
    if fstype not in ("ext3", "ext4"):
        return False
    with reading(device) as fd:
        block = os.pread(fd, 1024, 1024)
    found = int.from_bytes(block[56:58], "little"), int.from_bytes(block[92:96], "little")
    return found[0] == _EXT_MAGIC and not found[1] & _EXT_HAS_JOURNAL


def probe(device: str, only: str | None = None) -> dict[str, str] | None:
    """What blkid(8) finds on the device itself, not in its cache: TYPE, PTTYPE, ...; empty if it finds nothing.

    None if it finds traces of more than one thing. only: the one kind of file system to look for. Raises DeviceError,
    also if the device cannot be read: blkid's exit code is then that of a device with nothing known on it.
    """
    found = _blkid(device, only)
    if found == {}:
        with reading(device) as fd:
            size = os.lseek(fd, 0, os.SEEK_END)
            for offset, end in ((0, min(_BLKID_HEAD, size)), (max(0, size - _BLKID_TAIL), size)):
                while offset < end and (block := os.pread(fd, end - offset, offset)):  # short before what fails
                    offset += len(block)
            # What failed for blkid may be there by now: it is in the page cache for as long as the device is open.
            found = _blkid(device, only)
    return found


def _blkid(device: str, only: str | None) -> dict[str, str] | None:
    words = ["-p", "-o", "export", *(["-n", only] if only else []), device]
    result = run_tool([find_tool("blkid", remedy="install util-linux"), *words])
    if result.returncode == _BLKID_NOTHING:
        return {}
    if result.returncode == _BLKID_AMBIGUOUS:
        return None
    if result.returncode:
        raise DeviceError(f"blkid on {device} failed: {_first_line(result.stderr) or result.returncode}")
    pairs = (line.partition("=") for line in result.stdout.splitlines())
    return {name: value for name, _, value in pairs}


def content(device: str) -> Found | None:
    """What is on the device that blkid does not know; None if that is not recognised. Raises DeviceError."""
    with reading(device) as fd:
        size = os.lseek(fd, 0, os.SEEK_END)
        return inspect(lambda offset, length: os.pread(fd, length, offset), size)


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


def _file_system(attached: Attachment, device: str, wanted: Wanted, told: Told) -> str:
    """The file system on the device; made first if the disk is blank and that is wanted."""
    # A partition is never formatted: that the kernel found it is content, should the page map say what it will.
    if wanted.partition is None and attachment.is_blank(attached.name):
        fstype = DEFAULT_FILE_SYSTEM if wanted.fstype == "auto" else wanted.fstype
        if wanted.read_only:
            raise DyskError(f"{attached.disk} is blank", remedy=_blank_remedy(attached))
        if wanted.make_blank is None and not KINDS[fstype].unasked:
            raise DyskError(f"{attached.disk} is blank", remedy=f"to have {fstype} made on it: mkfs=blank")
        if wanted.make_blank is False:
            raise DyskError(f"{attached.disk} is blank, and mkfs=never", remedy=f"mkfs.{fstype} it, or use mkfs=blank")
        told.before_mkfs(fstype)
        make_file_system(fstype, device, wanted.mkfs_options, told.held)
        small = lacks_journal(fstype, device) and "has_journal" not in " ".join(wanted.mkfs_options)
        note = f", without a journal: {format_size(attached.size)} is too small for one, so a crash takes an fsck"
        told.after_mkfs(f"made {fstype} on {attached.disk}{note if small else ''}")
        return fstype
    what = attached.disk if wanted.partition is None else f"partition {wanted.partition} of {attached.disk}"
    found = probe(device)
    if found is None:
        return _the_wanted_one(attached, device, wanted, what)
    fstype = found.get("TYPE", "")
    if not fstype and "PTTYPE" in found:
        raise DyskError(f"{attached.disk} has a partition table", remedy="name the partition: -o partition=1")
    if not fstype:
        raise _unknown(attached, device, wanted, what)
    if fstype in OPENED_BY or found.get("USAGE", "filesystem") != "filesystem":
        raise _closed(attached, wanted, what, fstype)
    if wanted.fstype not in ("auto", fstype) and KINDS[wanted.fstype].blkid != fstype:
        raise DyskError(f"{what} has {fstype} on it, not {wanted.fstype}", remedy=f"use fstype={fstype}")
    return _driver(fstype) if wanted.fstype == "auto" else wanted.fstype


def _blank_remedy(attached: Attachment) -> str:
    """What helps who only wants to read; never a second writer where there is one."""
    if writer := attachment.writer_of(attached.name):
        return f"it is {writer}: mount it once a file system has been made there"
    if DiskAddress.parse(attached.disk).snapshot:
        return "a snapshot stays as it is: take one after a file system was made on the disk"
    return "mount it once without ro, so that it can be formatted"


def _driver(fstype: str) -> str:
    """The name that mount(8) takes for it: NTFS is ntfs-3g's where that is installed, else the kernel's own."""
    return "ntfs3" if fstype == "ntfs" and not os.access("/sbin/mount.ntfs", os.X_OK) else fstype


def _the_wanted_one(attached: Attachment, device: str, wanted: Wanted, what: str) -> str:
    """Of several that left traces, the one that fstype= names."""
    if wanted.fstype != "auto" and (probe(device, KINDS[wanted.fstype].blkid) or {}).get("TYPE"):
        return wanted.fstype
    kinds = dict.fromkeys([*(kind.blkid for kind in KINDS.values()), *OPENED_BY])
    there = [kind for kind in kinds if (probe(device, kind) or {}).get("TYPE")]
    raise DyskError(
        f"{what} has traces of more than one thing: {', '.join(there) or 'blkid does not say which'}",
        remedy=f"name the right one with fstype=, or attach it and look with: wipefs {_path(attached, wanted)}",
    )


def _unknown(attached: Attachment, device: str, wanted: Wanted, what: str) -> DyskError:
    """The error for content that blkid does not know. It is somebody's, so there is no advice to format it."""
    path = _path(attached, wanted)
    if found := content(device):
        return DyskError(
            f"{what} is {found.what}; nothing was formatted",
            remedy=f"{_attach(attached, wanted)}, then: {found.remedy.format(path)}",
        )
    return DyskError(
        f"{what} is not blank, and has no file system that blkid knows; it was not formatted",
        remedy=f"see what it is: {_attach(attached, wanted)}, then: file -s {path}; to start anew make another disk",
    )


def _closed(attached: Attachment, wanted: Wanted, what: str, kind: str) -> DyskError:
    """The error for what blkid knows, and mount(8) does not mount: it has to be opened by something else first."""
    name, opens = OPENED_BY.get(kind, (f"{kind}, which is no file system", "use the tools of that on {}"))
    return DyskError(
        f"{what} is {name}; nothing was formatted",
        remedy=f"{_attach(attached, wanted)}, then: {opens.format(_path(attached, wanted))}",
    )


def _attach(attached: Attachment, wanted: Wanted) -> str:
    """What to type to have the device: the attachment of this mount is about to end."""
    flags = " --read-only" if attached.read_only else ""
    return f"dyskctl attach {attached.disk}{flags}" + ("" if wanted.partition is None else " --partscan")


def _path(attached: Attachment, wanted: Wanted) -> str:
    """The device as it will be then."""
    return attached.by_blob + ("" if wanted.partition is None else f"-part{wanted.partition}")


def _first_line(text: str) -> str:
    """What a tool says is wrong; most follow it up with their usage."""
    lines = [line.strip() for line in text.splitlines()]
    return next((line for line in lines if line and not _BANNER.match(line)), "")
