"""WriteBack: when a write goes to the service, how much of them at once, and in pieces of which size."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from blobfuse_dysk.detached import attach
from blobfuse_dysk.errors import StoreError
from blobfuse_dysk.store.contract import MAX_WRITE, PAGE, Buffer
from blobfuse_dysk.store.layers.writeback import MAX_FLIGHT, MAX_IN_FLIGHT, WriteBack
from blobfuse_dysk.store.parts.commitlog import SINGLES
from blobfuse_dysk.store.parts.pacer import IO_SIZE, Pacer
from blobfuse_dysk.store.parts.ring import Ring
from blobfuse_dysk.store.parts.runs import MOST_JOINED
from tests.slowservice import SlowService

MIB = 1 << 20


@pytest.fixture
def ring() -> Iterator[Ring]:
    descriptor = os.memfd_create("ring")
    yield Ring(descriptor, 32 * MIB)
    os.close(descriptor)


class Counting(SlowService):
    """Remembers how many bytes were in flight at most."""

    def __init__(self, size: int) -> None:
        super().__init__(latency_s=1.0, size=size)
        self.now = self.most = 0

    async def write(self, offset: int, data: Buffer) -> None:
        await attach()
        self.now += len(data)
        self.most = max(self.most, self.now)
        try:
            await super().write(offset, data)
        finally:
            self.now -= len(data)


async def commit(cache: WriteBack, count: int, page: int = 0) -> None:
    """Single writes, each with its flush."""
    for number in range(count):
        await cache.write((page + number) * 4096, b"x" * 4096)
        await cache.flush()


async def test_a_log_is_written_through(ring: Ring, autojump_clock: trio.testing.MockClock) -> None:
    service = SlowService(latency_s=1.0)
    async with trio.open_nursery() as nursery:
        cache = WriteBack(service, ring, nursery, idle_s=1000)
        await commit(cache, SINGLES, 8 - SINGLES)
        await cache.write(8 * 4096, b"y" * 4096)
        assert service.writes[-1] == (8 * 4096, 4096)
        before = trio.current_time()
        await cache.flush()
        assert trio.current_time() == before, "there was nothing left to make durable"
        nursery.cancel_scope.cancel()


async def test_the_last_block_of_a_log_may_be_written_again(ring: Ring, autojump_clock: trio.testing.MockClock) -> None:
    service = SlowService(latency_s=1.0)
    async with trio.open_nursery() as nursery:
        cache = WriteBack(service, ring, nursery, idle_s=1000)
        for _ in range(SINGLES):
            await commit(cache, 1, 8)
        await cache.write(8 * 4096, b"y" * 4096)
        assert service.writes == [(8 * 4096, 4096)] * (SINGLES + 1)
        nursery.cancel_scope.cancel()


async def test_single_writes_all_over_the_disk_are_no_log(ring: Ring, autojump_clock: trio.testing.MockClock) -> None:
    """A rollback journal's commits: each write through would cost what the flush after it costs anyway."""
    service = SlowService(latency_s=1.0)
    async with trio.open_nursery() as nursery:
        cache = WriteBack(service, ring, nursery, idle_s=1000)
        for page in (1, 100, 50, 100, 50, 1, 200, 201):
            await commit(cache, 1, page)
        for page in (100, 50):
            before = trio.current_time()
            await cache.write(page * 4096, b"y" * 4096)
            assert trio.current_time() == before
        nursery.cancel_scope.cancel()


async def test_only_the_first_write_after_a_flush_waits(ring: Ring, autojump_clock: trio.testing.MockClock) -> None:
    service = SlowService(latency_s=1.0)
    async with trio.open_nursery() as nursery:
        cache = WriteBack(service, ring, nursery, idle_s=1000)
        await commit(cache, SINGLES, 8 - SINGLES)
        await cache.write(8 * 4096, b"y" * 4096)
        before = trio.current_time()
        await cache.write(8 * 4096, b"z" * 4096)  # where the log goes on, but not the first
        await cache.write(9 * 4096, b"y" * 4096)
        assert trio.current_time() == before
        await cache.flush()
        await cache.write(10 * 4096, b"y" * 4096)
        assert service.writes[-1] == (8 * 4096, 2 * 4096), "several writes before a flush: no log"
        nursery.cancel_scope.cancel()


async def test_a_write_through_that_is_replaced_or_fails(ring: Ring, autojump_clock: trio.testing.MockClock) -> None:
    service = SlowService(latency_s=1.0)
    async with trio.open_nursery() as nursery:
        cache = WriteBack(service, ring, nursery, idle_s=1000)
        await commit(cache, SINGLES, 8 - SINGLES)
        async with trio.open_nursery() as writers:
            writers.start_soon(cache.write, 8 * 4096, b"y" * 4096)
            await trio.testing.wait_all_tasks_blocked()
            await cache.write(8 * 4096, b"z" * 4096)  # of the same place, while the first is on its way
        await cache.flush()
        assert service.image[8 * 4096] == ord("z")
        await commit(cache, SINGLES, 16)
        service.broken = True
        with pytest.raises(StoreError):
            await cache.write((16 + SINGLES) * 4096, b"y" * 4096)
        nursery.cancel_scope.cancel()


async def test_what_is_in_flight_is_bounded(ring: Ring, autojump_clock: trio.testing.MockClock) -> None:
    """The joined copies are the only memory beside the ring. There is twice as much to send as may be in flight."""
    size = 30 * MIB
    assert MAX_FLIGHT + MAX_WRITE < size < ring.capacity
    service = Counting(size)
    async with trio.open_nursery() as nursery:
        cache = WriteBack(service, ring, nursery, idle_s=1000)
        for offset in range(0, size, 128 << 10):
            await cache.write(offset, b"x" * (128 << 10))
        for offset in range(0, size, 128 << 10):  # the first are in flight, these come on top
            await cache.write(offset + 4096, b"y" * 4096)
        await cache.flush()
        nursery.cancel_scope.cancel()
    assert MAX_FLIGHT // 2 < service.most < MAX_FLIGHT + MAX_WRITE


@pytest.mark.parametrize("largest", [256 << 10, MOST_JOINED])
async def test_runs_are_as_large_as_suits_the_service(
    ring: Ring, largest: int, autojump_clock: trio.testing.MockClock
) -> None:
    service = SlowService()
    async with trio.open_nursery() as nursery:
        cache = WriteBack(service, ring, nursery, idle_s=1000, largest=lambda: largest)
        for offset in range(0, 4 * MIB, 65536):
            await cache.write(offset, b"x" * 65536)
        await cache.flush()
        nursery.cancel_scope.cancel()
    assert sorted(service.writes) == [(offset, largest) for offset in range(0, 4 * MIB, largest)]


async def test_a_stream_goes_in_several_requests_at_once(ring: Ring, autojump_clock: trio.testing.MockClock) -> None:
    """One that is as large as a Put Page may be takes more than half of the first window (limiter.py)."""
    service = Counting(8 * MIB)
    async with trio.open_nursery() as nursery:
        cache = WriteBack(service, ring, nursery, idle_s=1000)
        for offset in range(0, 8 * MIB, 65536):
            await cache.write(offset, b"x" * 65536)
        await cache.flush()
        nursery.cancel_scope.cancel()
    assert sorted(service.writes) == [(offset, MOST_JOINED) for offset in range(0, 8 * MIB, MOST_JOINED)]
    assert service.most == 8 * MIB


@pytest.mark.parametrize("length", [MOST_JOINED, MIB, MAX_WRITE])
async def test_long_writes_go_out_of_the_ring_as_they_lie_there(
    ring: Ring, length: int, autojump_clock: trio.testing.MockClock
) -> None:
    class Seeing(SlowService):
        async def write(self, offset: int, data: Buffer) -> None:
            assert isinstance(data, memoryview)
            assert data.obj is ring.memory.obj
            await super().write(offset, data)

    service = Seeing()
    async with trio.open_nursery() as nursery:
        cache = WriteBack(service, ring, nursery, idle_s=1000)
        for number in range(3):
            await cache.write(number * length, bytes([number + 1]) * length)
        await cache.flush()
        nursery.cancel_scope.cancel()
    assert sorted(service.writes) == [(number * length, length) for number in range(3)]
    assert service.image[: 3 * length : length] == bytes([1, 2, 3])


@pytest.mark.parametrize(
    ("bytes_per_s", "largest"),
    [(None, MAX_WRITE), (60e6, IO_SIZE), (150e6, 4 * IO_SIZE), (1e9, MAX_WRITE), (4e6, IO_SIZE)],
)
def test_what_suits_a_service(bytes_per_s: float | None, largest: int) -> None:
    assert Pacer(None, bytes_per_s).largest_write == largest


class Senders(SlowService):
    """Remembers which tasks wrote."""

    def __init__(self) -> None:
        super().__init__(latency_s=0.1)
        self.tasks: set[trio.lowlevel.Task] = set()

    async def write(self, offset: int, data: Buffer) -> None:
        await attach()
        self.tasks.add(trio.lowlevel.current_task())
        await super().write(offset, data)


@pytest.mark.parametrize("slots", [1, 7, MAX_IN_FLIGHT, 10 * MAX_IN_FLIGHT])
async def test_as_few_tasks_as_the_service_takes_requests_send_all(
    slots: int, ring: Ring, autojump_clock: trio.testing.MockClock
) -> None:
    service = Senders()
    async with trio.open_nursery() as nursery:
        cache = WriteBack(service, ring, nursery, slots=lambda: slots)
        for page in range(10 * MAX_IN_FLIGHT):
            await cache.write(page * 2 * PAGE, bytes([page % 255 + 1]) * PAGE)
        await cache.flush()
        assert len(service.writes) == 10 * MAX_IN_FLIGHT
        assert len(service.tasks) == min(slots, MAX_IN_FLIGHT)
        assert all(service.image[page * 2 * PAGE] == page % 255 + 1 for page in range(10 * MAX_IN_FLIGHT))
        nursery.cancel_scope.cancel()


async def test_a_closed_cache_begins_no_more_requests(ring: Ring, autojump_clock: trio.testing.MockClock) -> None:
    service = Senders()
    async with trio.open_nursery() as nursery:
        cache = WriteBack(service, ring, nursery)
        for page in range(3 * MAX_IN_FLIGHT):
            await cache.write(page * 2 * PAGE, b"a" * PAGE)
        nursery.start_soon(cache.flush)
        await trio.testing.wait_all_tasks_blocked()
        await cache.aclose()
        await trio.sleep(100)
        assert len(service.writes) == MAX_IN_FLIGHT
        nursery.cancel_scope.cancel()


async def test_who_waits_for_room_is_served_in_turn_and_may_leave_the_line(
    ring: Ring, autojump_clock: trio.testing.MockClock
) -> None:
    """A writer that is cancelled while it waits leaves nothing behind, and the others come in the order they came."""
    service = SlowService(latency_s=1.0)
    block = 4 * MIB
    accepted: set[int] = set()
    scopes: list[trio.CancelScope] = []

    async def writer(number: int) -> None:
        with trio.CancelScope() as scope:
            scopes.append(scope)
            await cache.write(0, bytes([number]) * block)
            accepted.add(number)

    async with trio.open_nursery() as nursery:
        cache = WriteBack(service, ring, nursery)
        await cache.write(block, b"a" * block)
        nursery.start_soon(cache.flush)
        await trio.testing.wait_all_tasks_blocked()
        while ring.fits(block):  # what is in flight holds all of it
            await cache.write(2 * block, b"b" * block)
        for number in range(5):
            nursery.start_soon(writer, number)
            await trio.testing.wait_all_tasks_blocked()
        scopes[4].cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert not accepted
        await cache.write(0, b"c" * PAGE)
        await trio.testing.wait_all_tasks_blocked()
        assert accepted == {0, 1, 2, 3}
        await cache.flush()
        assert service.image[:block] == b"c" * PAGE + bytes([3]) * (block - PAGE), "who came last was accepted last"
        nursery.cancel_scope.cancel()
