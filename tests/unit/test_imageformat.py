"""What is recognised by the first and last bytes of a disk, and what is said about it."""

from __future__ import annotations

import struct

import pytest

from blobfuse_dysk.imageformat import HEAD_SIZE, Found, inspect
from blobfuse_dysk.vhd import FOOTER_SIZE, _checksum, footer

MIB = 1 << 20
SIZE = 8 * MIB


def disk(size: int = SIZE, **at: bytes) -> bytearray:
    """A disk of zeros with bytes at some offsets: `_0`, `_512`, negative ones from the end as `end_512`."""
    data = bytearray(size)
    for name, content in at.items():
        side, _, number = name.rpartition("_")
        offset = size - int(number) if side else int(number)
        data[offset : offset + len(content)] = content
    return data


def look(data: bytearray, *, limit: int = 6) -> Found | None:
    """inspect(), which may ask for little, and for nothing beyond the disk."""
    asked = []

    def read(offset: int, length: int) -> bytes:
        assert offset >= 0 and 0 < length <= HEAD_SIZE and offset + length <= len(data)
        asked.append(offset)
        assert len(asked) <= limit
        return bytes(data[offset : offset + length])

    return inspect(read, len(data))


def dynamic(kind: int) -> bytes:
    """The footer of a VHD of this type; a dynamic one has a copy of it at its beginning."""
    data = bytearray(footer(SIZE))
    struct.pack_into(">I", data, 60, kind)
    struct.pack_into(">I", data, 64, _checksum(data))
    return bytes(data)


IMAGES = {
    "a dynamic VHD": (disk(_0=dynamic(3), end_512=dynamic(3)), "vpc"),
    "a differencing VHD": (disk(end_512=dynamic(4)), "vpc"),
    "a VHDX image": (disk(_0=b"vhdxfileQ\0E\0"), "vhdx"),
    "a qcow image": (disk(_0=b"QFI\xfb\0\0\0\1"), "qcow"),
    "a qcow2 image": (disk(_0=b"QFI\xfb\0\0\0\3"), "qcow2"),
    "a VMDK image": (disk(_0=b"KDMV\1\0\0\0"), "vmdk"),
    "a VDI image": (disk(_0=b"<<< Oracle VM VirtualBox Disk Image >>>", _64=b"\x7f\x10\xda\xbe"), "vdi"),
    "a QED image": (disk(_0=b"QED\0"), "qed"),
    "a Parallels image": (disk(_0=b"WithoutFreeSpace"), "parallels"),
    "a DMG image": (disk(end_512=b"koly\0\0\0\4"), "dmg"),
}


@pytest.mark.parametrize("what", IMAGES)
def test_an_image_of_another_format_is_named_with_what_converts_it(what: str) -> None:
    data, name = IMAGES[what]
    found = look(data)
    assert found and (found.kind, found.what) == ("image", what)
    assert found.remedy.startswith(f"qemu-img convert -f {name} -O raw {{}} ")


def test_a_packed_image_is_to_be_unpacked() -> None:
    found = look(disk(_0=b"\x1f\x8b\x08\0"))
    assert found == Found("image", "a gzip file", "gunzip it, and upload what comes out")


def mbr(end: int) -> bytes:
    """A partition table with one partition that ends at this byte."""
    table = bytearray(512)
    struct.pack_into("<B3xB3xII", table, 446, 0, 0x83, 2048, end // 512 - 2048)
    table[510:] = b"\x55\xaa"
    return bytes(table)


def gpt(size: int) -> bytes:
    """A protective MBR, and the header of a GPT whose backup is at the end of `size` bytes."""
    header = bytearray(512)
    header[:8] = b"EFI PART"
    struct.pack_into("<QQ", header, 24, 1, size // 512 - 1)
    return mbr(size) + bytes(header)


@pytest.mark.parametrize(
    ("data", "what", "helps"),
    [
        (disk(end_512=footer(SIZE)[:400] + b"x" * 112), "a VHD with a damaged footer", "qemu-img convert -f raw"),
        (disk(end_512=footer(64 * MIB)), "a VHD whose footer is of a disk of 64MiB, in a blob of 8MiB", "qemu-img"),
        (disk(end_511=footer(SIZE)[:511]), "a VHD with a footer of 511 bytes", "qemu-img convert -f raw"),
        (disk(_0=gpt(4 * MIB), _4194304=footer(4 * MIB)), "footer is at 4194304", "resize the blob to 4194816"),
        (disk(_0=mbr(3 * MIB + 512), _4194304=footer(4 * MIB)), "footer is at 4194304", "resize the blob to"),
        (disk(_0=mbr(4 * MIB), _5242880=footer(5 * MIB)), "footer is at 5242880", "resize the blob to 5243392"),
    ],
)
def test_a_footer_that_does_not_fit_is_named(data: bytearray, what: str, helps: str) -> None:
    found = look(data)
    assert found and found.kind == "footer" and what in found.what and helps in found.remedy


@pytest.mark.parametrize(
    "data",
    [
        disk(),
        disk(size=512),
        disk(size=SIZE + FOOTER_SIZE, end_512=footer(SIZE)),  # a footer that fits, with vhd=no
        disk(end_512=footer(SIZE)),
        disk(_0=mbr(4 * MIB)),
        disk(_0=mbr(SIZE)),
        disk(_0=gpt(SIZE)),
        disk(_0=gpt(64 * MIB)),
        disk(_0=b"\xff" * HEAD_SIZE, end_512=b"\xff" * 512),
        disk(_1024=b"vhdxfile"),
    ],
)
def test_an_ordinary_disk_is_nothing_of_that(data: bytearray) -> None:
    assert look(data) is None


@pytest.mark.parametrize(
    ("data", "what", "opens"),
    [
        (disk(_0=b"LUKS\xba\xbe\0\2"), "a LUKS container", "cryptsetup open {} NAME"),
        (disk(_0=b"\xeb\x58\x90-FVE-FS-"), "a BitLocker volume", "cryptsetup bitlkOpen {} NAME"),
        (disk(_4086=b"SWAPSPACE2"), "swap space", "swapon {}"),
        (disk(_512=b"LABELONE" + bytes(16) + b"LVM2 001"), "an LVM physical volume", "vgchange -ay"),
        (disk(_4096=b"\xfc\x4e\x2b\xa9"), "a member of an md RAID", "mdadm --assemble"),
        (disk(_4120=bytes.fromhex("c68573f64e1a45ca8265f57f48ba6d81")), "a bcache device", "echo {} > "),
    ],
)
def test_what_has_to_be_opened_first_is_named_with_what_opens_it(data: bytearray, what: str, opens: str) -> None:
    found = look(data)
    assert found and (found.kind, found.what) == ("container", what) and found.remedy.startswith(opens)
