"""Which ranges of a disk are in use, and which changed since a snapshot: what a backup has to read.

Theory. A list of changes is applied to a copy of the old snapshot, so a range that is missing in it leaves old bytes in
the copy, and one that is not known to be cleared brings back bytes that are gone. A service that ignores `prevsnapshot`
(Azurite 3.37 does, for a snapshot that never was as for any) answers with all that is allocated, in the very form of a
list of changes without a cleared range. So the service is asked first for the changes since a snapshot that no service
has, of a time before there was one. To be refused for that snapshot's sake is the only right answer; who lists anything
ignores the parameter, and is refused.

The service refuses lists of changes since a snapshot that is gone, that is newer than what it is compared with, and
across a Put Blob or Copy Blob onto the disk, after which it does not know what changed.

Lists come in answers of 10,000 ranges at most and are followed by their markers. Each answer must lead on, or it is
damaged. Ranges are clipped to the device: a VHD's footer is no part of it, nor is what a snapshot had beyond the disk's
present end.

Source: https://learn.microsoft.com/rest/api/storageservices/get-page-ranges and .../blob-service-error-codes
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import NamedTuple, TypeVar

from blobfuse_dysk.azure.blob import BlobClient
from blobfuse_dysk.azure.credential import resolve
from blobfuse_dysk.azure.credential.credential import Credential
from blobfuse_dysk.azure.pagelist import PAGE, Change
from blobfuse_dysk.azure.wire import Extent
from blobfuse_dysk.disk import DiskAddress, check_snapshot
from blobfuse_dysk.disks.asking import REQUEST_S, again, read_footer, run
from blobfuse_dysk.errors import DyskError, Kind, NotFoundError, ServiceError, StoreError, TransportError, UsageError
from blobfuse_dysk.options import AttachOptions
from blobfuse_dysk.store.open import check_blob
from blobfuse_dysk.store.serviceerrors import is_service_timeout
from blobfuse_dysk.vhd import FOOTER_SIZE

__all__ = ["Changed", "Measured", "allocated_ranges", "blob_ranges", "changed_ranges", "measure"]

_T = TypeVar("_T")
_NEVER = "2001-01-01T00:00:00.0000000Z"  # of a snapshot that cannot be: there was no such service
_REFUSED = "PreviousSnapshot"  # what the codes begin with by which the service refuses it
_REFUSED_AS_VALUE = frozenset({"InvalidQueryParameterValue", "OutOfRangeQueryParameterValue"})
_SMALLEST = 64 << 20  # bytes; a list of a piece this small is never too much for the service
_MOST_EMPTY = 1000  # answers of a list in a row without a range


class Changed(NamedTuple):
    """Bytes that differ from what they were. cleared: they read as zeros now, and are not allocated."""

    offset: int
    length: int
    cleared: bool


@dataclass(frozen=True, slots=True)
class Measured:
    """size: bytes of the device. blob_size: of the blob, a VHD's footer included. etag: of what was looked at."""

    size: int
    blob_size: int
    etag: str


def measure(disk: DiskAddress, options: AttachOptions) -> Measured:
    """Look at a disk or a snapshot; raises DyskError, also if it can be no disk."""
    address, credential = resolve.resolve(disk, options)
    return _measure(address, credential)


def allocated_ranges(disk: DiskAddress, options: AttachOptions, *, start: int = 0) -> Iterator[Extent]:
    """The allocated ranges of a disk or a snapshot, (offset, length) in bytes, in order, from `start` on.

    What is none of them reads as zeros. Raises DyskError, here before the first range, later while they are drawn. Of
    a disk that is being written to, each answer of the service is of its own moment: take a snapshot.
    """
    address, credential = resolve.resolve(disk, options)
    found = _measure(address, credential)
    ranges = blob_ranges(address, credential, start, found.size)
    return _drawn((offset, length) for offset, length, _ in ranges)


def changed_ranges(
    disk: DiskAddress, since: DiskAddress | str, options: AttachOptions, *, start: int = 0
) -> Iterator[Changed]:
    """What is different in a disk, or in a snapshot of it, since an older snapshot; in order, from `start` on.

    since: that snapshot, or its time. Ranges that were written are told even if the same bytes were written. Errors
    and a disk that is being written to: as for allocated_ranges, though what was changed before the call is in it.
    """
    before = _time_of(since, disk)
    address, credential = resolve.resolve(disk, options)
    found = _measure(address, credential)
    _check_service(address, credential)
    ranges = blob_ranges(address, credential, start, found.size, since=before)
    return _drawn(Changed(*each) for each in ranges)


def blob_ranges(
    address: DiskAddress, credential: Credential, start: int, end: int, *, since: str = ""
) -> Iterator[Change]:
    """The ranges in [start, end) of a resolved address, a request each time more are due.

    since: what changed since that snapshot, by a service that was checked; '': what is allocated, none of it cleared.
    """
    reached = start - start % PAGE
    segment = end - reached
    while reached < end:
        base, piece = reached, min(segment, end - reached)
        try:
            for offset, length, cleared in _listed(address, credential, base, piece, since):
                first, last = max(offset, base, start), min(offset + length, base + piece)
                if first < last:
                    yield first, last - first, cleared
                    reached = last
        except _TooMuchError:
            segment = max(_SMALLEST, piece // 2 // PAGE * PAGE)
            continue
        reached = base + piece
        segment = min(segment * 2, end - start)


def _listed(address: DiskAddress, credential: Credential, offset: int, length: int, since: str) -> Iterator[Change]:
    """All answers of the list of one segment. Each leads on: beyond the ranges before, or by another marker."""
    marker: str | None = None
    reached = 0  # where the last range told so far ends
    seen: set[str] = set()  # markers since then
    while True:
        ranges, marker = _answer(address, credential, offset, length, marker, since)
        if ranges and ranges[0][0] < reached:
            raise _damaged(address, "goes back")
        yield from ranges
        if marker is None:
            return
        if ranges:
            reached = ranges[-1][0] + ranges[-1][1]
            seen.clear()
        if marker in seen or len(seen) > _MOST_EMPTY:
            raise _damaged(address, "has markers that lead nowhere")
        seen.add(marker)


def _answer(
    address: DiskAddress, credential: Credential, offset: int, length: int, marker: str | None, since: str
) -> tuple[list[Change], str | None]:
    """One answer: its ranges, and the marker of the next. Raises _TooMuchError if it takes the service too long."""

    async def ask(client: BlobClient) -> tuple[list[Change], str | None]:
        try:
            if since:
                changed = await client.changed_ranges(since, offset, length, marker=marker, timeout_s=REQUEST_S)
                return changed.ranges, changed.marker
            page = await client.page_ranges(offset, length, marker=marker, timeout_s=REQUEST_S)
            return [(first, size, False) for first, size in page.ranges], page.marker
        except (ServiceError, TransportError) as error:
            if length > _SMALLEST and is_service_timeout(error):
                raise _TooMuchError from error
            if isinstance(error, ServiceError) and (refused := _explained(error, address, since)):
                raise refused from None
            raise

    async def work() -> tuple[list[Change], str | None]:
        async with BlobClient(address, credential) as client:
            return await again(lambda: ask(client), "listing ranges")

    return run(address, credential, work)


class _TooMuchError(Exception):
    """A list that takes the service too long: to be asked for in smaller pieces."""


def _check_service(address: DiskAddress, credential: Credential) -> None:
    """Raise UsageError if the service does not look at prevsnapshot, whose lists would be of something else."""

    async def ask(client: BlobClient) -> bool:
        try:
            await client.changed_ranges(_NEVER, 0, PAGE, timeout_s=REQUEST_S)
        except ServiceError as error:
            if error.code.startswith(_REFUSED) or error.code in _REFUSED_AS_VALUE:
                return True
            raise
        return False

    async def work() -> bool:
        async with BlobClient(address, credential) as client:
            return await again(lambda: ask(client), "finding out whether it knows what changed")

    if not run(address, credential, work):
        raise UsageError(
            f"the service at {address.endpoint} ignores what changes are asked for since: it would list everything "
            "that is allocated, and nothing that was cleared (Azurite does so)",
            remedy="use the list of what is allocated, and copy all of that",
        )


def _explained(error: ServiceError, address: DiskAddress, since: str) -> DyskError | None:
    """The error for a refusal that is about the older snapshot."""
    disk = f"{address.account}/{address.container}/{address.blob}"
    if error.code == "PreviousSnapshotNotFound":
        return NotFoundError(
            f"snapshot {since} of disk {disk} does not exist (any more), so nobody knows what changed since",
            missing="snapshot",
            remedy="begin again with a copy of a newer snapshot",
        )
    if error.code == "PreviousSnapshotCannotBeNewer":
        return UsageError(
            f"snapshot {since} of disk {disk} is newer than {address.snapshot}, which it is to be compared with",
            remedy="name the older one as the first: --from OLDER --to NEWER",
        )
    if error.code in ("BlobOverwritten", "BlobGenerationMismatch"):
        return DyskError(
            f"disk {disk} was overwritten as a whole since snapshot {since}, so the service knows no changes since",
            remedy="begin again with a copy of a newer snapshot",
        )
    if error.code == "PreviousSnapshotOperationNotSupported":
        return DyskError(
            f"the service cannot tell what changed in disk {disk} since snapshot {since} ({error.code})",
            remedy="it can for disks made since 2016: begin again with a copy of a newer snapshot",
        )
    return None


def _damaged(address: DiskAddress, how: str) -> StoreError:
    return StoreError(f"the list of ranges of {address} {how}", Kind.CORRUPT, remedy="try again; see dyskctl doctor")


def _measure(address: DiskAddress, credential: Credential) -> Measured:
    async def work() -> Measured:
        async with BlobClient(address, credential) as client:
            found = await again(lambda: client.properties(timeout_s=REQUEST_S), "asking for the disk's properties")
            check_blob(found, address)
            hidden = FOOTER_SIZE if await read_footer(client, found.size) else 0
            return Measured(found.size - hidden, found.size, found.etag)

    return run(address, credential, work)


def _time_of(since: DiskAddress | str, disk: DiskAddress) -> str:
    """The time of the older snapshot, which must be one of this disk."""
    if isinstance(since, str):
        check_snapshot(since)
        return since
    if (since.account, since.container, since.blob) != (disk.account, disk.container, disk.blob):
        raise UsageError(
            f"{since} is no snapshot of {replace(disk, snapshot=None)}",
            remedy="changes are told between states of one disk only",
        )
    if since.snapshot is None:
        raise UsageError(f"{since} is no snapshot", remedy="name one: its time, or DISK?snapshot=TIME")
    return since.snapshot


def _drawn(ranges: Iterator[_T]) -> Iterator[_T]:
    """The same, with its first answer asked for now: errors come before the first range is used."""
    first = list(islice(ranges, 1))
    return chain(first, ranges)
