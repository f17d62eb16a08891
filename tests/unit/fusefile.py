"""What stands in the place of BlockFile in tests of Requests, and of the service that it waits for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from blobfuse_dysk.detached import Detached, running
from blobfuse_dysk.store.contract import Buffer
from blobfuse_dysk.store.passage import Lane, Owner, Passage, Rest

__all__ = ["File", "Service", "at_once", "pattern"]


def pattern(size: int, seed: int = 1) -> bytes:
    """Other data for each seed, and in each block."""
    return (bytes(range(251)) * (size // 251 + 2))[seed : seed + size]


class Service:
    """What a request waits for, as for the plain answer of a blob service (azure/plain.py)."""

    def __init__(self) -> None:
        self.waiting: list[Detached | trio.lowlevel.Task] = []

    async def answer(self) -> None:
        me = running()
        if me is None:
            task = trio.lowlevel.current_task()
            self.waiting.append(task)

            def abort(_: object) -> trio.lowlevel.Abort:
                self.waiting.remove(task)
                return trio.lowlevel.Abort.SUCCEEDED

            await trio.lowlevel.wait_task_rescheduled(abort)
        else:
            self.waiting.append(me)
            await me.wait(lambda: self.waiting.remove(me))

    def go(self, count: int = 1000) -> None:
        for waiter in [self.waiting.pop(0) for _ in range(min(count, len(self.waiting)))]:
            if isinstance(waiter, Detached):
                waiter.go_on(None)
            else:
                trio.lowlevel.reschedule(waiter)


async def at_once() -> None:
    pass


class File:
    """In the place of BlockFile: what was asked of it."""

    def __init__(self) -> None:
        self.asked: list[tuple[object, ...]] = []
        self.data: list[Buffer] = []
        self.detached: list[bool] = []
        self.tasks: set[str] = set()
        self.answer: Callable[[], Awaitable[None]] = at_once
        self.lane: Lane | None = None
        self.after: list[tuple[int, int]] = []

    def passage(self, owner: Owner, tag: int, offset: int, size: int, data: Buffer | None) -> Passage | None:
        return Passage(self.lane, owner, tag, offset, size, data, 0.0) if self.lane else None

    def written(self, offset: int, size: int) -> None:
        self.after.append((offset, size))

    async def rest(self, passage: Passage, rest: Rest) -> Buffer | None:
        result: Buffer | None = await rest
        return result

    async def read(self, handle: int, offset: int, size: int) -> bytes:
        await self._do("read", handle, offset, size)
        return pattern(size, offset % 100)

    async def write(self, handle: int, offset: int, data: Buffer) -> int:
        self.data.append(data)
        await self._do("write", handle, offset, bytes(data))
        self.asked[-1] = ("write", handle, offset, bytes(data))
        return len(data)

    async def fsync(self, handle: int, datasync: bool) -> None:
        await self._do("fsync", handle, datasync)

    async def _do(self, *what: object) -> None:
        self.asked.append(what)
        self.detached.append(running() is not None)
        await self.answer()
