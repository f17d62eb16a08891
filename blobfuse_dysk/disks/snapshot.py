"""Snapshots of disks: made, listed, deleted.

A snapshot of a disk that is attached here is asked of its worker, which has the lease and what is not written yet; of
any other the service is asked, as it has the disk at that moment (store/snapshot.py). The lease of another node is in
nobody's way: making a snapshot needs none.
"""

from __future__ import annotations

import contextlib
import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from blobfuse_dysk import attachment
from blobfuse_dysk.azure import snapshots
from blobfuse_dysk.azure.credential import resolve
from blobfuse_dysk.azure.credential.credential import Credential
from blobfuse_dysk.azure.explain import explain, holder_in
from blobfuse_dysk.azure.properties import BlobProperties
from blobfuse_dysk.azure.snapshots import SnapshotRow
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.errors import AttachedError, DyskError, ServiceError, StoreError, TransportError, UsageError
from blobfuse_dysk.options import AttachOptions
from blobfuse_dysk.store import snapshot as making
from blobfuse_dysk.store.serviceerrors import to_store_error

__all__ = ["NAME", "Snapshot", "check_metadata", "create_snapshot", "delete_snapshot", "list_snapshots"]

NAME = making.NAME
_TIMEOUT_S = 30.0  # of a request
_TRIES = 3
_METADATA_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z", re.ASCII)
_MOST_METADATA = 8 << 10  # bytes, names and values together
_OF_OTHERS = "it was made by another program"

Consistency = Literal["file-system", "crash"]


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
    disk = target if isinstance(target, DiskAddress) else DiskAddress.parse(target)
    if disk.snapshot:
        raise UsageError(f"{disk} is a snapshot itself", remedy="leave ?snapshot= out")
    address, credential = resolve.resolve(disk, options)
    address.refuse_secondary("")
    return _of_the_service(address, credential, given)


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


def _of_the_service(address: DiskAddress, credential: Credential, metadata: dict[str, str]) -> Snapshot:
    """Of a disk as the service has it."""
    import trio

    from blobfuse_dysk.azure.blob import BlobClient

    request = str(uuid.uuid4())
    marks = {making.CONSISTENT: "crash", making.REQUEST: request}

    async def look() -> BlobProperties:
        async with BlobClient(address, credential) as client:
            return await client.properties(timeout_s=_TIMEOUT_S)

    async def take() -> str:
        async with BlobClient(address, credential) as client:
            return await making.take(
                client, blob, {**metadata, **marks}, lease_id=None, etag=None, timeout_s=_TIMEOUT_S
            )

    try:
        blob = trio.run(look)
        making.check(blob, address)
        marks[making.WHY] = why = _why_not_here(blob)
        time = once(lambda: trio.run(take), request, address, credential)
    except (ServiceError, TransportError) as error:
        raise explain(error, address, credential, needs="rw") from error
    return Snapshot(replace(address, snapshot=time), time, blob.size, "crash", why, metadata)


def once(make: Callable[[], str], request: str, address: DiskAddress, credential: Credential) -> str:
    """Call `make` until a snapshot with this id in its metadata is known to be made; return its time.

    make: one attempt. It raises ServiceError, TransportError or StoreError, of which only an unknown outcome is
    followed by another. Where this credential may not list, there is no looking: then the same is asked for again. What
    several requests made is one snapshot in the end, unless one is carried out even later; that one has the same id.
    """
    for left in reversed(range(_TRIES)):
        try:
            time = make()
        except (ServiceError, TransportError, StoreError) as error:
            if not _is_unknown(error) or not left:
                raise
            if found := _made(request, address, credential):
                return found[0]
            continue
        if left < _TRIES - 1:
            for other in set(_made(request, address, credential)) - {time}:
                with contextlib.suppress(DyskError):
                    snapshots.delete_snapshot(replace(address, snapshot=other), credential)
        return time
    raise AssertionError("the last attempt either succeeds or fails")


def _is_unknown(error: ServiceError | TransportError | StoreError) -> bool:
    return (error if isinstance(error, StoreError) else to_store_error(error, "", modifies=True)).unknown


def _made(request: str, address: DiskAddress, credential: Credential) -> list[str]:
    """The times of those with this id, oldest first; none if that cannot be found out."""
    try:
        rows = snapshots.list_snapshots(address, credential)
    except DyskError:
        return []
    return [row.disk.snapshot or "" for row in rows if _lowered(row.metadata).get(making.REQUEST) == request]


def _why_not_here(blob: BlobProperties) -> str:
    """Why the service was asked, and not this machine."""
    node, _ = holder_in(blob.metadata)
    if blob.lease_state == "leased":
        return f"attached on {node}, not here" if node else "leased by another holder, not attached here"
    return "not attached here"


def _snapshot(row: SnapshotRow) -> Snapshot:
    told = _lowered(row.metadata)
    consistent: Consistency = "file-system" if told.get(making.CONSISTENT) == "file-system" else "crash"
    why = told.get(making.WHY) or _OF_OTHERS
    rest = {name: value for name, value in row.metadata.items() if name.lower() not in making.OWN}
    return Snapshot(row.disk, row.disk.snapshot or "", row.size, consistent, why, rest)


def _lowered(metadata: Mapping[str, str]) -> dict[str, str]:
    """To the service the case of a name makes no difference."""
    return {name.lower(): value for name, value in metadata.items()}
