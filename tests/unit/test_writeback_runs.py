"""WriteBack: what goes into one request, and what becomes of the rest when a request fails."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from blobfuse_dysk.detached import attach
from blobfuse_dysk.errors import StoreError
from blobfuse_dysk.store.contract import MAX_WRITE, PAGE, Buffer
from blobfuse_dysk.store.parts.priority import Priority, current_priority
from blobfuse_dysk.store.parts.ring import MIN_CAPACITY
from blobfuse_dysk.testing import CheckedStore
from tests.slowservice import SIZE, SlowService
from tests.unit.written import memory, opened

__all__ = ["memory"]

MIB = 1 << 20


class Attempts(SlowService):
    """Remembers each write that was begun, and how urgent it was."""

    def __init__(self, latency_s: float = 1.0) -> None:
        super().__init__(latency_s=latency_s)
        self.begun: list[tuple[int, Priority]] = []
        self.closed = False

    async def write(self, offset: int, data: Buffer) -> None:
        await attach()
        self.begun.append((offset, current_priority(Priority.FLUSH)))
        await super().write(offset, data)

    async def aclose(self) -> None:
        self.closed = True
        await super().aclose()


@pytest.mark.parametrize("order", [range(6), range(5, -1, -1), (3, 1, 5, 0, 2, 4), (0, 5, 1, 4, 2, 3)])
async def test_runs_keep_to_the_largest_write_in_whatever_order_it_came(
    order: range | tuple[int, ...], memory: int, autojump_clock: MockClock
) -> None:
    """The service refuses a Put Page above 4 MiB for good, and with it all that is dirty would be lost."""
    service = SlowService()
    async with opened(CheckedStore(service), memory, idle_s=1000) as cache:
        for place in order:
            await cache.write(place * MIB, bytes([place + 1]) * MIB)
        await cache.flush()
    assert max(length for _, length in service.writes) <= MAX_WRITE
    assert [service.image[place * MIB] for place in range(6)] == [1, 2, 3, 4, 5, 6]


pieces = st.lists(
    st.tuples(st.booleans(), st.integers(0, 60), st.integers(1, 12), st.sampled_from([0.0, 0.0, 0.0, 0.5, 2.0])),
    min_size=1,
    max_size=40,
)


@settings(max_examples=100, deadline=None)
@given(pieces, st.integers(1, 24), st.sampled_from([1, 2, 128]))
def test_runs_of_writes_and_zeros_in_any_order(
    program: list[tuple[bool, int, int, float]], largest: int, slots: int
) -> None:
    """Neighbours go together, never more than is allowed, never over what is in flight, and all that was written."""

    async def run(memory: int) -> None:
        service = SlowService(latency_s=1.0, size=80 * PAGE)
        service.image[:] = expected = bytearray(b"o" * 80 * PAGE)
        with trio.fail_after(10_000):
            async with opened(
                CheckedStore(service), memory, idle_s=0.5, largest=lambda: largest * PAGE, slots=lambda: slots
            ) as cache:
                for number, (zeros, first, count, pause_s) in enumerate(program):
                    content = bytes(count * PAGE) if zeros else bytes([number + 1]) * count * PAGE
                    expected[first * PAGE : (first + count) * PAGE] = content
                    if zeros:
                        await cache.zero(first * PAGE, count * PAGE)
                    else:
                        await cache.write(first * PAGE, content)
                    await trio.sleep(pause_s)
                    if pause_s == 2.0:
                        await cache.flush()
                        assert service.image == expected
                await cache.flush()
        assert service.image == expected
        alone = max((count for zeros, _, count, _ in program if not zeros), default=0)  # one write is never cut
        assert all(length <= max(largest, alone) * PAGE for _, length in service.writes)

    descriptor = os.memfd_create("ring")
    try:
        trio.run(run, descriptor, clock=MockClock(autojump_threshold=0))
    finally:
        os.close(descriptor)


async def test_neighbours_are_cleared_in_one_request(memory: int, autojump_clock: MockClock) -> None:
    service = SlowService()
    service.image[:] = b"o" * SIZE
    async with opened(service, memory, idle_s=1000) as cache:
        for place in (2, 1, 3, 0, 9):
            await cache.zero(place * MIB, MIB)
        await cache.flush()
    assert sorted(service.zeros) == [(0, 4 * MIB), (9 * MIB, MIB)]
    assert not any(service.image[: 4 * MIB])


async def test_what_replaces_content_that_a_flush_waits_for_is_sent_for_it(
    memory: int, autojump_clock: MockClock
) -> None:
    """It takes the place of what was to be sent, so nobody else would have it sent before it is old."""
    service = Attempts()
    async with opened(service, memory, idle_s=1e6, slots=lambda: 1) as cache, trio.open_nursery() as nursery:
        await cache.write(0, b"a" * PAGE)
        await cache.write(MIB, b"b" * PAGE)
        with trio.fail_after(20):
            async with trio.open_nursery() as flushes:
                flushes.start_soon(cache.flush)
                await wait_all_tasks_blocked()
                await cache.write(MIB, b"c" * PAGE)
        assert service.image[MIB : MIB + PAGE] == b"c" * PAGE
        nursery.cancel_scope.cancel()


async def test_what_a_flush_waits_for_stays_urgent_whatever_is_written_meanwhile(
    memory: int, autojump_clock: MockClock
) -> None:
    service = Attempts()
    async with opened(service, memory, idle_s=1e6, slots=lambda: 1) as cache, trio.open_nursery() as nursery:
        for place in range(6):
            await cache.write(2 * place * PAGE, b"a" * PAGE)
        nursery.start_soon(cache.flush)
        await wait_all_tasks_blocked()
        for place in range(2):  # more than a quarter of the ring
            await cache.write((2 * place + 4) * MIB, b"b" * (MIB + MIB // 4))
        await trio.sleep(100)
        assert service.begun[:6] == [(2 * place * PAGE, Priority.FLUSH) for place in range(6)]


async def test_what_is_accepted_while_others_wait_for_room_is_urgent(memory: int, autojump_clock: MockClock) -> None:
    """It has to be sent before they get their room. Only what came last has nobody waiting behind it."""

    class InTurn(Attempts):
        """Acknowledges one after the other, so that each makes room for one writer."""

        async def write(self, offset: int, data: Buffer) -> None:
            await attach()
            self.begun.append((offset, current_priority(Priority.FLUSH)))
            await trio.sleep(1 + offset / SIZE)

    service = InTurn()
    length = MIB // 4
    room = MIN_CAPACITY // (length + 64)
    async with opened(service, memory, idle_s=1e6) as cache:
        for place in range(room):
            await cache.write(2 * place * length, b"a" * length)
        async with trio.open_nursery() as nursery:
            for place in range(room):
                nursery.start_soon(cache.write, (2 * place + 1) * length, b"b" * length)
        await trio.sleep(100)
    waited = [urgency for offset, urgency in service.begun if offset // length % 2]
    assert len(waited) == room
    assert waited.count(Priority.FLUSH) > room // 2


async def test_nothing_more_is_sent_after_a_lost_write(memory: int, autojump_clock: MockClock) -> None:
    service = Attempts()
    service.broken = True
    async with opened(service, memory, slots=lambda: 1) as cache:
        for place in range(6):
            await cache.write(2 * place * PAGE, b"a" * PAGE)
        with pytest.raises(StoreError), trio.fail_after(1000):
            await cache.flush()
        service.broken = False
        await trio.sleep(1000)
        assert service.begun == [(0, Priority.FLUSH)]
        assert service.writes == []


@pytest.mark.parametrize("calls", [1, 3])
async def test_all_who_flush_are_told_of_a_lost_write(calls: int, memory: int, autojump_clock: MockClock) -> None:
    service = Attempts()
    service.broken = True
    failed: list[bool] = []

    async def call(flush: Callable[[], object]) -> None:
        with pytest.raises(StoreError):
            await flush()  # type: ignore[misc]
        failed.append(True)

    async with opened(service, memory) as cache:
        await cache.write(0, b"a" * PAGE)
        with trio.fail_after(1000):
            async with trio.open_nursery() as nursery:
                for _ in range(calls):
                    nursery.start_soon(call, cache.flush)
    assert len(failed) == calls


async def test_what_a_dead_worker_had_accepted_is_sent_at_once(memory: int, autojump_clock: MockClock) -> None:
    service = Attempts()
    async with opened(service, memory, idle_s=1e6) as cache:
        await cache.write(0, b"a" * PAGE)
    assert not service.begun
    async with opened(service, memory, idle_s=1e6):
        await trio.sleep(10)
        assert service.writes == [(0, PAGE)]


async def test_closing_closes_the_layer_below_and_flushes_nothing(memory: int, autojump_clock: MockClock) -> None:
    service = Attempts()
    async with opened(service, memory) as cache:
        await cache.write(0, b"a" * PAGE)
        await cache.aclose()
        await trio.sleep(100)
    assert service.closed
    assert not service.begun


async def test_flush_is_passed_on(memory: int, autojump_clock: MockClock) -> None:
    """Also where nothing is dirty: what is below may have to make something durable itself."""

    class Flushes(SlowService):
        count = 0

        async def flush(self) -> None:
            self.count += 1
            await super().flush()

    service = Flushes()
    async with opened(service, memory) as cache:
        await cache.flush()
        await cache.write(0, b"a" * PAGE)
        await cache.flush()
    assert service.count == 2
