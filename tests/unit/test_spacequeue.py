"""RoomLine: who waits for room is served in turn, as far as room goes, and by who makes it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from blobfuse_dysk.detached import Detached, attach, running
from blobfuse_dysk.store.parts.ring import DATA, Record
from blobfuse_dysk.store.parts.spacequeue import RoomLine


class Room:
    """Stands for a ring with room for `free` bytes. A writer is known by its number."""

    def __init__(self, free: int) -> None:
        self.free = free
        self.appended: list[int] = []
        self.accepted: list[int] = []
        self.returned: list[int] = []
        self.line = RoomLine(lambda record: self.accepted.append(record.offset))

    def _append(self, number: int, length: int) -> Record | None:
        if length > self.free:
            return None
        self.free -= length
        self.appended.append(number)
        return Record(0, 0, DATA, number, length, 0)

    async def write(self, number: int, length: int = 1) -> None:
        append = partial(self._append, number, length)
        if self.line.accept_now(append) is None:
            await self.line.wait(append)
        self.returned.append(number)

    async def writers(self, nursery: trio.Nursery, *lengths: int) -> None:
        """Begin a write of each length, in this order."""
        for number, length in enumerate(lengths):
            nursery.start_soon(self.write, number, length)
            await wait_all_tasks_blocked()

    def check(self, *numbers: int) -> None:
        assert self.appended == self.accepted == list(numbers)
        assert sorted(self.returned) == sorted(numbers)


async def test_what_fits_is_accepted_at_once(autojump_clock: MockClock) -> None:
    room = Room(2)
    await room.write(7)
    await room.write(8)
    room.check(7, 8)
    assert not room.line


async def test_as_many_are_served_as_there_is_room_for_in_the_order_they_came(autojump_clock: MockClock) -> None:
    room = Room(0)
    async with trio.open_nursery() as nursery:
        await room.writers(nursery, 1, 1, 4, 1, 2)
        assert len(room.line) == 5
        room.free = 7
        room.line.serve()
        assert room.accepted == [0, 1, 2, 3], "all in the step in which room was made"
        await wait_all_tasks_blocked()
        room.check(0, 1, 2, 3)
        room.free = 1
        room.line.serve()
        await wait_all_tasks_blocked()
        room.check(0, 1, 2, 3)
        room.free = 2
        room.line.serve()
        await wait_all_tasks_blocked()
        room.check(0, 1, 2, 3, 4)
        assert not room.line


async def test_nobody_overtakes_who_waits_even_if_his_write_would_fit(autojump_clock: MockClock) -> None:
    """Else a large write would wait for as long as small ones come, and the later of two writes would be the older."""
    room = Room(1)
    async with trio.open_nursery() as nursery:
        await room.writers(nursery, 4, 1)
        room.check()
        room.free = 4
        room.line.serve()
        await wait_all_tasks_blocked()
        room.check(0)
        room.free = 1
        room.line.serve()
        await wait_all_tasks_blocked()
        room.check(0, 1)


async def test_who_is_cancelled_leaves_the_line_and_nobody_else_does(autojump_clock: MockClock) -> None:
    for leaves in range(3):
        room = Room(0)
        async with trio.open_nursery() as nursery:
            scopes = [trio.CancelScope() for _ in range(3)]

            async def write(room: Room, scope: trio.CancelScope, number: int) -> None:
                with scope:
                    await room.write(number)

            for number, scope in enumerate(scopes):
                nursery.start_soon(write, room, scope, number)
                await wait_all_tasks_blocked()
            scopes[leaves].cancel()
            await wait_all_tasks_blocked()
            assert len(room.line) == 2
            room.free = 3
            room.line.serve()
            await wait_all_tasks_blocked()
            room.check(*(number for number in range(3) if number != leaves))


async def test_who_was_served_is_not_cancelled_any_more(autojump_clock: MockClock) -> None:
    """The write is in the ring: it must not end as if it were not."""
    room = Room(0)
    async with trio.open_nursery() as nursery:
        await room.writers(nursery, 1)
        room.free = 1
        room.line.serve()
        nursery.cancel_scope.cancel()
    room.check(0)


async def test_all_are_told_that_there_will_be_no_room(autojump_clock: MockClock) -> None:
    room = Room(0)
    with trio.fail_after(100):
        async with trio.open_nursery() as nursery:
            await room.writers(nursery, 1, 1, 1)
            room.line.dismiss()
    assert sorted(room.returned) == [0, 1, 2]
    assert not room.accepted and not room.line


async def detached(nursery: trio.Nursery, *bodies: Callable[[], Awaitable[None]]) -> None:
    """Run each detached, as requests of the kernel are, up to its first wait."""

    async def task(body: Callable[[], Awaitable[None]]) -> None:
        me = Detached()
        begun.append(me)
        await me.wait(lambda: None)
        await body()
        await attach()

    begun: list[Detached] = []
    for body in bodies:
        nursery.start_soon(task, body)
        await wait_all_tasks_blocked()
    for me in begun:
        me.go_on(None)


async def test_detached_writers_are_served_in_the_step_of_who_makes_room(autojump_clock: MockClock) -> None:
    """In turn, and none of them goes on before all that there is room for are appended."""

    async def writer(number: int) -> None:
        await room.write(number)
        assert running() is not None
        seen.append((number, list(room.appended)))

    room, seen = Room(0), list[tuple[int, list[int]]]()
    async with trio.open_nursery() as nursery:
        await detached(nursery, *(partial(writer, number) for number in range(3)))
        room.free = 2
        room.line.serve()
        assert sorted(seen) == [(0, [0, 1]), (1, [0, 1])]
        room.check(0, 1)
        nursery.cancel_scope.cancel()
    assert not room.line, "who was cancelled has left"


async def test_detached_writers_are_told_that_there_will_be_no_room(autojump_clock: MockClock) -> None:
    room = Room(0)
    with trio.fail_after(1e6):
        async with trio.open_nursery() as nursery:
            await detached(nursery, *(partial(room.write, number) for number in range(3)))
            room.line.dismiss()
    assert (room.appended, sorted(room.returned)) == ([], [0, 1, 2])
