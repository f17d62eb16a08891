"""What the service says of disks: those of a container, the properties of one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from blobfuse_dysk.azure import management
from blobfuse_dysk.azure.credential import resolve
from blobfuse_dysk.azure.credential.credential import Credential
from blobfuse_dysk.azure.explain import holder_in, not_a_page_blob
from blobfuse_dysk.azure.management import DiskRow
from blobfuse_dysk.azure.marks import is_unfinished
from blobfuse_dysk.azure.wire import BlobProperties
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.errors import UsageError
from blobfuse_dysk.options import AttachOptions
from blobfuse_dysk.vhd import FOOTER_SIZE, parse_footer

if TYPE_CHECKING:
    from blobfuse_dysk.azure.blob import BlobClient

__all__ = ["Disk", "blob_properties", "blob_size", "get_disk", "list_disks", "list_disks_page"]

T = TypeVar("T")
_TIMEOUT_S = 10.0
_MOST_LISTED = 5000


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk as the service tells of it.

    size: of the device; blob_size: with a VHD's footer. vhd: None of a blob that is too small for one. metadata: names
    as they are spelled. tier: None outside of Premium accounts. lease_state: available, leased, expired, breaking,
    broken; '' of a snapshot. holder, since: from the metadata; whoever that names may be gone if it is not leased.
    created: as the service writes it. copy_status: of the last copy to it, None if none is known. incomplete: such a
    copy has not been completed, so it cannot be attached. allocated: bytes in allocated pages, None if not asked for.
    """

    disk: DiskAddress
    size: int
    blob_size: int
    vhd: bool | None
    metadata: Mapping[str, str]
    tier: str | None
    lease_state: str
    holder: str | None
    since: str | None
    snapshot: str | None
    created: str
    etag: str
    copy_status: str | None
    incomplete: bool
    allocated: int | None


def get_disk(disk: DiskAddress, options: AttachOptions, *, allocated: bool = False) -> Disk:
    """Look at one disk, or at a snapshot of one; takes the right to read. Raises DyskError, also if it can be no disk.

    allocated: with what is allocated of it, for which its page map is read.
    """
    address, credential = resolve.resolve(disk, options)
    found = _ask(address, credential, partial(_look, disk))
    if not allocated:
        return found
    from blobfuse_dysk.disks.ranges import blob_ranges

    total = sum(length for _, length, _ in blob_ranges(address, credential, 0, found.blob_size))
    return replace(found, allocated=total)


async def _look(disk: DiskAddress, client: BlobClient) -> Disk:
    found = await client.properties(timeout_s=_TIMEOUT_S)
    if found.blob_type != "PageBlob":
        raise not_a_page_blob(disk, found.blob_type)
    vhd = None
    if found.size >= FOOTER_SIZE:
        last = parse_footer(await client.get_range(found.size - FOOTER_SIZE, FOOTER_SIZE, timeout_s=_TIMEOUT_S))
        vhd = last is not None and last.layout(found.size) is not None
    holder, since = holder_in(found.metadata)
    return Disk(
        disk=disk,
        size=found.size - FOOTER_SIZE if vhd else found.size,
        blob_size=found.size,
        vhd=vhd,
        metadata=found.metadata,
        tier=found.tier or None,
        lease_state=found.lease_state,
        holder=holder,
        since=since,
        snapshot=disk.snapshot,
        created=found.created,
        etag=found.etag,
        copy_status=found.copy.status if found.copy else None,
        incomplete=is_unfinished(found.metadata, found.copy),
        allocated=None,
    )


def list_disks(container: DiskAddress, options: AttachOptions, *, allocated: bool = False) -> list[DiskRow]:
    """The page blobs of the address's container (its blob stands for all). Raises DyskError.

    allocated: with what is allocated of each, which takes a request a disk.
    """
    address, credential = resolve.resolve(container, options)
    return management.list_disks(address, credential, allocated=allocated)


def list_disks_page(
    container: DiskAddress, options: AttachOptions, *, marker: str = "", most: int = _MOST_LISTED, prefix: str = ""
) -> tuple[list[DiskRow], str]:
    """A piece of that list, and the marker to ask for the next one with; '' at its end. Raises DyskError.

    most: rows that there may be, from 1 on; there may be fewer, none even, before the end. prefix: what the names of
    the blobs begin with.
    """
    if most < 1:
        raise UsageError(f"a list of {most} disks is none", remedy="ask for one at least")
    address, credential = resolve.resolve(container, options)
    return management.list_page(address, credential, marker=marker, most=min(most, _MOST_LISTED), prefix=prefix)


def blob_size(disk: DiskAddress, options: AttachOptions) -> int:
    """Bytes of the blob, a VHD's footer included. Raises DyskError, also if it can be no disk."""
    from blobfuse_dysk.store.open import check_blob

    address, credential = resolve.resolve(disk, options)
    found = blob_properties(address, credential)
    check_blob(found, address)
    return found.size


def blob_properties(address: DiskAddress, credential: Credential) -> BlobProperties:
    """The properties of a blob, of whatever type, in one request; `resolve` gives the arguments. Raises DyskError."""
    return _ask(address, credential, lambda client: client.properties(timeout_s=_TIMEOUT_S))


def _ask(address: DiskAddress, credential: Credential, question: Callable[[BlobClient], Awaitable[T]]) -> T:
    """Ask the blob, once; what goes wrong is said in words for people."""
    from blobfuse_dysk.azure.blob import BlobClient
    from blobfuse_dysk.disks.asking import run

    async def ask() -> T:
        async with BlobClient(address, credential) as client:
            return await question(client)

    return run(address, credential, ask)
