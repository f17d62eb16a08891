"""Whether a blob can be a disk, and what went wrong while attaching, in the words of who typed the command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from blobfuse_dysk.azure.credential.credential import Credential
from blobfuse_dysk.azure.explain import explain, not_a_page_blob
from blobfuse_dysk.azure.wire import BlobProperties
from blobfuse_dysk.disk import MAX_SIZE, DiskAddress
from blobfuse_dysk.errors import Kind, StoreError, UsageError
from blobfuse_dysk.store.contract import PAGE

__all__ = ["check_blob", "errors_for_people"]


def check_blob(blob: BlobProperties, address: DiskAddress) -> None:
    """Raise UsageError unless the blob can be a disk."""
    if blob.blob_type != "PageBlob":
        raise not_a_page_blob(address, blob.blob_type)
    if blob.size <= 0 or blob.size % PAGE:
        raise UsageError(f"{address} has {blob.size} bytes", remedy="resize it to a multiple of 512 bytes")
    if blob.size > MAX_SIZE:
        raise UsageError(f"{address} has {blob.size} bytes, above the 8 TiB of a page blob")


@contextmanager
def errors_for_people(address: DiskAddress, credential: Credential | None, *, read_only: bool) -> Iterator[None]:
    """While attaching: what the service refused becomes a CredentialError, NotFoundError and so on, with a remedy."""
    try:
        yield
    except StoreError as error:
        if error.kind is Kind.FENCED:
            raise  # about this attachment's past, not about the request that brought it to light
        found = explain(error, address, credential, needs="r" if read_only else "rw")
        if found is error:
            raise
        raise found from error
