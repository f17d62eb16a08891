"""Keeps requests at the number and the rate that the service likes and the user allows, urgent ones first.

Theory: see limiter.py (turns, slots) and pacer.py (rates). Every data request waits for its turn here; lease and epoch
calls do not come this way. A refusal is Kind.THROTTLED. Kind.UNREACHABLE, unless it was only a stale connection, may
be a timeout, which is another way of the service to say that it is overrun; it says nothing about a rate. Retry-After
holds back the refused request (retry.py), and the whole disk where so much is refused that it must mean all: pacer.py.

The slot is returned in `finally` order, on cancellation too; Limiter has no await in between, so none is lost.
"""

from __future__ import annotations

from collections.abc import Awaitable
from functools import partial
from math import inf
from typing import TypeVar

from blobfuse_dysk.detached import attach
from blobfuse_dysk.errors import Kind, StoreError
from blobfuse_dysk.store.contract import Buffer, Extent, Store
from blobfuse_dysk.store.parts.backoff import MOST_RETRY_AFTER_S
from blobfuse_dysk.store.parts.limiter import Limiter
from blobfuse_dysk.store.parts.priority import Priority, current_priority
from blobfuse_dysk.store.passage import NO, Begin, Passage, Rest

__all__ = ["Throttle"]

T = TypeVar("T")


class Throttle(Store):
    """Limits the calls to `inner`. flush passes: it is no request."""

    def __init__(self, inner: Store, *, limiter: Limiter | None = None) -> None:
        self.throttled = 0
        self._inner = inner
        self._limiter = limiter or Limiter()
        read, write = inner.plain_read, inner.plain_write
        self.plain_read = read and read.under(partial(self._begin, read.begin), self._end, self._rest_of)
        self.plain_write = write and write.under(partial(self._begin, write.begin), self._end, self._rest_of)

    @property
    def size(self) -> int:
        """The inner one's."""
        return self._inner.size

    def status(self) -> dict[str, object]:
        """JSON-able: slots, waiting calls, refusals, how often slots were halved, and the rates in force (or None)."""
        limiter = self._limiter
        iops, bytes_per_s = limiter.pacer.operations.rate, limiter.pacer.bytes.rate
        return {
            "concurrency": int(limiter.limit),
            "waiting": limiter.waiting,
            "throttled": self.throttled,
            "cuts": limiter.cuts,
            "iops": None if iops == inf else round(iops),
            "mbps": None if bytes_per_s == inf else round(bytes_per_s / 1e6, 1),
        }

    async def read(self, offset: int, length: int) -> Buffer:
        """Read, in a slot."""
        started = self._limiter.enter_at_once(length)
        if started is None:
            started = await self._enter(Priority.READ, length)
        return await self._entered(started, length, self._inner.read(offset, length))

    async def write(self, offset: int, data: Buffer) -> None:
        """Write, in a slot."""
        length = len(data)
        started = self._limiter.enter_at_once(length)
        if started is None:
            started = await self._enter(Priority.FLUSH, length)
        await self._entered(started, length, self._inner.write(offset, data))

    async def zero(self, offset: int, length: int) -> None:
        """Zero, in a slot. A clear carries no data, whatever its length."""
        started = await self._enter(Priority.FLUSH)
        try:
            await self._inner.zero(offset, length)
            self._limiter.succeeded(started, 0)
        except StoreError as error:
            self._refused(error, started)
            raise
        finally:
            self._limiter.leave()

    async def flush(self) -> None:
        """Pass."""
        await self._inner.flush()

    async def extents(self, offset: int, length: int) -> list[Extent]:
        """Ask for extents, in a slot, however many requests that takes below; its time says nothing about load."""
        started = await self._enter(Priority.READ)
        try:
            return await self._inner.extents(offset, length)
        except StoreError as error:
            self._refused(error, started)
            raise
        finally:
            self._limiter.leave()

    async def grow(self, size: int) -> None:
        """Grow, in a slot, however many requests that takes below; its time says nothing about load."""
        started = await self._enter(Priority.FLUSH)
        try:
            await self._inner.grow(size)
        except StoreError as error:
            self._refused(error, started)
            raise
        finally:
            self._limiter.leave()

    async def aclose(self) -> None:
        """Close the layer below."""
        await self._inner.aclose()

    async def _entered(self, started: float, length: int, call: Awaitable[T]) -> T:
        try:
            result = await call
            self._limiter.succeeded(started, length)
            return result
        except StoreError as error:
            self._refused(error, started)
            raise
        finally:
            self._limiter.leave(length)

    # -- the plain lane (passage.py) --

    def _begin(self, below: Begin, passage: Passage) -> int:
        limiter, started, length = self._limiter, passage.started, passage.length
        if not limiter.may_start(length, started):
            return NO
        began = below(passage)
        if began:
            limiter.start(length, started)
        return began

    def _end(self, passage: Passage) -> None:
        self._limiter.succeeded_at(passage.started, passage.length, passage.ended)
        self._limiter.leave(passage.length)

    def _rest_of(self, passage: Passage, rest: Rest) -> Rest:
        return self._entered(passage.started, passage.length, rest)

    async def _enter(self, default: Priority, length: int = 0) -> float:
        """Wait for a slot. What the task asked for is in its own context, so it is attached before that is read."""
        await attach()
        return await self._limiter.enter(current_priority(default), length)

    def _refused(self, error: StoreError, started: float) -> None:
        if error.kind is Kind.THROTTLED:
            self.throttled += 1
            wait_s = None if error.retry_after_s is None else min(error.retry_after_s, MOST_RETRY_AFTER_S)
            self._limiter.refused(started, wait_s)
        elif error.kind is Kind.UNREACHABLE and not error.immediate:
            self._limiter.timed_out(started)
