"""Making a disk larger while it is in use: the blob first, then a VHD's footer, then what the device shows.

The order is such that whatever ends the worker in between leaves a disk that works, with the old size, and growing can
be asked for again:

1. The store grows (point 8 of its contract), which has the service resize the blob.
2. A VHD's footer says the size and is the blob's last page. So a new one is written behind the new end; only when that
   is durable, everything between the old end of the device and the new one is made zeros, the old footer with it.
3. The holder is told the new size, so that each later worker begins with it. What the worker said last is heard before
   its successor is briefed.
4. The kernel is told. Only now can anybody write behind the old end.

Until the new footer is durable another attachment would take the blob for a disk without one that ends where the blob
does: nothing of its content is lost or hidden. Whoever has the device on a loop device tells that driver last
(kernel/loop.py).
"""

from __future__ import annotations

from dataclasses import replace

from blobfuse_dysk.device.worker.geometry import Geometry
from blobfuse_dysk.disk import MAX_SIZE
from blobfuse_dysk.errors import UsageError
from blobfuse_dysk.store.contract import Store
from blobfuse_dysk.vhd import FOOTER_SIZE, Layout, VhdFooter, footer, parse_footer

__all__ = ["grow"]

UNIT = 4096  # bytes; a whole number of sectors, whatever their size


async def grow(store: Store, geometry: Geometry, size: int) -> Geometry:
    """Make the device `size` bytes large; the result is for the holder and the kernel. One at a time.

    A device of just this size is left as it is. Raises UsageError (not larger, no whole pages, too large, a footer that
    is not there any more) or StoreError; then the device stays as it was.
    """
    if size < geometry.size:
        raise UsageError(
            f"the disk has {geometry.size} bytes, and {size} are fewer", remedy="a disk can only become larger"
        )
    blob_size = geometry.blob_size + size - geometry.size
    if size % UNIT or blob_size > MAX_SIZE:
        raise UsageError(f"a disk cannot have {size} bytes", remedy="use a multiple of 4096 bytes, at most 8 TiB")
    if size > geometry.size:
        found = await _find_footer(store, geometry) if geometry.vhd else None
        await store.grow(blob_size)
        if found is not None:
            await _move_footer(store, found, geometry, size)
    return replace(geometry, size=size, blob_size=blob_size)


async def _find_footer(store: Store, geometry: Geometry) -> tuple[VhdFooter, Layout]:
    """The footer, where it was; or at the blob's end, where a worker that died while growing left the new one."""
    for end in (geometry.blob_size, store.size):
        parsed = parse_footer(await store.read(end - FOOTER_SIZE, FOOTER_SIZE))
        if parsed is not None:
            return parsed, parsed.layout(end) or Layout.BEHIND
    raise UsageError("the VHD footer is not there any more", remedy="detach the disk, then attach it with vhd=no")


async def _move_footer(store: Store, found: tuple[VhdFooter, Layout], geometry: Geometry, size: int) -> None:
    """Write it behind the new end of the device, then have nothing but zeros between the old end and the new one."""
    old, layout = found
    said = size if layout is Layout.BEHIND else size + FOOTER_SIZE
    await store.write(size, footer(said, uuid=old.uuid, created=old.created))
    await store.flush()
    await store.zero(geometry.size, size - geometry.size)
    await store.flush()
