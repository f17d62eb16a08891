"""How much of a blob the device shows, and whether there is anything on it."""

from __future__ import annotations

from dataclasses import dataclass

from blobfuse_dysk.errors import UsageError
from blobfuse_dysk.options import AttachOptions
from blobfuse_dysk.store.contract import Store
from blobfuse_dysk.vhd import FOOTER_SIZE, parse_footer

__all__ = ["Geometry", "is_blank", "measure"]

_HEAD = 64 << 20  # bytes; file systems and partition tables write here, so one short list tells of most used disks


@dataclass(frozen=True, slots=True)
class Geometry:
    """size: of the device, in bytes. blob_size: of the blob. vhd: a VHD footer is hidden at the blob's end."""

    size: int
    blob_size: int
    vhd: bool


async def measure(store: Store, options: AttachOptions) -> Geometry:
    """Look for a VHD footer and check the size against the sector size. Raises UsageError or StoreError."""
    blob_size = store.size
    vhd = False
    if options.vhd != "no" and blob_size >= FOOTER_SIZE:
        footer = parse_footer(await store.read(blob_size - FOOTER_SIZE, FOOTER_SIZE))
        vhd = footer is not None and (options.vhd == "yes" or footer.layout(blob_size) is not None)
    if options.vhd == "yes" and not vhd:
        raise UsageError("the blob does not end with a VHD footer", remedy="attach it with --vhd auto or --vhd no")
    size = blob_size - FOOTER_SIZE if vhd else blob_size
    if size <= 0:
        raise UsageError(f"the blob has {blob_size} bytes, which leaves no room for a disk", remedy="use a larger blob")
    if size % options.sector_size:
        raise UsageError(
            f"the disk has {size} bytes, which is no multiple of the sector size {options.sector_size}",
            remedy="attach it with --sector-size 512",
        )
    return Geometry(size, blob_size, vhd)


async def is_blank(store: Store, geometry: Geometry) -> bool:
    """Whether no page of the device is allocated, by the service's own page map. Raises StoreError."""
    if await store.extents(0, min(_HEAD, geometry.size)):
        return False
    return not await store.extents(0, geometry.size)
