"""Tasks outside of trio's scheduler: each mode, each way from one to the other, and what must not be done in them."""

from __future__ import annotations

import contextvars
from collections.abc import AsyncIterator, Awaitable, Callable
from random import Random
from unittest.mock import AsyncMock

import outcome
import pytest
import trio
import trio.testing
from trio.testing import MockClock

from blobfuse_dysk.detached import Detached, attach, running
from blobfuse_dysk.invariant import InvariantError
from tests.unit.fusekernel import Place, World

MODES = ["attached", "detached"]
mine: contextvars.ContextVar[str] = contextvars.ContextVar("mine", default="nobody")


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with trio.open_nursery() as nursery:
        yield World(nursery)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("mode", MODES)
async def test_it_goes_on_in_the_step_of_who_has_what_it_waits_for(world: World, mode: str) -> None:
    async def body(me: Detached, place: Place) -> None:
        for _ in range(3):
            world.said.append(await place.wait(me))
            world.said.append(running() is me)

    place, _ = await world.start(body, mode)
    for given in ("a", None, 7):
        place.give(given)
        world.said.append("after")
    assert world.said == ["a", True, "after", None, True, "after", 7, True, "after"]
    assert running() is None


@pytest.mark.parametrize("mode", MODES)
async def test_who_is_woken_is_run_by_trio(world: World, mode: str) -> None:
    async def body(me: Detached, place: Place) -> None:
        given = await place.wait(me)
        await trio.lowlevel.checkpoint()
        world.said.append((given, running(), trio.lowlevel.current_task().coro.cr_running))
        world.said.append(await place.wait(me))
        world.said.append(running() is me)

    place, _ = await world.start(body, mode)
    place.wake(outcome.Value("a"))
    assert world.said == []
    await trio.testing.wait_all_tasks_blocked()
    assert world.said == [("a", None, True)]
    place.give("b")
    assert world.said[1:] == ["b", True]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("how", ["give", "wake"])
async def test_an_error_that_it_is_given_is_raised_in_it(world: World, mode: str, how: str) -> None:
    async def body(me: Detached, place: Place) -> None:
        try:
            await place.wait(me)
        except OSError as error:
            world.said.append((str(error), running() is me))

    place, _ = await world.start(body, mode)
    getattr(place, how)(outcome.Error(OSError("closed")))
    await trio.testing.wait_all_tasks_blocked()
    assert world.said == [("closed", how == "give")]


async def test_attached_all_of_trio_can_be_used(world: World, autojump_clock: MockClock) -> None:
    async def body(me: Detached, place: Place) -> None:
        await place.wait(me)
        await attach()
        assert running() is None
        with trio.move_on_after(5) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep, 1)
                await trio.sleep(10)
        world.said.append((scope.cancelled_caught, trio.current_time()))
        async with trio.Lock():
            world.said.append(await place.wait(me))
            world.said.append(running() is me)
            await attach()

    place, _ = await world.start(body, "detached")
    began = trio.current_time()
    place.give(None)
    assert running() is None
    await trio.sleep(7)
    assert world.said == [(True, began + 5)]
    place.give("b")
    await trio.testing.wait_all_tasks_blocked()
    assert world.said[1:] == ["b", True]


async def test_its_scopes_and_its_context_are_its_own_right_after_attach(world: World) -> None:
    """Detached, what runs it has them: another's."""
    tasks: list[trio.lowlevel.Task] = []

    async def body(me: Detached, place: Place) -> None:
        mine.set("task")
        tasks.append(trio.lowlevel.current_task())
        with trio.CancelScope(deadline=trio.current_time() + 1234) as scope:
            await place.wait(me)
            world.said.append(mine.get())
            await attach()
            world.said.append(mine.get())
            assert trio.lowlevel.current_task() is tasks[0]
            assert trio.current_effective_deadline() == scope.deadline
            scope.cancel()
            await trio.lowlevel.checkpoint()
        world.said.append(scope.cancelled_caught)

    place, _ = await world.start(body, "attached")
    mine.set("driver")
    place.give(None)
    await trio.testing.wait_all_tasks_blocked()
    assert world.said == ["driver", "task", True]
    assert mine.get() == "driver"


async def test_to_attach_what_is_attached_does_nothing() -> None:
    """Not even a checkpoint: it can be called where none may be."""
    waiting = attach()
    with pytest.raises(StopIteration):
        waiting.send(None)


@pytest.mark.parametrize("mode", MODES)
async def test_cancelled_while_it_waits(world: World, mode: str) -> None:
    """Raised by trio, once whoever kept it was told; nobody can have it go on any more."""

    async def body(me: Detached, place: Place) -> None:
        await elsewhere.wait(me)
        try:
            await place.wait(me)
        finally:
            world.said.append((running(), trio.lowlevel.current_task() is task, place.given_up))

    async def then(me: Detached, place: Place) -> None:
        world.said.append(scope.cancelled_caught)
        world.said.append(await elsewhere.wait(me))

    scope, elsewhere, task = trio.CancelScope(), Place(), None
    place, me = await world.start(body, mode, scope, then)
    (task,) = world.nursery.child_tasks
    elsewhere.give(None)
    scope.cancel()
    assert (place.waiter, place.given_up) == (None, 1)
    me.go_on("late")
    me.wake(outcome.Value("later"))
    assert world.said == []
    await trio.testing.wait_all_tasks_blocked()
    assert world.said == [(None, True, 1), True]
    assert (place.given_up, elsewhere.given_up) == (1, 0)
    elsewhere.give("b")
    assert world.said[2:] == ["b"]


@pytest.mark.parametrize("attaches", [False, True])
async def test_cancelled_in_its_own_step_it_learns_of_it_where_it_waits_next(world: World, attaches: bool) -> None:
    """Or at the first checkpoint, if it attaches before. After that it is like any other."""

    async def body(me: Detached, place: Place) -> None:
        await place.wait(me)
        scope.cancel()
        world.said.append("goes on")
        try:
            if attaches:
                await attach()
                world.said.append("attached")
                await trio.lowlevel.checkpoint()
            await place.wait(me)
        finally:
            world.said.append(running())

    async def then(me: Detached, place: Place) -> None:
        for _ in range(3):
            world.said.append(await elsewhere.wait(me))

    scope, elsewhere = trio.CancelScope(), Place()
    place, _ = await world.start(body, "attached", scope, then)
    place.give(None)
    assert world.said == ["goes on"]
    await trio.testing.wait_all_tasks_blocked()
    assert (world.said[1:], scope.cancelled_caught) == (["attached", None] if attaches else [None], True)
    assert place.given_up == (not attaches)
    for given in "abc":
        elsewhere.give(given)  # it waits: without a round of the scheduler, in which this would have been lost
    assert world.said[-3:] == ["a", "b", "c"]


async def test_cancelled_between_attach_and_its_round(world: World) -> None:
    async def body(me: Detached, place: Place) -> None:
        await place.wait(me)
        await attach()
        world.said.append("attached")
        await place.wait(me)

    async def then(me: Detached, place: Place) -> None:
        world.said.append(running())
        world.said.append(await place.wait(me))

    scope = trio.CancelScope()
    place, me = await world.start(body, "attached", scope, then)
    place.give(None)
    scope.cancel()
    me.go_on("too early")
    me.wake(outcome.Value("too early"))
    await trio.testing.wait_all_tasks_blocked()
    assert (world.said, place.given_up) == (["attached", None], 1)
    place.give("a")
    assert world.said[2:] == ["a"]


@pytest.mark.parametrize("mode", MODES)
async def test_a_step_cancels_another_task(world: World, mode: str) -> None:
    """Which then has nothing to do in the same collection any more, as in Pump._run."""

    async def canceller(me: Detached, place: Place) -> None:
        await place.wait(me)
        scope.cancel()
        world.said.append("cancels")
        await place.wait(me)

    async def cancelled(me: Detached, place: Place) -> None:
        await place.wait(me)
        world.said.append("was not cancelled")

    async def then(me: Detached, place: Place) -> None:
        world.said.append((scope.cancelled_caught, running()))

    scope = trio.CancelScope()
    _, first = await world.start(canceller, mode)
    place, second = await world.start(cancelled, mode, scope, then)
    for waiter in (first, second):
        waiter.go_on(None)
    assert (world.said, place.given_up) == (["cancels"], 1)
    await trio.testing.wait_all_tasks_blocked()
    assert world.said == ["cancels", (True, None)]


@pytest.mark.parametrize("mode", MODES)
async def test_it_goes_on_once(world: World, mode: str) -> None:
    async def body(me: Detached, place: Place) -> None:
        for _ in range(3):
            world.said.append(await place.wait(me))
            await attach()

    place, me = await world.start(body, mode)
    me.wake(outcome.Value("a"))
    me.wake(outcome.Value("again"))
    me.go_on("again")
    await trio.testing.wait_all_tasks_blocked()
    me.go_on("b")
    me.go_on("again")
    me.wake(outcome.Value("again"))
    await trio.testing.wait_all_tasks_blocked()
    assert (world.said, place.given_up) == (["a", "b"], 0)


@pytest.mark.parametrize("mode", MODES)
async def test_a_nursery_that_is_cancelled_ends_all_that_wait(mode: str) -> None:
    async def body(me: Detached, place: Place) -> None:
        try:
            await place.wait(me)
        finally:
            assert running() is None
            ended.append(place)

    ended: list[Place] = []
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            places = [(await World(nursery).start(body, mode))[0] for _ in range(20)]
            nursery.cancel_scope.cancel()
    assert set(ended) == set(places)
    assert [place.given_up for place in places] == [1] * 20


async def test_a_detached_step_starts_tasks_sets_events_and_tells_the_time(world: World) -> None:
    async def started(argument: str) -> None:
        await event.wait()
        world.said.append((argument, running()))

    async def body(me: Detached, place: Place) -> None:
        await place.wait(me)
        world.nursery.start_soon(started, "started")
        event.set()
        assert trio.current_time() > 0
        world.said.append(running() is me)
        await place.wait(me)

    event = trio.Event()
    place, _ = await world.start(body, "detached")
    place.give(None)
    assert world.said == [True]
    await trio.testing.wait_all_tasks_blocked()
    assert world.said == [True, ("started", None)]


async def _raises() -> None:
    raise OSError("here")


@pytest.mark.parametrize(
    ("act", "says"),
    [
        (trio.lowlevel.checkpoint, "a detached task awaits .*CancelShieldedCheckpoint"),
        (trio.sleep_forever, "a detached task awaits .*WaitTaskRescheduled"),
        (AsyncMock(), "a detached task ended: StopIteration"),
        (_raises, "a detached task ended: OSError.*here"),
    ],
)
def test_what_would_leave_trios_books_wrong_ends_the_process(act: Callable[[], Awaitable[None]], says: str) -> None:
    async def task() -> None:
        me = Detached()
        waiters.append(me)
        await me.wait(lambda: None)
        await act()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(task)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(InvariantError, match=says):
                waiters[0].go_on(None)
            told.append(running())
            nursery.cancel_scope.cancel()

    waiters: list[Detached] = []
    told: list[Detached | None] = []
    try:
        trio.run(main)
    except* RuntimeError:  # the books are wrong: trio sends the cancellation to what has ended
        assert act not in (trio.lowlevel.checkpoint, trio.sleep_forever)
    assert told == [None]


@pytest.mark.parametrize("seed", range(30))
async def test_many_tasks_at_random(seed: int) -> None:
    """Each is given what is for it, in order, whichever way; no task waits for ever or goes on without being told."""
    rng, actions, count = Random(seed), Random(seed + 1), 8

    async def task(number: int) -> None:
        me, place, scope = Detached(), places[number], scopes[number]
        with scope:
            while True:
                got[number].append(await place.wait(me))
                if actions.random() < 0.3:
                    await attach()
                    assert running() is None
                    if actions.random() < 0.3:
                        await trio.lowlevel.checkpoint()
                if running() is not None and actions.random() < 0.1:
                    victim = actions.randrange(count)
                    scopes[victim].cancel()  # itself, perhaps
        left[number] += running() is None

    places = [Place() for _ in range(count)]
    scopes = [trio.CancelScope() for _ in range(count)]
    given: list[list[int]] = [[] for _ in range(count)]
    got: list[list[int]] = [[] for _ in range(count)]
    left = [0] * count
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for number in range(count):
                nursery.start_soon(task, number)
            for serial in range(400):
                at = rng.randrange(count)
                if places[at].waiter is None:
                    await trio.testing.wait_all_tasks_blocked()
                elif not scopes[at].cancel_called:
                    given[at].append(serial)
                    if rng.random() < 0.5:
                        places[at].give(serial)
                    else:
                        places[at].wake(outcome.Value(serial))
            await trio.testing.wait_all_tasks_blocked()
            assert left == [int(scope.cancel_called) for scope in scopes]
            assert [place.waiter is None for place in places] == [scope.cancel_called for scope in scopes]
            for scope in scopes:
                scope.cancel()
    assert left == [1] * count
    assert got == given
