"""A page blob in memory as the service behaves, and clients that lose, delay and repeat their requests.

For tests under trio's MockClock: no sockets, all time is trio.current_time(). `SimBlob` is the service's side: pages,
lease, sequence number, each request done in one step or refused with the service's own codes. `SimClient` is one
node's way to it (a store.blobapi.BlobApi). A request, once sent, lives on by itself: whether the client was cancelled,
timed out or lost its connection, the service does it when it arrives, or refuses it then. That is where
stragglers come from.

Source of the lease's rules: the two tables of outcomes in
https://learn.microsoft.com/rest/api/storageservices/lease-blob
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import trio

from blobfuse_dysk.azure.signing import http_date, parse_http_date
from blobfuse_dysk.azure.wire import BlobProperties, Condition, PageList, SequenceNumber
from blobfuse_dysk.errors import GatewayError, ServiceError, TransportError
from blobfuse_dysk.store.contract import PAGE, Buffer, Extent
from blobfuse_dysk.testing.fates import FATE, Fate, Refused, Write, refuse
from blobfuse_dysk.testing.memory import MemoryStore

__all__ = ["SimBlob", "SimClient"]

T = TypeVar("T")


class SimBlob:
    """The service's side of one page blob. No method awaits. clock: seconds, of the lease's term."""

    def __init__(self, size: int, clock: Callable[[], float] = trio.current_time) -> None:
        self.size = size
        self.shrunk = False  # whether a request made it smaller
        self._clock = clock
        self.store = MemoryStore(size)
        self.allocated: set[int] = set()
        self.number = 0
        self.metadata: dict[str, str] = {}
        self.blob_type = "PageBlob"
        self.gone = False
        self.list_most = 5000
        self.lists_time_out_above = math.inf
        self.writes: list[Write] = []
        self.version = 1
        self.modified_at = 0.0
        self._lease_id: str | None = None
        self._lease_state = "available"
        self._lease_s = math.inf
        self._lease_ends = -math.inf

    @property
    def etag(self) -> str:
        """Another one after every modification; lease operations leave it."""
        return f'"0x{self.version:X}"'

    @property
    def lease_id(self) -> str | None:
        """Of the lease that is held, or was; None once it is released or forgotten."""
        return self._lease_id

    @property
    def lease_s(self) -> float:
        """The term of the lease that is held, or was: infinite or in seconds."""
        return self._lease_s

    @property
    def lease_state(self) -> str:
        """available, leased, expired or broken."""
        if self._lease_state == "leased" and self._clock() >= self._lease_ends:
            self._lease_state = "expired"
        return self._lease_state

    def put(
        self, client: str, offset: int, data: bytes | None, length: int, lease_id: str | None, epoch: int | None
    ) -> None:
        """Put Page: update, or clear when data is None."""
        code = ""
        try:
            self._may_write(lease_id)
            if offset + length > self.size:
                raise refuse(416, "InvalidPageRange")
            if epoch is not None and epoch != self.number:
                raise refuse(412, "SequenceNumberConditionNotMet")
        except ServiceError as error:
            code = error.code
            raise
        finally:
            self.writes.append(Write(client, offset, length, lease_id, epoch, trio.current_time(), code))
        self._modified()
        pages = range(offset // PAGE, (offset + length) // PAGE)
        if data is None:
            self.store.wipe(offset, length)
            self.allocated.difference_update(pages)
        else:
            self.store.poke(offset, data)
            self.allocated.update(pages)

    def get(self, offset: int, length: int) -> bytes:
        """Get Blob."""
        self._exists()
        if offset + length > self.size:
            raise refuse(416, "InvalidRange")
        return self.store.peek(offset, length)

    def list(self, offset: int, length: int, marker: str | None, most: int | None) -> PageList:
        """Get Page Ranges; the marker is the offset at which to go on."""
        self._exists()
        if length > self.lists_time_out_above:
            raise refuse(500, "OperationTimedOut")
        start = offset if marker is None else int(marker)
        ranges: list[Extent] = []
        for page in sorted(self.allocated):
            at = page * PAGE
            if not start <= at < offset + length:
                continue
            if ranges and ranges[-1][0] + ranges[-1][1] == at:
                ranges[-1] = (ranges[-1][0], ranges[-1][1] + PAGE)
            elif len(ranges) == min(most or self.list_most, self.list_most):
                return PageList(ranges, str(at))
            else:
                ranges.append((at, PAGE))
        return PageList(ranges, None)

    @property
    def lease_duration(self) -> str:
        """infinite, fixed, or '' without a lease."""
        return "" if self.lease_state != "leased" else "infinite" if self._lease_s == math.inf else "fixed"

    def properties(self) -> BlobProperties:
        """Get Blob Properties."""
        self._exists()
        return BlobProperties(
            size=self.size,
            blob_type=self.blob_type,
            sequence_number=self.number,
            lease_state=self.lease_state,
            metadata=dict(self.metadata),
            etag=self.etag,
            last_modified=http_date(self.modified_at),
        )

    def raise_number(self, value: int, lease_id: str | None, condition: Condition | None = None) -> SequenceNumber:
        """Set Blob Properties, action max."""
        self._check(condition)
        self._may_write(lease_id)
        self._modified()
        self.number = max(self.number, value)
        return SequenceNumber(self.number, self.etag)

    def resize(self, size: int, lease_id: str | None, condition: Condition | None = None) -> None:
        """Set Blob Properties with a size: smaller or larger, and what is cut off is gone."""
        self._check(condition)
        self._may_write(lease_id)
        self._modified()
        self.shrunk |= size < self.size
        self.size = size
        self.store.resize(size)
        self.allocated = {page for page in self.allocated if page * PAGE < size}

    def set_metadata(
        self, metadata: Mapping[str, str], lease_id: str | None, condition: Condition | None = None
    ) -> str:
        """Set Blob Metadata."""
        self._check(condition)
        self._may_write(lease_id)
        self._modified()
        self.metadata = dict(metadata)
        return self.etag

    def acquire(self, duration_s: int, lease_id: str, condition: Condition | None = None) -> str:
        """Lease Blob, acquire."""
        self._exists()
        self._check(condition)
        if self.lease_state == "leased" and self._lease_id != lease_id:
            raise refuse(409, "LeaseAlreadyPresent")
        self._lease_id, self._lease_state = lease_id, "leased"
        self._lease_s = math.inf if duration_s == -1 else duration_s
        self._lease_ends = self._clock() + self._lease_s
        return lease_id

    def renew(self, lease_id: str) -> None:
        """Lease Blob, renew: also an expired lease, unless the blob was leased or changed since."""
        self._exists()
        if self._lease_id != lease_id:
            raise refuse(409, "LeaseIdMismatchWithLeaseOperation")
        if self.lease_state == "broken":
            raise refuse(409, "LeaseIsBrokenAndCannotBeRenewed")
        self._lease_state = "leased"
        self._lease_ends = self._clock() + self._lease_s

    def release(self, lease_id: str, condition: Condition | None = None) -> None:
        """Lease Blob, release."""
        self._exists()
        self._check(condition)
        if self._lease_id != lease_id:
            raise refuse(409, "LeaseIdMismatchWithLeaseOperation")
        self._lease_id, self._lease_state = None, "available"

    def break_now(self, condition: Condition | None = None) -> None:
        """Lease Blob, break with a period of 0."""
        self._exists()
        self._check(condition)
        if self._lease_id is None:
            raise refuse(409, "LeaseNotPresentWithLeaseOperation")
        self._lease_state = "broken"

    def _exists(self) -> None:
        if self.gone:
            raise refuse(404, "BlobNotFound")

    def _check(self, condition: Condition | None) -> None:
        if condition is None:
            return
        until = parse_http_date(condition.if_unmodified_since)
        if (condition.if_match and condition.if_match != self.etag) or (
            until is not None and int(self.modified_at) > until
        ):
            raise refuse(412, "ConditionNotMet")

    def _may_write(self, lease_id: str | None) -> None:
        self._exists()
        if self.lease_state == "leased":
            if lease_id is None:
                raise refuse(412, "LeaseIdMissing")
            if lease_id != self._lease_id:
                raise refuse(412, "LeaseIdMismatchWithBlobOperation")
        elif lease_id is not None:
            raise refuse(412, "LeaseLost" if lease_id == self._lease_id else "LeaseNotPresentWithBlobOperation")

    def _modified(self) -> None:
        """Another ETag; and a change without a lease makes the service forget an expired one: no renewal any more."""
        self.version += 1
        self.modified_at = trio.current_time()
        if self.lease_state in ("expired", "broken"):
            self._lease_id, self._lease_state = None, "available"


@dataclass
class SimClient:
    """One node's client. fate: (name of the operation) -> what becomes of the request. name: for the records.

    nursery: the network, where requests under way live; it must outlive the clients. down: nothing gets out and no
    answer comes in. overlaps: pairs of modifying requests that were in flight at once on overlapping ranges.
    stragglers: ranges of requests that were done after a later one on an overlapping range had been sent. Both lists
    stay empty if the layers above do what they promise.
    """

    blob: SimBlob
    nursery: trio.Nursery
    fate: Callable[[str], Fate] = lambda name: FATE
    name: str = "node"
    down: bool = False
    sent: list[str] = field(default_factory=list)
    overlaps: list[tuple[tuple[int, int], tuple[int, int]]] = field(default_factory=list)
    stragglers: list[tuple[int, int]] = field(default_factory=list)
    _flying: list[tuple[int, int]] = field(default_factory=list)
    _newest: dict[int, int] = field(default_factory=dict)  # page -> serial of the last request sent for it
    _serial: int = 0
    _scopes: set[trio.CancelScope] = field(default_factory=set)

    async def get_range(self, offset: int, length: int, *, timeout_s: float) -> Buffer:
        return await self._ask("get", lambda: self.blob.get(offset, length), timeout_s)

    async def put_pages(
        self, offset: int, data: Buffer, *, lease_id: str | None, epoch: int | None, timeout_s: float
    ) -> None:
        copy = bytes(data)
        await self._modify("put", offset, copy, len(copy), lease_id, epoch, timeout_s)

    async def clear_pages(
        self, offset: int, length: int, *, lease_id: str | None, epoch: int | None, timeout_s: float
    ) -> None:
        await self._modify("clear", offset, None, length, lease_id, epoch, timeout_s)

    async def page_ranges(
        self,
        offset: int,
        length: int,
        *,
        marker: str | None = None,
        max_results: int | None = None,
        timeout_s: float,
    ) -> PageList:
        return await self._ask("list", lambda: self.blob.list(offset, length, marker, max_results), timeout_s)

    async def properties(self, *, timeout_s: float) -> BlobProperties:
        return await self._ask("properties", self.blob.properties, timeout_s)

    async def raise_sequence_number(
        self, value: int, *, lease_id: str | None, condition: Condition | None = None, timeout_s: float
    ) -> SequenceNumber:
        return await self._ask("raise", lambda: self.blob.raise_number(value, lease_id, condition), timeout_s)

    async def resize(self, size: int, *, lease_id: str | None, condition: Condition, timeout_s: float) -> None:
        await self._ask("resize", lambda: self.blob.resize(size, lease_id, condition), timeout_s)

    async def acquire_lease(
        self, duration_s: int, *, proposed_id: str | None, condition: Condition | None = None, timeout_s: float
    ) -> str:
        assert proposed_id is not None
        return await self._ask("acquire", lambda: self.blob.acquire(duration_s, proposed_id, condition), timeout_s)

    async def renew_lease(self, lease_id: str, *, timeout_s: float) -> None:
        await self._ask("renew", lambda: self.blob.renew(lease_id), timeout_s)

    async def release_lease(self, lease_id: str, *, condition: Condition | None = None, timeout_s: float) -> None:
        await self._ask("release", lambda: self.blob.release(lease_id, condition), timeout_s)

    async def break_lease(self, *, period_s: int = 0, condition: Condition | None = None, timeout_s: float) -> None:
        assert period_s == 0
        await self._ask("break", lambda: self.blob.break_now(condition), timeout_s)

    async def set_metadata(
        self, metadata: Mapping[str, str], *, lease_id: str | None, condition: Condition | None = None, timeout_s: float
    ) -> str:
        return await self._ask("metadata", lambda: self.blob.set_metadata(metadata, lease_id, condition), timeout_s)

    def hurry(self, timeout_s: float) -> None:
        for scope in self._scopes:
            scope.deadline = min(scope.deadline, trio.current_time() + timeout_s)

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()

    async def _modify(
        self,
        name: str,
        offset: int,
        data: bytes | None,
        length: int,
        lease_id: str | None,
        epoch: int | None,
        timeout_s: float,
    ) -> None:
        self._serial += 1
        serial, mine = self._serial, (offset, offset + length)
        pages = range(offset // PAGE, (offset + length) // PAGE)

        def done() -> None:
            self.blob.put(self.name, offset, data, length, lease_id, epoch)
            if any(self._newest[page] > serial for page in pages):
                self.stragglers.append(mine)

        self.overlaps += [(other, mine) for other in self._flying if other[0] < mine[1] and mine[0] < other[1]]
        self._flying.append(mine)
        self._newest.update(dict.fromkeys(pages, serial))
        try:
            await self._ask(name, done, timeout_s)
        finally:
            self._flying.remove(mine)

    async def _ask(self, name: str, request: Callable[[], T], timeout_s: float) -> T:
        self.sent.append(name)
        fate = self.fate(name)
        if fate.unsent:
            await trio.sleep(fate.before_s)
            raise TransportError(f"{name}: connection refused", sent=False)
        answer: list[T | Refused] = []
        arrived = trio.Event()
        if not self.down:
            self.nursery.start_soon(self._serve, request, fate, answer, arrived)
        if fate.early_error is not None:
            await trio.sleep(fate.after_s)
            raise fate.early_error
        with trio.move_on_after(timeout_s if self.down else min(timeout_s, fate.lost_s)) as scope:
            self._scopes.add(scope)
            try:
                await arrived.wait()
                await trio.sleep(fate.after_s)
                if not self.down:
                    result = answer[0]
                    if isinstance(result, Refused):
                        raise result
                    return result
                await trio.sleep_forever()
            finally:
                self._scopes.discard(scope)
        raise TransportError(f"{name}: connection lost", sent=True)

    async def _serve(
        self, request: Callable[[], T], fate: Fate, answer: list[T | Refused], arrived: trio.Event
    ) -> None:
        """The request's life on the network and at the service."""
        await trio.sleep(fate.before_s)
        try:
            if fate.error is not None:
                raise fate.error
            result = request()
            answer.append(fate.done_error if fate.done_error is not None else result)
        except (ServiceError, GatewayError) as error:
            answer.append(error)
        arrived.set()
