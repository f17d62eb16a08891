"""Snapshots as an account lists and deletes them. Synchronous, on azure-storage-blob, like management.py.

One is made by BlobClient.snapshot, by whoever has the lease.

Source: https://learn.microsoft.com/rest/api/storageservices/list-blobs (include=snapshots), .../delete-blob
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from blobfuse_dysk.azure.credential.credential import Credential
from blobfuse_dysk.azure.management import sdk
from blobfuse_dysk.disk import DiskAddress

__all__ = ["SnapshotRow", "delete_snapshot", "list_snapshots", "list_snapshots_page"]

_MOST_LISTED = 5000  # blobs and snapshots in one answer of the service


@dataclass(frozen=True, slots=True)
class SnapshotRow:
    """One snapshot of a page blob. disk: with the snapshot's time in it. size: of the blob then, in bytes."""

    disk: DiskAddress
    size: int
    metadata: dict[str, str]


def list_snapshots(address: DiskAddress, credential: Credential) -> list[SnapshotRow]:
    """Those of one page blob, oldest first; none if there is no such blob. Raises DyskError.

    In one request for up to 5,000, unless names of very many others begin with this one's.
    """
    from azure.storage.blob import BlobType

    found = []
    with sdk(address, credential, "list of the snapshots", needs="rl") as service:
        container = service.get_container_client(address.container)
        for item in container.list_blobs(name_starts_with=address.blob, include=["metadata", "snapshots"]):
            if item.name != address.blob:
                break  # in the order of names, so all others come after it
            if item.snapshot and item.blob_type == BlobType.PAGEBLOB:
                found.append(_row(address, item))
    return sorted(found, key=lambda row: row.disk.snapshot or "")


def list_snapshots_page(
    address: DiskAddress,
    credential: Credential,
    *,
    prefix: str = "",
    marker: str | None = None,
    most: int | None = None,
) -> tuple[list[SnapshotRow], str | None]:
    """Some of those of the address's container (its blob is not used), by name and time, and the marker for the rest.

    prefix: of the blobs' names. marker: None for the first page; None as a result after the last one. most: of blobs
    and snapshots in one answer of the service. A page that is not the last may be of any length but empty.
    Raises DyskError; ServiceError with status 400 for a marker that the service did not give.
    """
    from azure.storage.blob import BlobType

    listed = replace(address, blob="*")  # in messages
    with sdk(listed, credential, "list of the snapshots", needs="rl") as service:
        container = service.get_container_client(address.container)
        pages: Any = container.list_blobs(
            name_starts_with=prefix or None,
            include=["metadata", "snapshots"],
            results_per_page=min(most or _MOST_LISTED, _MOST_LISTED),
        ).by_page(marker)
        for page in pages:
            rows = [_row(address, item) for item in page if item.snapshot and item.blob_type == BlobType.PAGEBLOB]
            if rows or not pages.continuation_token:
                return rows, pages.continuation_token or None
    return [], None


def delete_snapshot(address: DiskAddress, credential: Credential) -> None:
    """Delete the snapshot that the address names; its disk may be leased. Raises DyskError, NotFoundError if gone."""
    assert address.snapshot
    with sdk(address, credential, "delete", needs="d") as service:
        service.get_blob_client(address.container, address.blob, snapshot=address.snapshot).delete_blob()


def _row(address: DiskAddress, item: object) -> SnapshotRow:
    """item: the SDK's BlobProperties."""
    name, snapshot, size, metadata = (getattr(item, key) for key in ("name", "snapshot", "size", "metadata"))
    return SnapshotRow(replace(address, blob=name, snapshot=snapshot), size, dict(metadata or {}))
