"""What the service says of disks: those of a container, the properties of one."""

from __future__ import annotations

from blobfuse_dysk.azure import management
from blobfuse_dysk.azure.credential import resolve
from blobfuse_dysk.azure.credential.credential import Credential
from blobfuse_dysk.azure.explain import explain
from blobfuse_dysk.azure.management import DiskRow
from blobfuse_dysk.azure.wire import BlobProperties
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.errors import DyskError
from blobfuse_dysk.options import AttachOptions

__all__ = ["blob_properties", "blob_size", "list_disks"]

_TIMEOUT_S = 10.0


def list_disks(container: DiskAddress, options: AttachOptions, *, allocated: bool = False) -> list[DiskRow]:
    """The page blobs of the address's container (its blob stands for all). Raises DyskError.

    allocated: with what is allocated of each, which takes a request a disk.
    """
    address, credential = resolve.resolve(container, options)
    return management.list_disks(address, credential, allocated=allocated)


def blob_size(disk: DiskAddress, options: AttachOptions) -> int:
    """Bytes of the blob, a VHD's footer included. Raises DyskError, also if it can be no disk."""
    from blobfuse_dysk.store.open import check_blob

    address, credential = resolve.resolve(disk, options)
    found = blob_properties(address, credential)
    check_blob(found, address)
    return found.size


def blob_properties(address: DiskAddress, credential: Credential) -> BlobProperties:
    """The properties of a blob, of whatever type, in one request; `resolve` gives the arguments. Raises DyskError."""
    import trio

    from blobfuse_dysk.azure.blob import BlobClient

    async def ask() -> BlobProperties:
        async with BlobClient(address, credential) as client:
            return await client.properties(timeout_s=_TIMEOUT_S)

    try:
        return trio.run(ask)
    except DyskError as error:
        raise explain(error, address, credential, needs="r") from error
