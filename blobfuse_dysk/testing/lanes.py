"""Calls a store as the worker does where it can: in the plain lane. See blobfuse_dysk/store/passage.py."""

from __future__ import annotations

import contextlib

import outcome
import trio

from blobfuse_dysk.clock import bound_clock
from blobfuse_dysk.store.contract import Buffer, Extent, Store
from blobfuse_dysk.store.passage import DONE, NO, Lane, Passage, Rest, launch

__all__ = ["LaneStore"]


class LaneStore(Store):
    """Makes every read and write of `inner` in its plain lane, those that are not for it in the usual way.

    nursery: where what is left of a call is run. A call that is cancelled goes on by itself. passed, handed_over: how
    many calls went through a lane, and of how many something was left.
    """

    def __init__(self, inner: Store, nursery: trio.Nursery) -> None:
        self._inner = inner
        self._nursery = nursery
        self._now = bound_clock()
        self.passed = self.handed_over = 0

    @property
    def size(self) -> int:
        return self._inner.size

    async def read(self, offset: int, length: int) -> Buffer:
        passage = self._begin(self._inner.plain_read, offset, length, None)
        if passage is None:
            return await self._inner.read(offset, length)
        await trio.lowlevel.checkpoint()
        await passage.tag.done.wait()
        data: Buffer = passage.tag.result.unwrap()
        return data

    async def write(self, offset: int, data: Buffer) -> None:
        passage = self._begin(self._inner.plain_write, offset, len(data), bytes(data))
        if passage is None:
            await self._inner.write(offset, data)
        else:
            await trio.lowlevel.checkpoint()
            await passage.tag.done.wait()
            passage.tag.result.unwrap()

    async def zero(self, offset: int, length: int) -> None:
        await self._inner.zero(offset, length)

    async def flush(self) -> None:
        await self._inner.flush()

    async def extents(self, offset: int, length: int) -> list[Extent]:
        return await self._inner.extents(offset, length)

    async def grow(self, size: int) -> None:
        await self._inner.grow(size)

    async def aclose(self) -> None:
        await self._inner.aclose()

    def _begin(self, lane: Lane | None, offset: int, length: int, data: Buffer | None) -> Passage | None:
        if lane is None:
            return None
        passage = Passage(lane, self, _Call(), offset, length, data, self._now())
        began = launch(passage)
        self.passed += began != NO
        if began == DONE:
            self.ended(passage)
        return passage if began != NO else None

    def ended(self, passage: Passage) -> None:
        """See Owner."""
        self._end(passage, outcome.Value(passage.result))

    def take_over(self, passage: Passage, rest: Rest) -> None:
        """See Owner."""
        self.handed_over += 1
        if self._nursery.cancel_scope.cancel_called:  # who called is gone, and what is left of the call with it
            trio.lowlevel.spawn_system_task(_give_up, rest)
        else:
            self._nursery.start_soon(self._run, passage, rest)

    async def _run(self, passage: Passage, rest: Rest) -> None:
        try:
            result = await rest
        except Exception as error:
            self._end(passage, outcome.Error(error))
        else:
            self._end(passage, outcome.Value(result))

    def _end(self, passage: Passage, result: outcome.Outcome[Buffer | None]) -> None:
        call: _Call = passage.tag
        assert call.result is None, "a call has ended twice"
        call.result = result
        call.done.set()


async def _give_up(rest: Rest) -> None:
    """Have it end as a task that was cancelled."""
    with trio.CancelScope() as scope, contextlib.suppress(Exception):
        scope.cancel()
        await rest


class _Call:
    def __init__(self) -> None:
        self.done = trio.Event()
        self.result: outcome.Outcome[Buffer | None] | None = None
