"""Creates disks: page blobs of the size asked for, with the footer of a VHD where that is wanted."""

from __future__ import annotations

from blobfuse_dysk import attachment
from blobfuse_dysk.attachment import Attachment
from blobfuse_dysk.azure import management
from blobfuse_dysk.azure.credential import resolve
from blobfuse_dysk.disk import MAX_SIZE, DiskAddress
from blobfuse_dysk.errors import NotFoundError, UsageError
from blobfuse_dysk.options import AttachOptions
from blobfuse_dysk.vhd import FOOTER_SIZE, footer

__all__ = ["attach_or_create", "create_disk", "create_within"]

_MIB = 1 << 20


def create_disk(disk: DiskAddress, size: int, options: AttachOptions, *, vhd: bool = False) -> int:
    """Create a disk of `size` bytes, a multiple of 512; a blob that exists is refused and not touched.

    Returns the blob's size, which with `vhd` is 512 bytes more: the footer lies behind the disk, so that a virtual
    machine of Azure finds one of this size. Its VHDs are whole MiB. options: how to reach the account.
    Raises DyskError.
    """
    if disk.snapshot:
        raise UsageError("a snapshot cannot be created this way", remedy="leave ?snapshot= out")
    blob_size = size
    if vhd:
        if size % _MIB:
            up = -(-size // _MIB)
            raise UsageError("a VHD for Azure is a whole number of MiB", remedy=f"use --size {up}MiB")
        blob_size = size + FOOTER_SIZE
        if blob_size > MAX_SIZE:
            raise UsageError("a VHD has a footer of 512 bytes, so 8 TiB is too large", remedy="use --size 8191GiB")
    _create(disk, blob_size, footer(size) if vhd else None, options)
    return blob_size


def create_within(disk: DiskAddress, blob_size: int, options: AttachOptions, *, vhd: bool) -> None:
    """Create a blob of this size as the original dysk does: its last 512 bytes are the footer. Otherwise the same."""
    _create(disk, blob_size, footer(blob_size) if vhd else None, options)


def attach_or_create(disk: DiskAddress, size: int, options: AttachOptions) -> Attachment:
    """Attach a disk, which is created first if it does not exist. One that exists is attached as it is, of any size."""
    try:
        return attachment.attach(disk, options)
    except NotFoundError:
        create_disk(disk, size, options, vhd=options.vhd == "yes")
    return attachment.attach(disk, options)


def _create(disk: DiskAddress, blob_size: int, last_page: bytes | None, options: AttachOptions) -> None:
    address, credential = resolve.resolve(disk, options)
    address.refuse_secondary("")
    management.create_disk(address, credential, blob_size, last_page)
