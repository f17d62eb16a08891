"""Volumes that were deleted while they have snapshots.

The service keeps snapshots under their blob: it goes with them only, or not at all. To Kubernetes they are independent,
as they are with other drivers of Azure and with Ceph: who deletes a claim expects to get its data back from a snapshot.
So such a volume is marked and is gone for every call, and its blob goes with the last of its snapshots. Until then what
the blob itself holds beyond its snapshots is paid for.
"""

from __future__ import annotations

from functools import partial

from blobfuse_dysk.azure.blob import BlobClient
from blobfuse_dysk.azure.credential import resolve
from blobfuse_dysk.azure.explain import leased
from blobfuse_dysk.azure.properties import Condition
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.disks.asking import REQUEST_S, again, run
from blobfuse_dysk.disks.delete import delete_disk
from blobfuse_dysk.disks.look import Disk, get_disk
from blobfuse_dysk.errors import HasSnapshotsError, NotFoundError
from blobfuse_dysk.kubernetes.marks import DELETED, mark
from blobfuse_dysk.options import AttachOptions
from blobfuse_dysk.timestamp import utc_text

__all__ = ["delete_or_mark", "find_volume", "is_deleted", "remove_if_last"]


def is_deleted(disk: Disk) -> bool:
    """Whether it is there for its snapshots only."""
    return bool(mark(disk.metadata, DELETED))


def find_volume(disk: DiskAddress, options: AttachOptions) -> Disk:
    """Look at a volume; NotFoundError also for one that was deleted. Raises DyskError."""
    found = get_disk(disk, options)
    if is_deleted(found):
        raise NotFoundError(f"volume {disk} was deleted; its snapshots are still there", missing="disk")
    return found


def delete_or_mark(disk: DiskAddress, options: AttachOptions) -> None:
    """Delete a volume; nothing if it is not there. Raises DyskError, LeasedError while somebody has it attached."""
    try:
        delete_disk(disk, options)
    except NotFoundError:
        pass
    except HasSnapshotsError:
        _mark(disk, options)


def remove_if_last(disk: DiskAddress, options: AttachOptions) -> None:
    """Delete the blob of a deleted volume once its last snapshot is gone. Raises DyskError."""
    try:
        if is_deleted(get_disk(disk, options)):
            delete_disk(disk, options)
    except (NotFoundError, HasSnapshotsError):
        pass


def _mark(disk: DiskAddress, options: AttachOptions) -> None:
    found = get_disk(disk, options)
    if is_deleted(found):
        return
    if found.lease_state == "leased":
        raise leased(disk, found.metadata, found.lease_state)
    address, credential = resolve.resolve(disk, options)

    async def work() -> None:
        async with BlobClient(address, credential) as client:
            write = partial(
                client.set_metadata,
                {**found.metadata, DELETED: utc_text()},
                lease_id=None,
                condition=Condition(if_match=found.etag),
                timeout_s=REQUEST_S,
            )
            await again(write, "marking the volume as deleted", modifies=True, conditional=True)

    run(address, credential, work, needs="w")
