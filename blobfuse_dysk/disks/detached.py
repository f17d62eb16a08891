"""Another size for a disk that is attached nowhere: its blob, and the footer of a VHD.

The disk is taken as by an attach, lease and epoch, for as long as it takes, and given back (store/open.py). So one that
a node has is refused, with its name; nobody writes meanwhile; and no late copy of our requests can do anything once
another has the disk, since that changes the ETag which each of them depends on.

Larger: as in use (device/worker/growth.py); a death at any moment leaves a disk that can be read, and the same command
finishes it. Of a VHD the blob may end behind its old footer then, and shows all of it: that footer is the last page of
the blob that is allocated, and tells just the size in front of it, so it is found again. One that came to lie in the
middle, as the new one was there already, is known by having the same identifier.

Smaller: only what is proven empty goes, by the page map and by bytes that are read without it, as before a disk is
formatted. A VHD's new footer comes first, and the blob is cut off behind it. What is cut off reads as zeros before, and
after it grew again: nothing is lost but the place. The request carries the lease and the ETag of a look that showed our
epoch; it was proven under the same lease, under which nobody else can have written.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

import trio

from blobfuse_dysk.azure.blob import BlobClient
from blobfuse_dysk.azure.wire import Condition
from blobfuse_dysk.device.worker.geometry import Geometry, is_empty, measure
from blobfuse_dysk.device.worker.growth import UNIT, grow
from blobfuse_dysk.disk import DiskAddress, format_size
from blobfuse_dysk.errors import Kind, LeasedError, ServiceError, StoreError, TransportError, UsageError
from blobfuse_dysk.options import AttachOptions
from blobfuse_dysk.store.blobapi import BlobApi
from blobfuse_dysk.store.contract import Store
from blobfuse_dysk.store.lease.attempts import Attempts
from blobfuse_dysk.store.open import open_stack
from blobfuse_dysk.store.serviceerrors import to_store_error
from blobfuse_dysk.store.stack import Stack, StackOptions
from blobfuse_dysk.vhd import FOOTER_SIZE, Layout, VhdFooter, footer, parse_footer

if TYPE_CHECKING:
    from blobfuse_dysk.azure.credential.credential import Credential

__all__ = ["resize_detached"]

_MIB = 1 << 20
_LEASE_S = 30.0  # what a death in the middle leaves to wait for
_CALL_S = 60.0  # for each call, with what is tried again
_TIMEOUT_S = 10.0  # of one request
_LOOKS = 5


async def resize_detached(
    address: DiskAddress,
    credential: Credential,
    wanted: Callable[[Geometry], int],
    *,
    node: str,
    force: bool,
    client: BlobApi | None = None,
    random: Random | None = None,
) -> tuple[int, int]:
    """The size of the device before and after, in bytes.

    wanted: what it is to be, by what it is; it may raise. node: who we are, for others to read. force: it may become
    smaller. Raises LeasedError if a node has the disk, UsageError if it cannot have the size, or another DyskError;
    then it has the old size or the new one, and can be asked for again. client, random: for tests.
    """
    client = client or BlobClient(address, credential, checksum=True)
    options = StackOptions(node=node, lease_s=_LEASE_S, io_timeout_s=_CALL_S)
    try:
        async with open_stack(address, credential, options, client=client, random=random) as stack:
            try:
                return await _resize(stack, client, wanted, force=force)
            finally:
                with trio.CancelScope(shield=True):  # within seconds
                    await stack.release()
    except LeasedError as error:
        where = f"on {error.holder}" if error.holder else "where it is attached"
        raise LeasedError(
            f"{error}, so it cannot be resized from here",
            holder=error.holder,
            since=error.since,
            endless=error.endless,
            remedy=f"run dyskctl resize {where}, or detach it there first",
        ) from error


async def _resize(stack: Stack, client: BlobApi, wanted: Callable[[Geometry], int], *, force: bool) -> tuple[int, int]:
    store: Store = stack.store
    geometry = await measure(store, AttachOptions())
    if not geometry.vhd:
        geometry = await _interrupted(store) or geometry
    size, before = wanted(geometry), geometry.size
    if store.size > geometry.blob_size and size + FOOTER_SIZE < store.size:
        least = store.size - FOOTER_SIZE
        raise UsageError(
            f"the disk was being made {least} bytes large, which was interrupted",
            remedy=f"resize it to {format_size(least)} ({least} bytes) or more",
        )
    if size > before:
        await grow(store, geometry, size)
    elif size < before:
        if not force:
            raise UsageError(
                f"the disk has {before} bytes, and {size} are fewer",
                remedy="make what is on it smaller first, then add --force; only what is empty is cut off",
            )
        await _shrink(stack, client, geometry, size)
    elif geometry.vhd:
        await _clear_old_footer(store, geometry)
    return before, size


async def _interrupted(store: Store) -> Geometry | None:
    """The disk as it was before a growth that did not come to the new footer; None if there was none."""
    last = await _last_footer(store, store.size)
    if last is None or store.size % _MIB != FOOTER_SIZE:
        return None
    end, found = last
    return Geometry(end - FOOTER_SIZE, end, True) if found.layout(end) else None


async def _last_footer(store: Store, within: int) -> tuple[int, VhdFooter] | None:
    """Where the last allocated page of the first `within` bytes ends, and what footer it is; None if it is none."""
    extents = await store.extents(0, within)
    if not extents:
        return None
    end = sum(extents[-1])
    found = parse_footer(await store.read(end - FOOTER_SIZE, FOOTER_SIZE))
    return (end, found) if found else None


async def _clear_old_footer(store: Store, geometry: Geometry) -> None:
    """Finish a growth that was interrupted when only the old footer was left to go."""
    last = await _last_footer(store, geometry.size)
    if last is not None and last[1].uuid == (await _own_footer(store, geometry)).uuid:
        await store.zero(last[0] - FOOTER_SIZE, FOOTER_SIZE)
        await store.flush()


async def _own_footer(store: Store, geometry: Geometry) -> VhdFooter:
    found = parse_footer(await store.read(geometry.size, FOOTER_SIZE))
    if found is None:
        raise UsageError("the VHD footer is not there any more", remedy="see what is on the disk before resizing it")
    return found


async def _shrink(stack: Stack, client: BlobApi, geometry: Geometry, size: int) -> None:
    """Cut off what is behind `size`, if it is empty. Raises UsageError if it is not."""
    if size <= 0 or size % UNIT:
        raise UsageError(f"a disk cannot have {size} bytes", remedy="use a multiple of 4096 bytes, and at least that")
    store: Store = stack.store
    blob_size = size
    if geometry.vhd:
        blob_size = size + FOOTER_SIZE
        own = await _own_footer(store, geometry)
        said = size if own.layout(geometry.blob_size) is not Layout.INSIDE else blob_size
        new = footer(said, uuid=own.uuid, created=own.created)
        there = bytes(await store.read(size, FOOTER_SIZE)) == new  # by one that was interrupted
        await _prove_empty(stack, size + FOOTER_SIZE if there else size, geometry.size)
        await store.write(size, new)
        await store.flush()
    else:
        await _prove_empty(stack, size, geometry.size)
    await _cut_off(stack, client, blob_size)


async def _prove_empty(stack: Stack, start: int, end: int) -> None:
    if start >= end or await is_empty(stack.store, stack.beneath_map, start, end):
        return
    used = await stack.store.extents(start, end - start)
    least = -(-sum(used[-1]) // _MIB)
    raise UsageError(
        f"the disk has data behind {start}, up to {sum(used[-1])}; nothing was cut off",
        remedy=f"make what is on it smaller first; as it is, {least}MiB is the least",
    )


async def _cut_off(stack: Stack, client: BlobApi, blob_size: int) -> None:
    """Set Blob Properties with a smaller size; again if the blob changed after the look, or the answer was lost."""
    what = f"shrinking to {blob_size} bytes"
    again = Attempts(Random(), _CALL_S)

    async def cut() -> None:
        try:
            blob = await client.properties(timeout_s=_TIMEOUT_S)
        except (ServiceError, TransportError) as error:
            raise to_store_error(error, what, modifies=False) from error
        if blob.sequence_number != stack.epoch or stack.lease_in_use is None:
            raise StoreError(f"{what}: the disk was taken away meanwhile", Kind.FENCED)
        if blob.size == blob_size:
            return
        lease_id, condition = stack.lease_in_use, Condition(if_match=blob.etag)
        try:
            await client.resize(blob_size, lease_id=lease_id, condition=condition, timeout_s=_TIMEOUT_S)
        except (ServiceError, TransportError) as error:
            raise to_store_error(error, what, modifies=True, conditional=True) from error

    for left in reversed(range(_LOOKS)):
        try:
            await again(cut)
            break
        except StoreError as error:
            if error.kind is not Kind.CHANGED or not left:
                raise
