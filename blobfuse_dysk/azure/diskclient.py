"""A disk as a whole, as the service shows it: made, copied, deleted. Each method is one operation, once.

Beside BlobClient, which has what an attached disk needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from blobfuse_dysk.azure.blob import BlobClient
from blobfuse_dysk.azure.wire import API_VERSION, Condition, Request

__all__ = ["NEW", "DiskClient"]

NEW = Condition(if_none_match="*")
_TYPE = {"x-ms-blob-type": "PageBlob"}


class DiskClient(BlobClient):
    """A page blob or a snapshot of one. Errors, units and what may run at the same time: as for BlobClient.

    metadata: names as C# identifiers, values as a header may hold them.
    """

    def at(self, snapshot: str) -> DiskClient:
        """A client of a snapshot of the same disk, on the same connections; to be used while this one is open."""
        return DiskClient(replace(self.address, snapshot=snapshot), self.credential, pool=self._pool)

    async def create(self, size: int, metadata: Mapping[str, str], *, tier: str | None, timeout_s: float) -> None:
        """Put Blob: an empty page blob. One that is there is refused (409 BlobAlreadyExists) and not touched."""
        headers = {**_TYPE, "x-ms-blob-content-length": str(size), **_tier(tier)}
        await self._ask_with_metadata(self._made_with(headers, metadata), 201, "creation", timeout_s)

    async def create_container(self, *, timeout_s: float) -> None:
        """Create Container: the one of the address. One that is there is refused (409 ContainerAlreadyExists)."""
        endpoint, version = self.address.endpoint, f"x-ms-version:{API_VERSION}\n"
        assert endpoint is not None
        path = f"{endpoint.path}/{self.address.container}"
        resource = f"{path}\nrestype:container"
        request = Request("PUT", path, "restype=container", resource, "", version, self._requests.common)
        await self._ask(request, 201, "creation of the container", timeout_s)

    async def copy_from(
        self,
        source: Mapping[str, str],
        metadata: Mapping[str, str],
        *,
        tier: str | None,
        source_etag: str,
        timeout_s: float,
    ) -> None:
        """Copy Blob: the service begins to copy, while the source has this ETag. One that is there is refused.

        source: the headers that name it and let it be read. metadata: must not be empty, else the source's is taken.
        How far the copy is: BlobProperties.copy. It has the source's sequence number.
        """
        headers = {**source, "x-ms-source-if-match": source_etag, **_tier(tier)}
        await self._ask_with_metadata(self._made_with(headers, metadata), 202, "copy", timeout_s)

    async def abort_copy(self, copy_id: str, *, timeout_s: float) -> None:
        """Abort Copy Blob: the blob has no bytes then. 409 NoPendingCopyOperation if it has ended."""
        query = [("comp", "copy"), ("copyid", copy_id)]
        request = self._requests.general("PUT", query, {"x-ms-copy-action": "abort"})
        await self._ask(request, 204, "abort of the copy", timeout_s)

    async def put_pages_from(
        self, offset: int, length: int, source: Mapping[str, str], *, source_etag: str, epoch: int, timeout_s: float
    ) -> None:
        """Put Page From URL: the same range of the source, at most 4 MiB, while that has this ETag.

        source: as for copy_from. epoch: done only if the blob's sequence number equals it (else 412).
        """
        span = f"bytes={offset}-{offset + length - 1}"
        headers = {
            **source,
            "x-ms-if-sequence-number-eq": str(epoch),
            "x-ms-page-write": "update",
            "x-ms-range": span,
            "x-ms-source-if-match": source_etag,
            "x-ms-source-range": span,
        }
        await self._ask(self._requests.general("PUT", [("comp", "page")], headers), 201, "copy of pages", timeout_s)

    async def delete(self, *, condition: Condition | None = None, timeout_s: float) -> None:
        """Delete Blob: the snapshot, or the blob, if that has no snapshots."""
        request = self._requests.general("DELETE", [], {}, None, condition)
        await self._ask(request, 202, "deletion", timeout_s)

    def _made_with(self, headers: Mapping[str, str], metadata: Mapping[str, str]) -> Callable[..., Request]:
        """What makes the request that makes the blob, with this metadata, signed in one way or the other."""
        wanted = {**headers, **{f"x-ms-meta-{name}": value for name, value in metadata.items()}}
        return partial(self._requests.general, "PUT", [], wanted, None, NEW)


def _tier(tier: str | None) -> dict[str, str]:
    return {"x-ms-access-tier": tier} if tier else {}
