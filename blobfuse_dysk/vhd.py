"""The footer that makes a page blob a fixed VHD: 512 bytes behind (or as the last page of) the disk's content.

Azure's unmanaged disks and images are fixed VHDs of a whole number of MiB plus this footer, so a disk of size S is a
blob of S + 512 bytes whose footer says S (`Layout.BEHIND`). The original dysk put the footer *inside* the size asked
for, and wrote that whole size into it (`Layout.INSIDE`). Both are recognised; the device ends where the footer begins.

Source: "Virtual Hard Disk Image Format Specification", Microsoft, version 1.0, 2006: "Hard Disk Footer Format" and
the appendices "Computing the Checksum" and "CHS Calculation". All numbers are big-endian.
"""

from __future__ import annotations

import enum
import struct
import time
import uuid as uuid_module
from dataclasses import dataclass
from uuid import UUID

from blobfuse_dysk.errors import UsageError

__all__ = ["FOOTER_SIZE", "Layout", "VhdFooter", "footer", "geometry", "parse_footer"]

FOOTER_SIZE = 512  # bytes
_EPOCH_2000 = 946_684_800  # 2000-01-01T00:00:00Z in Unix time: where VHD time stamps start
_COOKIE = b"conectix"
_FEATURES_RESERVED = 2  # "this bit must always be set to 1"
_VERSION = 0x0001_0000
_NO_NEXT_STRUCTURE = 0xFFFF_FFFF_FFFF_FFFF  # the data offset of a fixed disk
_TYPE_FIXED = 2
# Readers that distrust the size field take the one computed from the geometry, which is up to 8 MiB smaller, unless
# the creator is one whose sizes they trust (QEMU, block/vpc.c: `win `, Hyper-V). So this is what we say we are.
_CREATOR = b"win "
_CREATOR_VERSION = 0x000A_0000
_CREATOR_OS = b"Wi2k"
# cookie, features, version, data offset, time, creator, its version, its system, original and current size,
# cylinders, heads, sectors per track, type, checksum, identifier, saved state
_FOOTER = struct.Struct(">8sIIQI4sI4sQQHBBII16sB427x")
_CHECKSUM_AT = 64


class Layout(enum.Enum):
    """Where the footer is, seen from the size that it gives."""

    BEHIND = "behind"  # the blob is 512 bytes larger than the size: Azure, Hyper-V, `dyskctl create --vhd`
    INSIDE = "inside"  # the blob is as large as the size: the original dysk


@dataclass(frozen=True, slots=True)
class VhdFooter:
    """What a valid footer of a fixed disk says. Sizes in bytes; created in Unix time, seconds."""

    current_size: int
    original_size: int
    created: int
    creator: str
    uuid: UUID

    def layout(self, blob_size: int) -> Layout | None:
        """Where this footer stands in a blob of `blob_size` bytes; None: it does not belong to a blob of that size.

        A blob that was resized keeps an old footer somewhere in its content, and a disk may hold a VHD file in its
        last page: neither is hidden from the device.
        """
        if self.current_size == blob_size - FOOTER_SIZE:
            return Layout.BEHIND
        if self.current_size == blob_size:
            return Layout.INSIDE
        return None


def footer(size: int, *, uuid: UUID | None = None, created: float | None = None) -> bytes:
    """Return the 512 bytes that end a fixed VHD which says that it is `size` bytes large.

    created: Unix time, now if None. Raises UsageError if size is not a positive multiple of 512.
    """
    if size <= 0 or size % FOOTER_SIZE:
        raise UsageError(f"VHD size of {size} bytes", remedy="use a positive multiple of 512 bytes")
    seconds = max(0, int(time.time() if created is None else created) - _EPOCH_2000)
    cylinders, heads, sectors = geometry(size)
    identifier = uuid or uuid_module.uuid4()
    data = bytearray(
        _FOOTER.pack(
            _COOKIE,
            _FEATURES_RESERVED,
            _VERSION,
            _NO_NEXT_STRUCTURE,
            seconds,
            _CREATOR,
            _CREATOR_VERSION,
            _CREATOR_OS,
            size,
            size,
            cylinders,
            heads,
            sectors,
            _TYPE_FIXED,
            0,
            identifier.bytes,
            0,
        )
    )
    struct.pack_into(">I", data, _CHECKSUM_AT, _checksum(data))
    return bytes(data)


def parse_footer(data: bytes | bytearray | memoryview) -> VhdFooter | None:
    """Read a blob's last 512 bytes; None unless they are the footer of a fixed VHD with a right checksum."""
    if len(data) != FOOTER_SIZE or bytes(data[:8]) != _COOKIE:
        return None
    fields = _FOOTER.unpack(data)
    version, offset, seconds, creator = fields[2:6]
    original, current = fields[8:10]
    disk_type, checksum, identifier = fields[13:16]
    if checksum != _checksum(data) or disk_type != _TYPE_FIXED or offset != _NO_NEXT_STRUCTURE:
        return None
    if version >> 16 != _VERSION >> 16 or current <= 0 or current % FOOTER_SIZE:
        return None
    return VhdFooter(
        current_size=current,
        original_size=original,
        created=seconds + _EPOCH_2000,
        creator=creator.decode("ascii", "replace").rstrip("\0 "),
        uuid=UUID(bytes=identifier),
    )


def geometry(size: int) -> tuple[int, int, int]:
    """Return (cylinders, heads, sectors per track) for a disk of `size` bytes, as the specification computes them."""
    total = min(size // 512, 65535 * 16 * 255)
    if total >= 65535 * 16 * 63:
        sectors, heads = 255, 16
        return total // sectors // heads, heads, sectors
    sectors = 17
    tracks = total // sectors
    heads = max(4, (tracks + 1023) // 1024)
    if tracks >= heads * 1024 or heads > 16:
        sectors, heads = 31, 16
        tracks = total // sectors
    if tracks >= heads * 1024:
        sectors, heads = 63, 16
        tracks = total // sectors
    return tracks // heads, heads, sectors


def _checksum(data: bytes | bytearray | memoryview) -> int:
    """One's complement of the sum of all bytes but those of the checksum itself."""
    total = sum(data) - sum(data[_CHECKSUM_AT : _CHECKSUM_AT + 4])
    return ~total & 0xFFFF_FFFF
