"""A node's way to a simulated blob, which loses, delays and repeats its requests. See simblob.py."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import trio

from blobfuse_dysk.azure.plainway import Then
from blobfuse_dysk.azure.wire import BlobProperties, Condition, PageList, SequenceNumber
from blobfuse_dysk.errors import GatewayError, ServiceError, TransportError
from blobfuse_dysk.store.contract import PAGE, Buffer
from blobfuse_dysk.testing.detached import as_the_quick_way
from blobfuse_dysk.testing.fates import FATE, Fate, Refused
from blobfuse_dysk.testing.simblob import SimBlob

__all__ = ["SimClient"]

T = TypeVar("T")
_Flying = tuple[int, tuple[int, int]]
"""The serial number of a modifying request, and its range: start, end."""


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

    def begin_get(self, then: Then, timeout_s: float) -> bool:
        return self._begin(then, self._send("get", lambda: self.blob.get(then.offset, then.length), timeout_s))

    def begin_put(self, then: Then, data: Buffer, lease_id: str | None, epoch: int | None, timeout_s: float) -> bool:
        flying = self._depart(then.offset, then.length)
        return self._begin(then, self._fly(flying, self._send, "put", bytes(data), lease_id, epoch, timeout_s))

    def _begin(self, then: Then, call: Coroutine[Any, Any, Any]) -> bool:
        """Have a call made that nobody waits for, as azure/plainway.py does it."""

        async def carry_out() -> None:
            try:
                result = await call
            except Exception as error:
                then.hand_over(_raising(error))
            else:
                then.succeed(result, trio.current_time())

        self.nursery.start_soon(carry_out)
        return True

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

    async def set_content(
        self, content: Mapping[str, str], *, lease_id: str | None, condition: Condition, timeout_s: float
    ) -> str:
        return await self._ask("content", lambda: self.blob.set_content(content, lease_id, condition), timeout_s)

    async def snapshot(
        self, metadata: Mapping[str, str], *, lease_id: str | None, condition: Condition | None = None, timeout_s: float
    ) -> str:
        return await self._ask("snapshot", lambda: self.blob.snapshot(metadata, lease_id, condition), timeout_s)

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
        flying = self._depart(offset, length)
        await self._fly(flying, self._ask, name, data, lease_id, epoch, timeout_s)

    def _depart(self, offset: int, length: int) -> _Flying:
        """Note that a modifying request is sent."""
        self._serial += 1
        mine = (offset, offset + length)
        self.overlaps += [(other, mine) for other in self._flying if other[0] < mine[1] and mine[0] < other[1]]
        self._flying.append(mine)
        self._newest.update(dict.fromkeys(range(offset // PAGE, (offset + length) // PAGE), self._serial))
        return self._serial, mine

    async def _fly(
        self,
        flying: _Flying,
        ask: Callable[..., Awaitable[None]],
        name: str,
        data: bytes | None,
        lease_id: str | None,
        epoch: int | None,
        timeout_s: float,
    ) -> None:
        serial, mine = flying

        def done() -> None:
            start, end = mine
            self.blob.put(self.name, start, data, end - start, lease_id, epoch)
            if any(self._newest[page] > serial for page in range(start // PAGE, end // PAGE)):
                self.stragglers.append(mine)

        try:
            await ask(name, done, timeout_s)
        finally:
            self._flying.remove(mine)

    async def _ask(self, name: str, request: Callable[[], T], timeout_s: float) -> T:
        return await as_the_quick_way(self.nursery, lambda: self._send(name, request, timeout_s))

    async def _send(self, name: str, request: Callable[[], T], timeout_s: float) -> T:
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


async def _raising(error: Exception) -> None:
    raise error
