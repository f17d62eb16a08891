"""How pyfuse3's tasks wait for requests."""

from __future__ import annotations

import socket

import pytest
import trio
import trio.testing

from blobfuse_dysk.device.worker import fusetasks
from tests.unit.fusesession import TASKS, Session, kernel

__all__ = ["kernel"]


@pytest.mark.parametrize("burst", [1, 3, TASKS, 40])
async def test_each_request_is_taken_once(kernel: tuple[socket.socket, Session], burst: int) -> None:
    ours, session = kernel
    async with trio.open_nursery() as nursery:
        for _ in range(TASKS):
            nursery.start_soon(session.task)
        for round_ in range(1, 6):
            for number in range(burst):
                ours.send(bytes([number]))
            await session.until(round_ * burst)
        nursery.cancel_scope.cancel()
    assert sorted(session.taken) == sorted(bytes([number]) for number in range(burst) for _ in range(5))


async def test_one_that_never_answers_does_not_hold_back_the_others(kernel: tuple[socket.socket, Session]) -> None:
    ours, session = kernel
    session.answer = trio.sleep_forever
    async with trio.open_nursery() as nursery:
        for _ in range(TASKS):
            nursery.start_soon(session.task)
        for count in range(1, TASKS + 1):
            ours.send(b"x")
            await session.until(count)
        nursery.cancel_scope.cancel()


async def test_the_watcher_may_be_cancelled(kernel: tuple[socket.socket, Session]) -> None:
    ours, session = kernel
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as first:
                first.start_soon(session.task)
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(session.task)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        ours.send(b"x")
        await session.until(1)
        nursery.cancel_scope.cancel()


async def test_requests_answered_at_once_leave_time_for_others(kernel: tuple[socket.socket, Session]) -> None:
    ours, session = kernel
    turns = 0

    async def at_once() -> None:
        ours.send(b"y")  # so that there is always one more

    async def other() -> None:
        nonlocal turns
        while turns < 10:
            turns += 1
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()

    session.answer = at_once
    ours.send(b"x")
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.task)
            nursery.start_soon(other)
    assert turns == 10


async def test_the_end_of_the_session_ends_all_waiting(kernel: tuple[socket.socket, Session]) -> None:
    _, session = kernel
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for _ in range(TASKS):
                nursery.start_soon(session.task)
            await trio.testing.wait_all_tasks_blocked()
            session.trio.lowlevel.notify_closing(session.device.fileno())
    assert session.ended == TASKS


async def drained(session: Session, limit_s: float) -> bool:
    turnstile: fusetasks.Turnstile = session.trio.lowlevel
    return await turnstile.drained(turnstile.hold(), limit_s)


async def test_drained_when_all_that_was_taken_is_answered(kernel: tuple[socket.socket, Session]) -> None:
    ours, session = kernel
    answered = trio.Event()
    session.answer = answered.wait
    async with trio.open_nursery() as nursery, trio.open_nursery() as pool:
        for _ in range(TASKS):
            pool.start_soon(session.task)
        ours.send(b"1")
        await session.until(1)
        answers: list[bool] = []

        async def drain() -> None:
            answers.append(await drained(session, 10.0))

        nursery.start_soon(drain)
        with trio.fail_after(10):
            while len(session.trio.lowlevel._held) < TASKS - 1:
                await trio.lowlevel.checkpoint()
        ours.send(b"2")
        for _ in range(100):
            await trio.lowlevel.checkpoint()
        assert (answers, session.taken) == ([], [b"1"])
        answered.set()
        with trio.fail_after(10):
            while not answers:
                await trio.lowlevel.checkpoint()
        assert (answers, session.taken) == ([True], [b"1"])
        session.trio.lowlevel.resume()
        await session.until(2)
        pool.cancel_scope.cancel()


async def test_not_drained_in_time(kernel: tuple[socket.socket, Session]) -> None:
    ours, session = kernel
    session.answer = trio.sleep_forever
    async with trio.open_nursery() as pool:
        for _ in range(TASKS):
            pool.start_soon(session.task)
        ours.send(b"1")
        await session.until(1)
        assert not await drained(session, 0.05)
        ours.send(b"2")
        await session.until(2)
        pool.cancel_scope.cancel()


async def test_a_hold_that_follows_another_ends_that(kernel: tuple[socket.socket, Session]) -> None:
    """The tasks that the first one holds belong to the second, and go on after it."""
    ours, session = kernel
    turnstile: fusetasks.Turnstile = session.trio.lowlevel
    answers: dict[str, bool] = {}

    async def wait(name: str, hold: trio.Event) -> None:
        answers[name] = await turnstile.drained(hold, 10.0)

    answered = trio.Event()
    session.answer = answered.wait
    async with trio.open_nursery() as nursery, trio.open_nursery() as pool:
        for _ in range(TASKS):
            pool.start_soon(session.task)
        ours.send(b"1")
        await session.until(1)
        nursery.start_soon(wait, "first", turnstile.hold())
        with trio.fail_after(10):
            while len(turnstile._held) < TASKS - 1:
                await trio.lowlevel.checkpoint()
            nursery.start_soon(wait, "second", turnstile.hold())
            while "first" not in answers:
                await trio.lowlevel.checkpoint()
            assert answers == {"first": False}
            answered.set()
            while "second" not in answers:
                await trio.lowlevel.checkpoint()
        assert answers == {"first": False, "second": True}
        session.answer = trio.sleep_forever
        ours.send(b"x")
        for _ in range(100):
            await trio.lowlevel.checkpoint()
        assert session.taken == [b"1"], "requests are taken although it is drained"
        turnstile.resume()
        for count in range(2, TASKS + 2):
            await session.until(count)
            ours.send(b"x")
        pool.cancel_scope.cancel()


async def test_a_task_that_was_held_before_may_have_a_request_now(kernel: tuple[socket.socket, Session]) -> None:
    ours, session = kernel
    async with trio.open_nursery() as pool:
        for _ in range(TASKS):
            pool.start_soon(session.task)
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(10):
            assert await drained(session, 10.0)
        session.trio.lowlevel.resume()
        session.answer = trio.sleep_forever
        ours.send(b"x")
        await session.until(1)
        assert not await drained(session, 0.05)
        pool.cancel_scope.cancel()


async def test_a_hold_that_ends_at_once_costs_no_task(kernel: tuple[socket.socket, Session]) -> None:
    ours, session = kernel
    turnstile: fusetasks.Turnstile = session.trio.lowlevel
    session.answer = trio.sleep_forever
    async with trio.open_nursery() as pool:
        for _ in range(TASKS):
            pool.start_soon(session.task)
        await trio.testing.wait_all_tasks_blocked()
        hold = turnstile.hold()
        turnstile.resume()
        assert not await turnstile.drained(hold, 10.0)
        await trio.testing.wait_all_tasks_blocked()
        assert session.ended == 0
        for count in range(1, TASKS + 1):
            ours.send(b"x")
            await session.until(count)
        pool.cancel_scope.cancel()


async def test_no_request_is_taken_from_the_moment_of_the_hold(kernel: tuple[socket.socket, Session]) -> None:
    """Not even by a task that was woken for it before."""
    ours, session = kernel
    turnstile: fusetasks.Turnstile = session.trio.lowlevel
    async with trio.open_nursery() as pool:
        for _ in range(TASKS):
            pool.start_soon(session.task)
        await trio.testing.wait_all_tasks_blocked()
        ours.send(b"x")
        hold = turnstile.hold()
        with trio.fail_after(10):
            assert await turnstile.drained(hold, 10.0)
        assert session.taken == []
        turnstile.resume()
        await session.until(1)
        pool.cancel_scope.cancel()


async def test_the_session_ends_while_drained(kernel: tuple[socket.socket, Session]) -> None:
    _, session = kernel
    with trio.fail_after(10):
        async with trio.open_nursery() as pool:
            for _ in range(TASKS):
                pool.start_soon(session.task)
            await trio.testing.wait_all_tasks_blocked()
            assert await drained(session, 10.0)
            session.trio.lowlevel.notify_closing(session.device.fileno())
    assert session.ended == TASKS


async def test_all_else_is_trios_own(kernel: tuple[socket.socket, Session]) -> None:
    _, session = kernel
    assert session.trio.open_nursery is trio.open_nursery
    assert session.trio.lowlevel.current_task() is trio.lowlevel.current_task()


async def test_the_last_that_came_takes_the_next(kernel: tuple[socket.socket, Session]) -> None:
    """So that as few tasks as possible ever have a request, and with it a buffer."""
    ours, session = kernel
    takers: set[str] = set()

    async def note() -> None:
        takers.add(trio.lowlevel.current_task().name)
        await trio.lowlevel.checkpoint()

    session.answer = note
    async with trio.open_nursery() as nursery:
        for number in range(3 * TASKS):
            nursery.start_soon(session.task, name=f"{number}")
        for count in range(1, 10 * TASKS):
            await trio.testing.wait_all_tasks_blocked()
            ours.send(b"x")
            await session.until(count)
        nursery.cancel_scope.cancel()
    assert len(takers) <= 3  # the first watcher, the one that watches while that one answers, the last that came


async def test_tasks_that_nothing_needs_end(
    kernel: tuple[socket.socket, Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the spare ones and the watcher, and none that was needed meanwhile."""
    ours, session = kernel
    monkeypatch.setattr(fusetasks, "SPARE", 2)
    monkeypatch.setattr(fusetasks, "SHED_S", 0.2)
    session.answer = trio.sleep_forever
    many = TASKS + 3
    async with trio.open_nursery() as nursery:
        for _ in range(many):
            nursery.start_soon(session.task)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(session.trio.lowlevel.shed)
        await trio.testing.wait_all_tasks_blocked()
        for count in (1, 2):
            ours.send(b"x")
            await session.until(count)
        await trio.sleep(1.0)
        assert session.ended == many - 2 - 1 - 2  # two have a request, one watches, two are spare
        for count in (3, 4, 5):
            ours.send(b"x")
            await session.until(count)
        nursery.cancel_scope.cancel()
