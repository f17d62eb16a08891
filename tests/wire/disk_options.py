"""Disks of a service as users of blobfuse_dysk.disks name them: with the account's key in memory."""

from __future__ import annotations

from blobfuse_dysk.disk import DiskAddress, Endpoint
from tests.conftest import Service

__all__ = ["named"]


def named(service: Service, container: str, blob: str = "data", snapshot: str | None = None) -> DiskAddress:
    """The disk, with where it is and the key."""
    endpoint = Endpoint.parse(service.endpoint)
    return DiskAddress(service.account, container, blob, snapshot, endpoint, account_key=service.key)
