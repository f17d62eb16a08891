"""Snapshots of disks: made, listed, deleted.

A snapshot of a disk that is attached here is asked of its worker, which has the lease and what is not written yet; of
any other the service is asked, as it has the disk at that moment (store/snapshot.py). The lease of another node is in
nobody's way: making a snapshot needs none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from blobfuse_dysk import attachment
from blobfuse_dysk.azure import snapshots
from blobfuse_dysk.azure.credential import resolve
from blobfuse_dysk.azure.snapshots import SnapshotRow
from blobfuse_dysk.device.ipc import state
from blobfuse_dysk.device.ipc.statefile import StateFile
from blobfuse_dysk.disk import DiskAddress, Endpoint, names_disk
from blobfuse_dysk.disks.snapshotting import Account, Consistency, lowered, of_attached, of_the_service
from blobfuse_dysk.errors import AttachedError, DyskError, NotFoundError, UsageError
from blobfuse_dysk.options import AttachOptions
from blobfuse_dysk.store import snapshot as making

__all__ = ["NAME", "Snapshot", "check_metadata", "create_snapshot", "delete_snapshot", "list_snapshots"]

NAME = making.NAME
_METADATA_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z", re.ASCII)
_MOST_METADATA = 8 << 10  # bytes, names and values together
_OF_OTHERS = "it was made by another program"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """disk: the address to attach or to delete it by. time: as the service writes it; it names the snapshot.

    size: of the blob, a VHD's footer included, in bytes. consistent: file-system if nothing was under way in a file
    system of it; crash if it is as after a power cut at that moment. why: the reason, for people. metadata: the
    snapshot's, without what is told here already.
    """

    disk: DiskAddress
    time: str
    size: int
    consistent: Consistency
    why: str
    metadata: dict[str, str]

    @property
    def name(self) -> str | None:
        """What its maker called it."""
        return next((value for key, value in self.metadata.items() if key.lower() == NAME), None)


def create_snapshot(
    target: str | DiskAddress,
    options: AttachOptions,
    *,
    freeze_s: float | None = 10.0,
    metadata: Mapping[str, str] | None = None,
) -> Snapshot:
    """Make a snapshot of a disk, named by address, or by attachment or device if it is attached here. Raises DyskError.

    options: how to reach the account. freeze_s: how long, in seconds, a file system that is mounted on it may be kept
    from writing; None: it is not. metadata: of the snapshot; see check_metadata.
    """
    given = dict(metadata or {})
    check_metadata(given)
    found = _attached(target)
    disk = _disk(target, found)
    if disk.snapshot:
        raise UsageError(f"{disk} is a snapshot itself", remedy="leave ?snapshot= out")
    account: Account | None = None
    try:
        account = Account(*resolve.resolve(disk, options))
    except DyskError:
        if not found:
            raise
    if account and found and str(account.address.endpoint) != found["endpoint"]:
        found = None  # another disk, which has the same name in another cloud
    if account:
        account.address.refuse_secondary("")
    why = _why_not_its_worker(found)
    if found and why is None:
        made = of_attached(found, account, given, freeze_s)
    else:
        assert account
        made = of_the_service(account, given, why)
    return Snapshot(replace(disk, snapshot=made.time), made.time, made.size, made.consistent, made.why, given)


def list_snapshots(disk: DiskAddress, options: AttachOptions, *, prefix_of_container: bool = False) -> list[Snapshot]:
    """The snapshots of a disk, oldest first; with prefix_of_container those of all disks whose names begin so.

    It takes the right to list the container. Raises DyskError.
    """
    address, credential = resolve.resolve(replace(disk, snapshot=None), options)
    if not prefix_of_container:
        return [_snapshot(row) for row in snapshots.list_snapshots(address, credential)]
    rows: list[SnapshotRow] = []
    marker: str | None = None
    while True:
        page, marker = snapshots.list_snapshots_page(address, credential, prefix=address.blob, marker=marker)
        rows += page
        if marker is None:
            return [_snapshot(row) for row in rows]


def list_snapshots_page(
    container: DiskAddress,
    options: AttachOptions,
    *,
    prefix: str = "",
    marker: str | None = None,
    most: int | None = None,
) -> tuple[list[Snapshot], str | None]:
    """Some snapshots of a container (the address's blob stands for all), and the marker for the rest, None at the end.

    See azure/snapshots.py. Raises DyskError.
    """
    address, credential = resolve.resolve(container, options)
    rows, after = snapshots.list_snapshots_page(address, credential, prefix=prefix, marker=marker, most=most)
    return [_snapshot(row) for row in rows], after


def check_deletable(snapshot: DiskAddress) -> None:
    """Raise UsageError for a whole disk, AttachedError for a snapshot that is attached on this machine."""
    if not snapshot.snapshot:
        raise UsageError(f"{snapshot} is a disk, not a snapshot", remedy=f"name one: {snapshot}?snapshot=TIME")
    for found in attachment.attachments():
        if found.disk == snapshot.key:
            raise AttachedError(
                f"{snapshot} is attached here as {found.device}", remedy=f"first run: dyskctl detach {found.name}"
            )


def delete_snapshot(snapshot: DiskAddress, options: AttachOptions) -> None:
    """Delete a snapshot; its disk stays as it is. Raises DyskError: NotFoundError if there is no such snapshot."""
    check_deletable(snapshot)
    address, credential = resolve.resolve(snapshot, options)
    address.refuse_secondary("")
    snapshots.delete_snapshot(address, credential)


def check_metadata(metadata: Mapping[str, str]) -> None:
    """Raise UsageError unless it can be a snapshot's, beside ours: names are identifiers, values printable ASCII.

    Source: https://learn.microsoft.com/rest/api/storageservices/setting-and-retrieving-properties-and-metadata-for-blob-resources
    """
    for name, value in metadata.items():
        if not _METADATA_NAME.match(name) or name.lower() in making.OWN:
            raise UsageError(f"metadata cannot have the name {name!r}", remedy="use letters, digits and _")
        if not value.isascii() or not value.isprintable() or value != value.strip() or not value:
            what = "the name of a snapshot" if name == NAME else f"the metadata {name}"
            raise UsageError(f"{what} cannot be {value!r}", remedy="use printable ASCII, no blanks around it")
    if sum(len(name) + len(value) for name, value in metadata.items()) > _MOST_METADATA:
        raise UsageError("the metadata has more than 8 KiB", remedy="the service takes no more")


def _attached(target: str | DiskAddress) -> StateFile | None:
    """The attachment that is meant, if there is one here."""
    try:
        return attachment.find_state(str(target))
    except NotFoundError:
        if isinstance(target, str) and not names_disk(target):
            raise
        return None


def _disk(target: str | DiskAddress, found: StateFile | None) -> DiskAddress:
    if isinstance(target, DiskAddress):
        return target
    if found is None:
        return DiskAddress.parse(target)
    return replace(DiskAddress.parse(found["disk"]), endpoint=Endpoint.parse(found["endpoint"]))


def _why_not_its_worker(found: StateFile | None) -> str | None:
    """Why the service is asked for what it has of the disk, where it is attached here; None if its worker is asked."""
    if found and not state.alive(found["holder"]):
        return "its attachment here is dead, with what was not written yet"
    return "attached here to be read only" if found and found["read_only"] else None


def _snapshot(row: SnapshotRow) -> Snapshot:
    told = lowered(row.metadata)
    consistent: Consistency = "file-system" if told.get(making.CONSISTENT) == "file-system" else "crash"
    why = told.get(making.WHY) or _OF_OTHERS
    rest = {name: value for name, value in row.metadata.items() if name.lower() not in making.OWN}
    return Snapshot(row.disk, row.disk.snapshot or "", row.size, consistent, why, rest)
