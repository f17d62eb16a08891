"""What the block layer needs of a page blob's client: azure.blob.BlobClient, or a simulated one in tests.

Every method is one request and one attempt. It raises ServiceError (the service refused) or TransportError (no whole
answer came within timeout_s) and nothing else. Offsets, lengths and sizes are bytes, times seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from blobfuse_dysk.azure.plainway import Then
from blobfuse_dysk.azure.wire import BlobProperties, Condition, PageList, SequenceNumber
from blobfuse_dysk.store.contract import Buffer

__all__ = ["BlobApi"]


class BlobApi(Protocol):
    """One page blob, or one snapshot of it."""

    async def get_range(self, offset: int, length: int, *, timeout_s: float) -> Buffer: ...

    async def put_pages(
        self, offset: int, data: Buffer, *, lease_id: str | None, epoch: int | None, timeout_s: float
    ) -> None: ...

    def begin_get(self, then: Then, timeout_s: float) -> bool:
        """get_range of then's range, if there is nothing to be waited for but the answer; False: nothing was done."""

    def begin_put(self, then: Then, data: Buffer, lease_id: str | None, epoch: int | None, timeout_s: float) -> bool:
        """put_pages, likewise."""

    async def clear_pages(
        self, offset: int, length: int, *, lease_id: str | None, epoch: int | None, timeout_s: float
    ) -> None: ...

    async def page_ranges(
        self,
        offset: int,
        length: int,
        *,
        marker: str | None = None,
        max_results: int | None = None,
        timeout_s: float,
    ) -> PageList: ...

    async def properties(self, *, timeout_s: float) -> BlobProperties: ...

    async def raise_sequence_number(
        self, value: int, *, lease_id: str | None, condition: Condition | None = None, timeout_s: float
    ) -> SequenceNumber: ...

    async def resize(self, size: int, *, lease_id: str | None, condition: Condition, timeout_s: float) -> None: ...

    async def acquire_lease(
        self, duration_s: int, *, proposed_id: str | None, condition: Condition | None = None, timeout_s: float
    ) -> str: ...

    async def renew_lease(self, lease_id: str, *, timeout_s: float) -> None: ...

    async def release_lease(self, lease_id: str, *, condition: Condition | None = None, timeout_s: float) -> None: ...

    async def break_lease(self, *, period_s: int = 0, condition: Condition | None = None, timeout_s: float) -> None: ...

    async def set_metadata(
        self, metadata: Mapping[str, str], *, lease_id: str | None, condition: Condition | None = None, timeout_s: float
    ) -> str: ...

    async def set_content(
        self, content: Mapping[str, str], *, lease_id: str | None, condition: Condition, timeout_s: float
    ) -> str: ...

    async def snapshot(
        self, metadata: Mapping[str, str], *, lease_id: str | None, condition: Condition | None = None, timeout_s: float
    ) -> str: ...

    def hurry(self, timeout_s: float) -> None:
        """Let no call whose request is on its way now take longer than timeout_s from now."""

    async def aclose(self) -> None: ...
