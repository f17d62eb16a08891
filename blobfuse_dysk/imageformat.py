"""What the first and last bytes of a disk say that it is, where that is neither a file system nor a partition table.

Images of another format (qcow2, VHDX, a dynamic VHD...) hold a disk and are none; a VHD footer that does not fit its
blob belongs to a disk of another size. Both attach as plain bytes, which nothing can be mounted from, and which a
careless mkfs would end. LUKS, LVM and the like hold what has to be opened first. No I/O is done here: `inspect` is
given a function that reads.

Sources: QEMU, docs/interop/qcow2.rst, qed_spec.rst, parallels.rst, block/vmdk.c, block/vdi.c, block/dmg.c; [MS-VHDX]
2.2.1; the VHD specification (vhd.py); cryptsetup, docs/on-disk-format.pdf; util-linux, libblkid/src/superblocks.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from blobfuse_dysk.disk import format_size
from blobfuse_dysk.vhd import FOOTER_SIZE, parse_footer

__all__ = ["HEAD_SIZE", "OPENED_BY", "Found", "inspect", "recognise"]

HEAD_SIZE = 8192  # bytes that `recognise` wants of the beginning
_SECTOR = 512
_MIB = 1 << 20
_COOKIE = b"conectix"
_VHD_TYPES = {3: "a dynamic VHD", 4: "a differencing VHD"}

# Magic at an offset -> what it is, and qemu-img's word for it.
_IMAGES = (
    (0, b"vhdxfile", "a VHDX image", "vhdx"),
    (0, b"QFI\xfb\x00\x00\x00\x01", "a qcow image", "qcow"),
    (0, b"QFI\xfb", "a qcow2 image", "qcow2"),
    (0, b"KDMV", "a VMDK image", "vmdk"),
    (0, b"COWD", "a VMDK image", "vmdk"),
    (0, b"# Disk DescriptorFile", "the descriptor of a VMDK image, whose content is in other files", "vmdk"),
    (0x40, b"\x7f\x10\xda\xbe", "a VDI image", "vdi"),
    (0, b"QED\0", "a QED image", "qed"),
    (0, b"WithoutFreeSpace", "a Parallels image", "parallels"),
    (0, b"WithouFreSpacExt", "a Parallels image", "parallels"),
)
_PACKED = (
    (b"\x1f\x8b\x08", "a gzip file", "gunzip"),
    (b"\xfd7zXZ\0", "an xz file", "unxz"),
    (b"\x28\xb5\x2f\xfd", "a zstd file", "unzstd"),
    (b"PK\x03\x04", "a zip file", "unzip"),
)
# blkid's TYPE -> what it is, and what opens it; {} is the device.
OPENED_BY = {
    "crypto_LUKS": ("a LUKS container", "cryptsetup open {} NAME, then mount /dev/mapper/NAME"),
    "BitLocker": ("a BitLocker volume", "cryptsetup bitlkOpen {} NAME, then mount /dev/mapper/NAME"),
    "swap": ("swap space", "swapon {}"),
    "LVM2_member": ("an LVM physical volume", "vgchange -ay, then mount the logical volume that lvs shows"),
    "linux_raid_member": ("a member of an md RAID", "mdadm --assemble --scan, then mount what /proc/mdstat shows"),
    "bcache": ("a bcache device", "echo {} > /sys/fs/bcache/register, then mount /dev/bcache0"),
    "zfs_member": ("a member of a ZFS pool", "zpool import -d {}"),
}


@dataclass(frozen=True, slots=True)
class Found:
    """What it is: `a qcow2 image`; and a sentence that begins with a command, with `{}` for the device.

    kind: image, a disk in another format; footer, a VHD footer that does not fit, in front of which there may be a
    disk; container, what has to be opened first.
    """

    kind: Literal["image", "footer", "container"]
    what: str
    remedy: str


def inspect(read: Callable[[int, int], bytes], size: int) -> Found | None:
    """Look at a disk of `size` bytes; None if nothing is recognised. read: offset, length -> bytes; what it raises."""
    tail_at = max(0, size - FOOTER_SIZE)
    head = read(0, min(HEAD_SIZE, size))
    found = recognise(head, read(tail_at, size - tail_at), size)
    for offset in () if found else _ends(head, size):
        footer = parse_footer(read(offset, FOOTER_SIZE))
        if footer and footer.current_size in (offset, offset + FOOTER_SIZE):
            return _misfit(f"a VHD whose footer is at {offset}, and not at its end: it was made larger", offset)
    return found


def recognise(head: bytes, tail: bytes, size: int) -> Found | None:
    """What the first bytes (HEAD_SIZE of them, or all) and the last FOOTER_SIZE say."""
    for offset, magic, what, name in _IMAGES:
        if head[offset : offset + len(magic)] == magic:
            return _image(what, name)
    for block in (tail, head[:FOOTER_SIZE]):
        if block[: len(_COOKIE)] == _COOKIE and len(block) == FOOTER_SIZE and (kind := _vhd_type(block)) in _VHD_TYPES:
            return _image(_VHD_TYPES[kind], "vpc")
    if tail[:4] == b"koly":
        return _image("a DMG image", "dmg")
    for magic, what, tool in _PACKED:
        if head.startswith(magic):
            return Found("image", what, f"{tool} it, and upload what comes out")
    return _footer(tail, size) or _container(head)


def _image(what: str, name: str) -> Found:
    return Found(
        "image",
        what,
        f"qemu-img convert -f {name} -O raw {{}} FILE, and upload that file, or make it the content of a new disk "
        "of its size",
    )


def _misfit(what: str, disk_size: int | None) -> Found:
    fits = f"resize the blob to {disk_size + FOOTER_SIZE} bytes, or " if disk_size else ""
    return Found(
        "footer",
        what,
        f"{fits}have one made that fits: qemu-img convert -f raw -O vpc -o subformat=fixed,force_size=on {{}} FILE; "
        "vhd=no takes all of it as it is",
    )


def _vhd_type(footer: bytes) -> int:
    return int(struct.unpack_from(">I", footer, 60)[0])


def _footer(tail: bytes, size: int) -> Found | None:
    """A VHD footer that vhd.py does not take for this blob's."""
    footer = parse_footer(tail)
    if footer:
        if footer.layout(size):
            return None
        told, there = format_size(footer.current_size), format_size(size)
        return _misfit(f"a VHD whose footer is of a disk of {told}, in a blob of {there}", None)
    if tail[: len(_COOKIE)] == _COOKIE:
        return _misfit("a VHD with a damaged footer", None)
    if tail[1 : 1 + len(_COOKIE)] == _COOKIE:
        return _misfit("a VHD with a footer of 511 bytes, as Virtual PC made them before 2004", None)
    return None


def _container(head: bytes) -> Found | None:
    kind = None
    if head.startswith(b"LUKS\xba\xbe"):
        kind = "crypto_LUKS"
    elif head[3:11] == b"-FVE-FS-":
        kind = "BitLocker"
    elif head[4086:4096] in (b"SWAPSPACE2", b"SWAP-SPACE"):
        kind = "swap"
    elif any(head[at : at + 8] == b"LABELONE" and head[at + 24 : at + 32] == b"LVM2 001" for at in range(0, 2048, 512)):
        kind = "LVM2_member"
    elif b"\xfc\x4e\x2b\xa9" in (head[:4], head[4096:4100]):
        kind = "linux_raid_member"
    elif head[4120:4136] == bytes.fromhex("c68573f64e1a45ca8265f57f48ba6d81"):
        kind = "bcache"
    return Found("container", *OPENED_BY[kind]) if kind else None


def _ends(head: bytes, size: int) -> Iterator[int]:
    """Where the footer may be of the smaller disk that this one was: behind its GPT's end, or its last partition."""
    if head[510:512] != b"\x55\xaa":
        return
    candidates = []
    if head[_SECTOR : _SECTOR + 8] == b"EFI PART":
        candidates.append((int.from_bytes(head[_SECTOR + 32 : _SECTOR + 40], "little") + 1) * _SECTOR)
    else:
        ends = [sum(struct.unpack_from("<II", head, 446 + 16 * n + 8)) * _SECTOR for n in range(4)]
        last = -(-max(ends) // _MIB) * _MIB  # Azure's disks are of whole MiB
        candidates += [last, last + _MIB]
    for offset in candidates:
        yield from (at for at in (offset, offset - FOOTER_SIZE) if 0 < at <= size - 2 * FOOTER_SIZE)
