"""Creates disks: page blobs of the size asked for, with the footer of a VHD where that is wanted."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from blobfuse_dysk import attachment
from blobfuse_dysk.attachment import Attachment
from blobfuse_dysk.azure import management
from blobfuse_dysk.azure.credential import resolve
from blobfuse_dysk.azure.tiers import check_tier
from blobfuse_dysk.disk import MAX_SIZE, DiskAddress, format_size
from blobfuse_dysk.disks.labels import check_metadata, check_tags
from blobfuse_dysk.errors import NotFoundError, UsageError
from blobfuse_dysk.options import AttachOptions
from blobfuse_dysk.store.contract import PAGE
from blobfuse_dysk.vhd import FOOTER_SIZE, footer

__all__ = ["attach_or_create", "check_size", "create_disk", "create_within"]

_MIB = 1 << 20
_NOTHING: Mapping[str, str] = MappingProxyType({})


def create_disk(
    disk: DiskAddress,
    size: int,
    options: AttachOptions,
    *,
    vhd: bool = False,
    tier: str | None = None,
    metadata: Mapping[str, str] = _NOTHING,
    tags: Mapping[str, str] = _NOTHING,
) -> int:
    """Create a disk of `size` bytes, a multiple of 512; a blob that exists is refused and not touched.

    Returns the blob's size, which with `vhd` is 512 bytes more: the footer lies behind the disk, so that a virtual
    machine of Azure finds one of this size. Its VHDs are whole MiB. options: how to reach the account. tier: of a
    Premium account's page blobs. metadata, tags: what the blob has from its beginning; tags can be searched for.
    Raises DyskError; then there is no blob, unless the answer to the request that makes it was lost.
    """
    if disk.snapshot:
        raise UsageError("a snapshot cannot be created this way", remedy="leave ?snapshot= out")
    blob_size = check_size(size, vhd=vhd)
    tier = check_tier(tier, blob_size) if tier is not None else None
    check_metadata(metadata)
    check_tags(tags)
    address, credential = resolve.resolve(disk, options)
    address.refuse_secondary("")
    last_page = footer(size) if vhd else None
    management.create_disk(address, credential, blob_size, last_page, tier=tier, metadata=metadata, tags=tags)
    return blob_size


def check_size(size: int, *, vhd: bool) -> int:
    """The size of the blob of a disk of `size` bytes. UsageError if there is no such disk."""
    if size <= 0 or size % PAGE:
        raise UsageError(f"a disk cannot have {size} bytes", remedy="use a multiple of 512 bytes, at most 8 TiB")
    if vhd and size % _MIB:
        raise UsageError("a VHD for Azure is a whole number of MiB", remedy=f"use --size {-(-size // _MIB)}MiB")
    blob_size = size + FOOTER_SIZE if vhd else size
    if blob_size > MAX_SIZE:
        if size == MAX_SIZE:
            raise UsageError("a VHD has a footer of 512 bytes, so 8 TiB is too large", remedy="use --size 8191GiB")
        raise UsageError(f"a disk of {format_size(size)} is too large", remedy="a page blob has 8 TiB at most")
    return blob_size


def create_within(disk: DiskAddress, blob_size: int, options: AttachOptions, *, vhd: bool) -> None:
    """Create a blob of this size as the original dysk does: its last 512 bytes are the footer. Otherwise the same."""
    address, credential = resolve.resolve(disk, options)
    address.refuse_secondary("")
    management.create_disk(address, credential, blob_size, footer(blob_size) if vhd else None)


def attach_or_create(disk: DiskAddress, size: int, options: AttachOptions) -> Attachment:
    """Attach a disk, which is created first if it does not exist. One that exists is attached as it is, of any size."""
    try:
        return attachment.attach(disk, options)
    except NotFoundError:
        create_disk(disk, size, options, vhd=options.vhd == "yes")
    return attachment.attach(disk, options)
