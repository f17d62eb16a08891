"""Calls a store as the worker does: by tasks that are detached from trio's scheduler. See blobfuse_dysk/detached.py."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import outcome
import trio

from blobfuse_dysk.detached import Detached, attach, running
from blobfuse_dysk.store.contract import Buffer, Extent, Store

__all__ = ["DetachedStore", "as_the_quick_way", "in_a_detached_task"]

T = TypeVar("T")


class _Call:
    """One call: what to do, by whom, what came of it."""

    def __init__(self, call: Callable[[], Awaitable[Any]]) -> None:
        self.call = call
        self.by: Detached | None = None
        self.done = trio.Event()
        self.result: outcome.Outcome[Any] | None = None
        self.scope = trio.CancelScope()


class DetachedStore(Store):
    """Makes every read, write, zero and flush of `inner` in a detached task. nursery: where those run."""

    def __init__(self, inner: Store, nursery: trio.Nursery) -> None:
        self._inner = inner
        self._nursery = nursery

    @property
    def size(self) -> int:
        return self._inner.size

    async def read(self, offset: int, length: int) -> Buffer:
        data: Buffer = await in_a_detached_task(self._nursery, lambda: self._inner.read(offset, length))
        return data

    async def write(self, offset: int, data: Buffer) -> None:
        await in_a_detached_task(self._nursery, lambda: self._inner.write(offset, data))

    async def zero(self, offset: int, length: int) -> None:
        await in_a_detached_task(self._nursery, lambda: self._inner.zero(offset, length))

    async def flush(self) -> None:
        await in_a_detached_task(self._nursery, self._inner.flush)

    async def extents(self, offset: int, length: int) -> list[Extent]:
        return await self._inner.extents(offset, length)

    async def grow(self, size: int) -> None:
        await self._inner.grow(size)

    async def aclose(self) -> None:
        await self._inner.aclose()


async def in_a_detached_task(nursery: trio.Nursery, call: Callable[[], Awaitable[T]]) -> T:
    """What `call` returns, or raises, when a detached task of this nursery makes it. Cancelled, it cancels that."""
    made, there = _Call(call), trio.Event()
    nursery.start_soon(_serve, made, there)
    await there.wait()
    assert made.by
    made.by.go_on(None)
    try:
        await made.done.wait()
    except trio.Cancelled:
        made.scope.cancel()
        with trio.CancelScope(shield=True):
            await made.done.wait()
        raise
    assert made.result
    result: T = made.result.unwrap()
    return result


async def _serve(made: _Call, there: trio.Event) -> None:
    """Make one call, from its first step on in the step of who has something for it."""
    made.by = Detached()
    there.set()
    with made.scope:
        await made.by.wait(lambda: None)
        try:
            made.result = outcome.Value(await made.call())
        except Exception as error:
            made.result = outcome.Error(error)
        await attach()
    made.done.set()


async def as_the_quick_way(nursery: trio.Nursery, call: Callable[[], Awaitable[T]]) -> T:
    """What a client's call does in a detached task: a success has it go on at once, anything else by trio's scheduler.

    See azure/plain.py. nursery: where the call is carried out meanwhile; if the task is cancelled, so is that.
    """
    me = running()
    if me is None:
        return await call()
    scope = trio.CancelScope()

    async def carry_out() -> None:
        with scope:
            try:
                result = await call()
            except Exception as error:
                me.wake(outcome.Error(error))
            else:
                me.go_on(result)

    nursery.start_soon(carry_out)
    found: T = await me.wait(scope.cancel)
    return found
