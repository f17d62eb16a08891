"""Tasks outside of trio's scheduler that have each other go on."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from blobfuse_dysk.detached import Detached, run_next, running
from tests.unit.fusekernel import Place, World
from tests.unit.test_detached import MODES, world

__all__ = ["world"]


@pytest.mark.parametrize("mode", MODES)
async def test_what_a_step_has_go_on_is_run_when_that_step_is_over(world: World, mode: str) -> None:
    """In turn, what those begin included, and before trio goes on with anything else."""

    async def first(me: Detached, place: Place) -> None:
        await place.wait(me)
        for waiter, given in ((others[0][1], "a"), (others[1][1], "b")):
            waiter.go_on(given)
            waiter.go_on("again")
        world.said.append("first")
        await place.wait(me)

    async def second(me: Detached, place: Place) -> None:
        world.said.append((await place.wait(me), running() is me))
        others[2][1].go_on("c")
        world.said.append("second")
        await place.wait(me)

    async def rest(me: Detached, place: Place) -> None:
        world.said.append((await place.wait(me), running() is me))
        await place.wait(me)

    place, _ = await world.start(first, mode)
    others = [await world.start(body, mode) for body in (second, rest, rest)]
    world.nursery.start_soon(_say, world, "trio")
    place.give(None)
    assert world.said == ["first", ("a", True), "second", ("b", True), ("c", True)]
    assert running() is None
    await trio.testing.wait_all_tasks_blocked()
    assert world.said[5:] == ["trio"]


@pytest.mark.parametrize("mode", MODES)
async def test_who_is_to_go_on_next_does_so_with_what_it_was_given_though_it_is_cancelled(
    world: World, mode: str
) -> None:
    """It was given something that nobody else has now, and it has left the place where it waited."""

    async def first(me: Detached, place: Place) -> None:
        await place.wait(me)
        scope.cancel()
        world.said.append("cancels")
        await place.wait(me)

    async def second(me: Detached, place: Place) -> None:
        world.said.append(await place.wait(me))
        await place.wait(me)
        world.said.append("was not cancelled")

    scope = trio.CancelScope()
    _, canceller = await world.start(first, mode)
    place, cancelled = await world.start(second, mode, scope)
    for waiter, given in ((canceller, None), (cancelled, "a")):
        waiter.go_on_next(given)
        waiter.go_on_next("again")
    assert world.said == []
    run_next()
    assert (world.said, place.given_up) == (["cancels", "a"], 0)
    await trio.testing.wait_all_tasks_blocked()
    assert (world.said[2:], place.given_up, scope.cancelled_caught) == ([], 1, True)  # in its second wait
    run_next()
    assert len(world.said) == 2


async def _say(world: World, what: str) -> None:
    world.said.append(what)
