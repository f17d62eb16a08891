"""The tasks that send for WriteBack: each sends one run after the other, and waits for more when there is none.

Theory. A task of its own for each run costs half a request. So a sender that has sent goes on with what `send` returns,
in the step in which the acknowledgement came; and one that finds nothing to do waits in `_idle`, out of trio's
scheduler (detached.py). A sender that trio runs, as it does at first and after a wait of any other kind, takes nothing
on by itself: it becomes idle, so that whoever begins the next run has it go on detached.

A sender is in `_idle` or has a run; it leaves when `close` was called and its run has come to its end.
No await in this file but in `_send_on`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeAlias

import outcome
import trio

from blobfuse_dysk.detached import Detached, attach
from blobfuse_dysk.store.parts.dirtymap import DirtyExtent
from blobfuse_dysk.store.parts.priority import Priority, Urgency, priority

__all__ = ["Run", "Senders"]

Run: TypeAlias = list[DirtyExtent]
"""Neighbours that go in one request; none: nothing to do."""


class Senders:
    """nursery: where they run. send: sends a run, and returns what the same task is to send next.

    urgency: of what is begun now.
    """

    def __init__(
        self, nursery: trio.Nursery, send: Callable[[Run], Awaitable[Run]], urgency: Callable[[], Priority]
    ) -> None:
        self._nursery = nursery
        self._send = send
        self._urgency = urgency
        self._idle: list[Detached] = []
        self.closed = False

    def begin(self, run: Run) -> None:
        """Have it sent, from `run_next` (detached.py) on."""
        if self._idle:
            self._idle.pop().go_on_next(run)
        else:
            self._nursery.start_soon(self._send_on, run)

    def close(self) -> None:
        """Let all go that wait; those that send follow."""
        self.closed = True
        while self._idle:
            self._idle.pop().wake(outcome.Value([]))

    async def _send_on(self, run: Run) -> None:
        me = Detached()

        def leave() -> None:
            self._idle.remove(me)

        urgency = Urgency(Priority.FLUSH)
        with priority(urgency):
            while not self.closed:
                if run:
                    urgency.now = self._urgency()
                    run = await self._send(run)
                else:
                    self._idle.append(me)
                    run = await me.wait(leave)
            await attach()
