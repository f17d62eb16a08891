"""What stands for others in tests of how requests are read and served: the kernel, and whoever runs a detached task."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import outcome
import trio
import trio.testing

from blobfuse_dysk.detached import Detached, attach, running

__all__ = ["Place", "World"]

Body = Callable[[Detached, "Place"], Awaitable[None]]


class Place:
    """Where one task waits: keeps it, as a line of the pool of connections does, until it is given something."""

    def __init__(self) -> None:
        self.waiter: Detached | None = None
        self.given_up = 0

    async def wait(self, me: Detached) -> Any:
        self.waiter = me
        return await me.wait(self.give_up)

    def give_up(self) -> None:
        self.waiter = None
        self.given_up += 1

    def give(self, what: object) -> None:
        self._taken_out().go_on(what)

    def wake(self, what: outcome.Outcome[Any]) -> None:
        self._taken_out().wake(what)

    def _taken_out(self) -> Detached:
        waiter, self.waiter = self.waiter, None
        assert waiter is not None
        return waiter


class World:
    """A nursery, and places for its tasks to wait at."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.said: list[Any] = []

    async def start(
        self, body: Body, mode: str, scope: trio.CancelScope | None = None, then: Body | None = None
    ) -> tuple[Place, Detached]:
        """A task that does `body` in `scope`, begun in that mode, and after it `then`, begun attached."""
        place, me = Place(), None

        async def task() -> None:
            nonlocal me
            me = Detached()
            with scope or trio.CancelScope():
                if mode == "detached":
                    await place.wait(me)
                    assert running() is me
                await body(me, place)
                await attach()
            if then is not None:
                await then(me, place)
                await attach()

        self.nursery.start_soon(task)
        await trio.testing.wait_all_tasks_blocked()
        if mode == "detached":
            place.give("first")
        assert me is not None
        return place, me
