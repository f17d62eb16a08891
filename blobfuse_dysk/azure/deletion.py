"""Deletes disks, on the Azure SDK: only what was seen, however late a request arrives."""

from __future__ import annotations

import contextlib
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from blobfuse_dysk.azure import explain
from blobfuse_dysk.azure.credential.credential import Credential
from blobfuse_dysk.azure.management import code_of, sdk
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.errors import LaterError

if TYPE_CHECKING:
    from azure.storage.blob import BlobClient, BlobProperties

__all__ = ["delete_disk"]

_LOOKS = 5  # at a blob that changes while it is to be deleted


def delete_disk(
    address: DiskAddress,
    credential: Credential,
    *,
    break_lease: bool = False,
    lease_id: str | None = None,
    snapshots: bool = False,
) -> None:
    """Delete a page blob. A leased one only with its lease_id or with break_lease.

    snapshots: with those that it has; else HasSnapshotsError if it has any.

    The request holds for the blob as it was seen (If-Match), so a copy of it that arrives late deletes no later disk of
    that name. Where the credential may not look (a SAS that grants d alone) there is no condition, and no second try.
    """
    from azure.core.exceptions import HttpResponseError
    from azure.storage.blob import BlobLeaseClient

    with sdk(address, credential, "delete", needs="d") as service:
        blob = service.get_blob_client(address.container, address.blob, snapshot=address.snapshot)
        words: dict[str, Any] = {"delete_snapshots": "include"} if snapshots else {}
        lease: Any = {"lease": lease_id} if lease_id else {}
        created = None
        for _ in range(_LOOKS):
            found = _look(blob)
            if found and created not in (None, found.creation_time):
                raise LaterError(f"{address} was deleted by somebody, and there is another one of that name now")
            created = found and found.creation_time
            try:
                blob.delete_blob(**words, **lease, **_as_seen(found))
                return
            except HttpResponseError as error:
                if code_of(error) == "ConditionNotMet" and found:
                    continue
                if code_of(error) not in ("LeaseIdMissing", "LeaseIdMismatchWithBlobOperation"):
                    raise
                if not break_lease:
                    found = found or blob.get_blob_properties()
                    raise explain.leased(address, found.metadata or {}, found.lease.state or "") from error
                lease = {}
                with contextlib.suppress(HttpResponseError):  # it may have ended meanwhile
                    BlobLeaseClient(blob).break_lease(lease_break_period=0)
        raise LaterError(f"{address} is written to all the time", remedy="find out by whom, and try again")


def _look(blob: BlobClient) -> BlobProperties | None:
    """The blob's properties; None if the credential may not ask for them."""
    from azure.core.exceptions import HttpResponseError

    try:
        return blob.get_blob_properties()
    except HttpResponseError as error:
        if error.status_code == HTTPStatus.FORBIDDEN:
            return None
        raise


def _as_seen(found: BlobProperties | None) -> dict[str, Any]:
    """What makes a request hold for the blob as it was seen, however late it arrives."""
    from azure.core import MatchConditions

    if found is None:
        return {"retry_total": 0}
    return {"etag": found.etag, "match_condition": MatchConditions.IfNotModified}
