"""The top of the stack: counts and times what the device asks for, and fails at once what is not to be done any more.

Theory. Layers below answer some calls by themselves (Sparse knows zeros), so a fence at the bottom does not stop all of
them. Here is the latch: it closes when Fence says so, or when the first Kind.FENCED comes up, and never opens again.
From then on every call fails in the same step in which it starts. A disk that failed for another reason has a latch of
its own, which stops what modifies or promises durability; what can still be read may be worth reading.
"""

from __future__ import annotations

from collections.abc import Awaitable

from blobfuse_dysk.errors import Kind, StoreError
from blobfuse_dysk.invariant import broken
from blobfuse_dysk.store.contract import Buffer, Extent, Store
from blobfuse_dysk.store.parts.meter import Meter
from blobfuse_dysk.store.passage import DONE, NO, Passage, Rest, begin_of

__all__ = ["Front"]


class Front(Store):
    """What a device is put on."""

    def __init__(self, inner: Store, meter: Meter) -> None:
        self._meter = meter
        self._latched: str | None = None
        self._refusal: StoreError | None = None
        self.stand_on(inner)

    @property
    def size(self) -> int:
        """The inner one's."""
        return self._inner.size

    def stand_on(self, inner: Store) -> None:
        """Pass calls to this store from the next one on. It has the same content: Trace, or what is below that."""
        self._inner = inner
        read, write = inner.plain_read, inner.plain_write
        self.plain_read = read and read.under(self._begin_read, self._end_read, self._rest_of_read)
        self.plain_write = write and write.under(self._begin_write, self._end_write, self._rest_of_write)
        self._begin_read_below, self._begin_write_below = begin_of(read), begin_of(write)

    def latch(self, reason: str) -> None:
        """Let every call from now on fail with Kind.FENCED."""
        if self._latched is None:
            self._latched = reason

    def refuse_writes(self, reason: StoreError) -> None:
        """Let every write, zero, flush and grow from now on fail with it."""
        if self._refusal is None:
            self._refusal = reason

    async def read(self, offset: int, length: int) -> Buffer:
        """Pass, counted."""
        return await self._read(offset, length, self._start(), self._inner.read(offset, length))

    async def write(self, offset: int, data: Buffer) -> None:
        """Pass, counted."""
        await self._write(len(data), self._start_modifying(), self._inner.write(offset, data))

    async def zero(self, offset: int, length: int) -> None:
        """Pass, counted."""
        started = self._start_modifying()
        try:
            await self._inner.zero(offset, length)
        except BaseException as error:
            self._failed("zero", error)
            raise
        self._meter.success("zero", length, started)

    async def flush(self) -> None:
        """Pass, counted."""
        started = self._start_modifying()
        try:
            await self._inner.flush()
        except BaseException as error:
            self._failed("flush", error)
            raise
        self._meter.success("flush", 0, started)

    async def extents(self, offset: int, length: int) -> list[Extent]:
        """Pass."""
        self._check()
        return await self._inner.extents(offset, length)

    async def grow(self, size: int) -> None:
        """Pass."""
        self._check()
        self._check_refusal()
        await self._inner.grow(size)

    async def aclose(self) -> None:
        """Close the layer below."""
        await self._inner.aclose()

    async def _read(self, offset: int, length: int, started: float, call: Awaitable[Buffer]) -> Buffer:
        try:
            data = await call
        except BaseException as error:
            self._failed("read", error)
            raise
        if len(data) != length:
            broken(f"a read of {length} bytes at {offset} has {len(data)}")
        self._meter.success("read", length, started)
        return data

    async def _write(self, length: int, started: float, call: Awaitable[None]) -> None:
        try:
            await call
        except BaseException as error:
            self._failed("write", error)
            raise
        self._meter.success("write", length, started)

    # -- the plain lane (passage.py) --

    def _begin_read(self, passage: Passage) -> int:
        if self._latched is not None:
            return NO
        began = self._begin_read_below(passage)
        if began:
            self._meter.in_flight += 1
            if began == DONE:
                passage.ended = passage.started
                self._end_read(passage)
        return began

    def _end_read(self, passage: Passage) -> None:
        if passage.result is None or len(passage.result) != passage.length:
            broken(f"a read of {passage.length} bytes at {passage.offset} has others")
        self._meter.success_at("read", passage.length, passage.started, passage.ended)

    def _rest_of_read(self, passage: Passage, rest: Rest) -> Rest:
        return self._read(passage.offset, passage.length, passage.started, rest)

    def _begin_write(self, passage: Passage) -> int:
        if self._latched is not None or self._refusal is not None:
            return NO
        began = self._begin_write_below(passage)
        if began:
            self._meter.in_flight += 1
            if began == DONE:
                self._meter.success("write", passage.length, passage.started)
        return began

    def _end_write(self, passage: Passage) -> None:
        self._meter.success_at("write", passage.length, passage.started, passage.ended)

    def _rest_of_write(self, passage: Passage, rest: Rest) -> Rest:
        return self._write(passage.length, passage.started, rest)

    def _check(self) -> None:
        if self._latched is not None:
            raise StoreError(self._latched, Kind.FENCED)

    def _check_refusal(self) -> None:
        if self._refusal is not None:
            raise self._refusal.afresh()

    def _start(self) -> float:
        self._check()
        return self._meter.start()

    def _start_modifying(self) -> float:
        self._check()
        self._check_refusal()
        return self._meter.start()

    def _failed(self, name: str, error: BaseException) -> None:
        self._meter.failure(name, error)
        if isinstance(error, StoreError) and error.kind is Kind.FENCED:
            self.latch(str(error))
