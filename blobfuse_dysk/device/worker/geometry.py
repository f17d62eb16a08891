"""How much of a blob the device shows, and whether there is anything on it."""

from __future__ import annotations

from dataclasses import dataclass

from blobfuse_dysk.errors import Kind, StoreError, UsageError
from blobfuse_dysk.options import AttachOptions
from blobfuse_dysk.store.contract import Extent, Store
from blobfuse_dysk.store.layers.sparse import is_zero
from blobfuse_dysk.vhd import FOOTER_SIZE, parse_footer

__all__ = ["Geometry", "is_blank", "is_empty", "measure"]

_HEAD = 64 << 20  # bytes; file systems and partition tables write here, so one short list tells of most used disks
_END = 1 << 20  # bytes that are read at each end of a disk that seems blank
_PIECE, _PIECES = 64 << 10, 16  # bytes, and how many, in between


@dataclass(frozen=True, slots=True)
class Geometry:
    """size: of the device, in bytes. blob_size: of the blob. vhd: a VHD footer is hidden at the blob's end."""

    size: int
    blob_size: int
    vhd: bool


async def measure(store: Store, options: AttachOptions, last_page: bytes | None = None) -> Geometry:
    """Look for a VHD footer and check the size against the sector size. Raises UsageError or StoreError.

    last_page: the blob's last 512 bytes, if they are known.
    """
    blob_size = store.size
    vhd = False
    if options.vhd != "no" and blob_size >= FOOTER_SIZE:
        if last_page is None:
            last_page = bytes(await store.read(blob_size - FOOTER_SIZE, FOOTER_SIZE))
        footer = parse_footer(last_page)
        vhd = footer is not None and (options.vhd == "yes" or footer.layout(blob_size) is not None)
    if options.vhd == "yes" and not vhd:
        raise UsageError("the blob does not end with a VHD footer", remedy="attach it with vhd=auto or vhd=no")
    size = blob_size - FOOTER_SIZE if vhd else blob_size
    if size <= 0:
        raise UsageError(f"the blob has {blob_size} bytes, which leaves no room for a disk", remedy="use a larger blob")
    if size % options.sector_size:
        raise UsageError(
            f"the disk has {size} bytes, which is no multiple of the sector size {options.sector_size}",
            remedy="attach it with sector-size=512",
        )
    return Geometry(size, blob_size, vhd)


async def is_blank(store: Store, beneath: Store, geometry: Geometry) -> bool:
    """Whether nothing is on the device; see is_empty."""
    return await is_empty(store, beneath, 0, geometry.size)


async def is_empty(store: Store, beneath: Store, start: int, end: int) -> bool:
    """Whether nothing is there: no page is allocated by the service's page map, and none has a byte set.

    beneath: the same disk, read without a map. The map is one answer of many that were believed; so before a disk is
    formatted, or cut off, the places are read where file systems, partition tables and volume managers keep their first
    blocks and the copies of them. Raises StoreError: also if the two disagree.
    """
    if await store.extents(start, min(_HEAD, end - start)):
        return False
    if await store.extents(start, end - start):
        return False
    for offset, length in _samples(start, end):
        data = await beneath.read(offset, length)
        if not is_zero(data):
            at = offset + length - len(bytes(data).lstrip(b"\0"))
            raise StoreError(
                f"the page map of the disk shows no page of it, but there is data at {at}",
                Kind.CORRUPT,
                remedy="nothing was changed; find out what is between this machine and the service, then try again",
            )
    return True


def _samples(start: int, end: int) -> list[Extent]:
    """What is read of what seems blank: its ends, the known places of copies, and pieces at equal distances.

    Copies: ext4's second block group at 128 MiB, btrfs's at 64 MiB and 256 GiB, xfs's groups at quarters of the disk.
    """
    size = end - start
    ends = [(start, min(_END, size)), (max(start, end - _END), min(_END, size))]
    pieces = (start + size // _PIECES * index // _PIECE * _PIECE for index in range(_PIECES))
    places = {64 << 20, 128 << 20, 256 << 30, *pieces}
    return ends + [(at, _PIECE) for at in sorted(places) if at >= start + _END and at + _PIECE <= end - _END]
