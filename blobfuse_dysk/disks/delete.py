"""Deletes disks."""

from __future__ import annotations

from blobfuse_dysk import attachment
from blobfuse_dysk.azure import deletion
from blobfuse_dysk.azure.credential import resolve
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.errors import AttachedError, UsageError
from blobfuse_dysk.options import AttachOptions

__all__ = ["check_deletable", "delete_disk"]


def check_deletable(disk: DiskAddress) -> None:
    """Raise UsageError for a snapshot, AttachedError for a disk that is attached on this machine.

    Deleting that would break what is mounted on it. To be asked before a person is; delete_disk asks again.
    """
    if disk.snapshot:
        raise UsageError("a snapshot cannot be deleted this way", remedy="name the disk without ?snapshot=")
    for found in attachment.attachments():
        if found.disk == disk.key:
            raise AttachedError(
                f"{disk} is attached here as {found.device}", remedy=f"first run: dyskctl detach {found.name}"
            )


def delete_disk(
    disk: DiskAddress,
    options: AttachOptions,
    *,
    break_lease: bool = False,
    lease_id: str | None = None,
    snapshots: bool = False,
) -> None:
    """Delete a disk and everything on it. Raises DyskError.

    One that is leased goes only with its lease_id or with break_lease. One with snapshots goes with `snapshots`, and
    they with it; else it is a HasSnapshotsError, and all of it stays. options: how to reach the account.
    """
    check_deletable(disk)
    address, credential = resolve.resolve(disk, options)
    address.refuse_secondary("")
    deletion.delete_disk(address, credential, break_lease=break_lease, lease_id=lease_id, snapshots=snapshots)
