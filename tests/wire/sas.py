"""Shared access signatures for tests, made by the Azure SDK: the one thing both servers are sure to accept."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from azure.storage.blob import (
    AccountSasPermissions,
    BlobSasPermissions,
    ContainerSasPermissions,
    ResourceTypes,
    generate_account_sas,
    generate_blob_sas,
    generate_container_sas,
)

__all__ = ["account_sas", "blob_sas", "container_sas"]


def _times(start_s: float | None, end_s: float) -> dict[str, Any]:
    now = datetime.now(UTC)
    start = None if start_s is None else now + timedelta(seconds=start_s)
    return {"start": start, "expiry": now + timedelta(seconds=end_s)}


def account_sas(
    account: str,
    key: str,
    permissions: str,
    resources: str = "sco",
    *,
    start_s: float | None = None,
    end_s: float = 3600,
    **more: Any,
) -> str:
    """A SAS for the blob service; times are seconds from now."""
    return generate_account_sas(
        account,
        key,
        ResourceTypes.from_string(resources),  # type: ignore[no-untyped-call]
        AccountSasPermissions.from_string(permissions),  # type: ignore[no-untyped-call]
        **_times(start_s, end_s),
        **more,
    )


def blob_sas(
    account: str,
    key: str,
    path: str,
    permissions: str,
    *,
    start_s: float | None = None,
    end_s: float = 3600,
    **more: Any,
) -> str:
    """A SAS for one blob, `container/blob`."""
    container, _, blob = path.partition("/")
    permission = BlobSasPermissions.from_string(permissions)
    return generate_blob_sas(
        account, container, blob, account_key=key, permission=permission, **_times(start_s, end_s), **more
    )


def container_sas(
    account: str, key: str, container: str, permissions: str, *, start_s: float | None = None, end_s: float = 3600
) -> str:
    """A SAS for a container and its blobs."""
    permission = ContainerSasPermissions.from_string(permissions)
    return generate_container_sas(account, container, account_key=key, permission=permission, **_times(start_s, end_s))
