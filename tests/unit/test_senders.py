"""Senders: who sends what, how urgent it is then, and that all go when it is closed."""

from __future__ import annotations

from collections import deque

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from blobfuse_dysk.detached import Detached, attach, run_next, running
from blobfuse_dysk.store.parts.dirtymap import DirtyExtent
from blobfuse_dysk.store.parts.priority import Priority, current_priority
from blobfuse_dysk.store.parts.senders import Run, Senders


def run_of(number: int) -> Run:
    return [DirtyExtent(number, number + 1, 0, 0, 0)]


class Service:
    """Where runs go: each waits until it is acknowledged, by its number; then the same sender gets from `more`."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.urgency = Priority.READ
        self.senders = Senders(nursery, self._send, lambda: self.urgency)
        self.more: deque[Run] = deque()
        self.sent: list[tuple[int, bool]] = []  # number; whether detached
        self.urgencies: list[Priority] = []
        self._waiting: dict[int, Detached | trio.Event] = {}

    async def _send(self, run: Run) -> Run:
        number = run[0].start
        me = running()
        self.sent.append((number, me is not None))
        if me is None:
            self._waiting[number] = event = trio.Event()
            await event.wait()
        else:
            self._waiting[number] = me
            await me.wait(lambda: None)
        if number >= 100:  # for its priority it needs trio
            await attach()
            self.urgencies.append(current_priority(Priority.TRIM))
        return self.more.popleft() if self.more else []

    def begin(self, *numbers: int) -> None:
        for number in numbers:
            self.senders.begin(run_of(number))
        run_next()

    def acknowledge(self, number: int) -> None:
        waiter = self._waiting.pop(number)
        if isinstance(waiter, Detached):
            waiter.go_on(None)
        else:
            waiter.set()


async def test_a_sender_that_has_nothing_to_do_takes_the_next_run_in_the_step_in_which_it_is_begun(
    autojump_clock: MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        service = Service(nursery)
        service.begin(1, 2)
        await wait_all_tasks_blocked()
        assert sorted(service.sent) == [(1, False), (2, False)]
        for number in (1, 2):
            service.acknowledge(number)
        await wait_all_tasks_blocked()
        service.begin(3, 4)
        assert service.sent[2:] == [(3, True), (4, True)]
        service.more.append(run_of(5))
        service.acknowledge(4)
        assert service.sent[4:] == [(5, True)], "in the step of the acknowledgement, by the same sender"
        assert len(nursery.child_tasks) == 2
        service.begin(6)
        await wait_all_tasks_blocked()
        assert (service.sent[5:], len(nursery.child_tasks)) == ([(6, False)], 3)
        nursery.cancel_scope.cancel()


async def test_each_run_is_as_urgent_as_what_is_sent_when_it_begins(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        service = Service(nursery)
        service.begin(100)
        await wait_all_tasks_blocked()
        for number, urgency in ((101, Priority.FLUSH), (102, Priority.DRAIN)):
            service.acknowledge(number - 1)
            await wait_all_tasks_blocked()
            service.urgency = urgency
            service.begin(number)
            service.urgency = Priority.TRIM
        service.acknowledge(102)
        await wait_all_tasks_blocked()
        assert service.urgencies == [Priority.READ, Priority.FLUSH, Priority.DRAIN]
        nursery.cancel_scope.cancel()


async def test_closed_all_go_and_those_that_send_when_they_have_sent(autojump_clock: MockClock) -> None:
    with trio.fail_after(1e6):
        async with trio.open_nursery() as nursery:
            service = Service(nursery)
            service.begin(1, 2, 3)
            await wait_all_tasks_blocked()
            for number in (1, 2, 3):
                service.acknowledge(number)
            await wait_all_tasks_blocked()
            service.begin(4)
            service.senders.close()
            await wait_all_tasks_blocked()
            assert len(nursery.child_tasks) == 1
            service.more.append(run_of(5))
            service.acknowledge(4)
            await wait_all_tasks_blocked()
            assert len(nursery.child_tasks) == 0
    assert [number for number, _ in service.sent][3:] == [4]


async def test_a_sender_that_was_cancelled_is_given_nothing(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as outer:
        async with trio.open_nursery() as nursery:
            service = Service(nursery)
            service.begin(1)
            await wait_all_tasks_blocked()
            service.acknowledge(1)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        service.senders._nursery = outer
        service.begin(2)
        await wait_all_tasks_blocked()
        assert service.sent[1:] == [(2, False)]
        outer.cancel_scope.cancel()
