"""Makes clients of a service for tests of the package's own client."""

from __future__ import annotations

from typing import Any

from blobfuse_dysk.azure import management
from blobfuse_dysk.azure.blob import BlobClient
from blobfuse_dysk.azure.credential.credential import Credential, Proof
from blobfuse_dysk.disk import DiskAddress, Endpoint
from tests.conftest import Service

__all__ = ["LEASE", "T", "address_of", "by_key", "by_sas", "by_token", "client_of", "new_disk"]

T = 30.0
"""The time limit of a call that is to succeed, in seconds."""
LEASE = "11111111-2222-3333-4444-555555555555"


def address_of(service: Service, container: str, blob: str = "data", snapshot: str | None = None) -> DiskAddress:
    return DiskAddress(service.account, container, blob, snapshot, Endpoint.parse(service.endpoint))


def by_key(service: Service, key: str = "", **options: Any) -> Credential:
    return Credential(service.account, Proof("key", "a test", account_key=key or service.key), **options)


def by_sas(service: Service, sas: str, **options: Any) -> Credential:
    return Credential(service.account, Proof("sas", "a test", sas=sas), **options)


def by_token(service: Service, command: tuple[str, ...], **options: Any) -> Credential:
    return Credential(service.account, Proof("token", "a test", token_command=command), **options)


def new_disk(service: Service, container: str, size: int = 8 << 20, **options: Any) -> DiskAddress:
    """Create an empty page blob and return its address. options: of the credential."""
    address = address_of(service, container)
    management.create_disk(address, by_key(service, **options), size)
    return address


def client_of(service: Service, address: DiskAddress, **options: Any) -> BlobClient:
    """A client with the account's key."""
    return BlobClient(address, by_key(service), **options)
