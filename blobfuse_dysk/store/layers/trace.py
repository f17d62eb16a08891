"""Trace: for a while, a line in the log for each call: which, where, how long it took, what became of it.

It is in the path only while it is wanted: Stack puts it below Front (`Front.stand_on`) when `dyskctl set NAME
trace=SECONDS` asks for it, and the first call after that time takes it out again (`on_end`), so at other times it costs
nothing. Calls that it has passed on end through it, wherever Front stands by then; it keeps nothing about the disk, so
that harms nobody.

A busy disk has thousands of calls a second, and lines cost more than calls. So there are at most MOST_LINES a second,
and one that says how many calls were left out.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from blobfuse_dysk.errors import StoreError
from blobfuse_dysk.store.contract import Buffer, Extent, Store

__all__ = ["Trace"]

MOST_LINES = 200  # a second; a file of the log holds a minute of them, journald takes 333
T = TypeVar("T")
log = logging.getLogger(__name__)


class Trace(Store):
    """Logs the calls that end within `seconds`. on_end: called once, at the first call that begins after that."""

    def __init__(self, inner: Store, seconds: float, on_end: Callable[[], None]) -> None:
        self._inner = inner
        self._until = trio.current_time() + seconds
        self._on_end = on_end
        self._ended = False
        self._second = trio.current_time()  # when the present second began, of which lines are counted
        self._lines = self._left_out = 0
        log.info("trace: calls are logged for %g s", seconds)

    @property
    def size(self) -> int:
        """The inner one's."""
        return self._inner.size

    @property
    def left_s(self) -> float:
        """Seconds until it ends; 0 if it has."""
        return 0.0 if self._ended else max(0.0, self._until - trio.current_time())

    def end(self) -> None:
        """Log nothing any more."""
        if not self._ended:
            self._ended = True
            self._say_left_out()
            log.info("trace: ended")
            self._on_end()

    async def read(self, offset: int, length: int) -> Buffer:
        return await self._traced(f"read of {length} at {offset}", self._inner.read(offset, length))

    async def write(self, offset: int, data: Buffer) -> None:
        await self._traced(f"write of {len(data)} at {offset}", self._inner.write(offset, data))

    async def zero(self, offset: int, length: int) -> None:
        await self._traced(f"zero of {length} at {offset}", self._inner.zero(offset, length))

    async def flush(self) -> None:
        await self._traced("flush", self._inner.flush())

    async def extents(self, offset: int, length: int) -> list[Extent]:
        return await self._traced(f"extents of {length} at {offset}", self._inner.extents(offset, length))

    async def grow(self, size: int) -> None:
        await self._traced(f"grow to {size}", self._inner.grow(size))

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def _traced(self, what: str, call: Awaitable[T]) -> T:
        started = trio.current_time()
        if started >= self._until:
            self.end()
        outcome = "cancelled"
        try:
            answer = await call
            outcome = "done"
        except StoreError as error:
            outcome = f"{error.kind.value}: {error}"
            raise
        finally:
            self._line(what, started, outcome)
        return answer

    def _line(self, what: str, started: float, outcome: str) -> None:
        now = trio.current_time()
        if self._ended:
            return
        if now >= self._second + 1:
            self._say_left_out()
            self._second, self._lines = now, 0
        if self._lines < MOST_LINES:
            self._lines += 1
            log.info("trace: %s: %.3f ms, %s", what, (now - started) * 1000, outcome)
        else:
            self._left_out += 1

    def _say_left_out(self) -> None:
        if self._left_out:
            log.info("trace: %d calls not shown", self._left_out)
            self._left_out = 0
