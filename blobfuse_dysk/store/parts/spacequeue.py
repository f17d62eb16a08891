"""Those who wait for room in the dirty ring, first come first served. The mechanism of WriteBack's backpressure.

Theory. Who frees room appends for those who wait, in their order, and wakes them when that is done. So each costs one
step of the scheduler, or none if it is detached (detached.py); nobody who comes later can take the room first, and
there is no moment at which room is free and those it is for have not run yet. A task that is cancelled while it waits
leaves the line and nothing else behind; one that was served cannot be cancelled in this wait any more (trio does not
cancel a task that is already rescheduled, and a detached one that goes on learns of it at its next wait).

`serve` has detached ones go on when all are served: they may come back with their next write at once.

No await in this file but in `wait`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TypeAlias

import outcome
import trio

from blobfuse_dysk.detached import Detached, run_next, running
from blobfuse_dysk.store.parts.ring import Record

__all__ = ["Append", "RoomLine"]

Append: TypeAlias = Callable[[], Record | None]
"""Appends a write to the ring; None, and nothing has happened, while there is no room."""


class RoomLine:
    """accept: takes note of a record, in the step in which it was appended."""

    def __init__(self, accept: Callable[[Record], None]) -> None:
        self._accept = accept
        self._line: deque[tuple[Append, trio.lowlevel.Task | Detached]] = deque()

    def __len__(self) -> int:
        return len(self._line)

    def accept_now(self, append: Append) -> Record | None:
        """Append and accept, if nobody waits and it fits; None, and nothing has happened, if not: then `wait`."""
        record = None if self._line else append()
        if record is not None:
            self._accept(record)
        return record

    async def wait(self, append: Append) -> None:
        """Return when the write was appended and accepted, now or by `serve`, or `dismiss` was called."""
        if self.accept_now(append) is not None:
            return
        me = running()
        place = (append, me or trio.lowlevel.current_task())
        self._line.append(place)

        def leave(_: object = None) -> trio.lowlevel.Abort:
            self._line.remove(place)
            return trio.lowlevel.Abort.SUCCEEDED

        if me is None:
            await trio.lowlevel.wait_task_rescheduled(leave)
        else:
            await me.wait(leave)

    def serve(self) -> None:
        """Append and accept what fits now."""
        while self._line and (record := self._line[0][0]()) is not None:
            self._accept(record)
            waiter = self._line.popleft()[1]
            if isinstance(waiter, Detached):
                waiter.go_on_next(None)
            else:
                trio.lowlevel.reschedule(waiter)
        run_next()

    def dismiss(self) -> None:
        """There will be no room any more: wake all."""
        while self._line:
            waiter = self._line.popleft()[1]
            if isinstance(waiter, Detached):
                waiter.wake(outcome.Value(None))
            else:
                trio.lowlevel.reschedule(waiter)
