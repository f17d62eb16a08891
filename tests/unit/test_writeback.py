"""WriteBack against a slow, failing inner store on a virtual clock: overlays, barriers, overlap, crashes."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from blobfuse_dysk.errors import StoreError
from blobfuse_dysk.store.base import PAGE, Buffer, Store
from blobfuse_dysk.store.priority import Priority, current_priority
from blobfuse_dysk.store.ring import MIN_CAPACITY, Ring
from blobfuse_dysk.store.writeback import IDLE_IN_FLIGHT, WriteBack
from tests.slowservice import SIZE
from tests.slowservice import SlowService as Service


@asynccontextmanager
async def opened(service: Store, memory: int, *, idle_s: float = 1.0) -> AsyncIterator[WriteBack]:
    """A worker's life: the cache over the service, on the holder's memory; leaving it is being killed."""
    ring = Ring(memory, MIN_CAPACITY)
    async with trio.open_nursery() as nursery:
        yield WriteBack(service, ring, nursery, idle_s=idle_s)
        nursery.cancel_scope.cancel()


@pytest.fixture
def memory():  # type: ignore[no-untyped-def]
    descriptor = os.memfd_create("ring")
    yield descriptor
    os.close(descriptor)


async def test_a_write_returns_at_once_and_is_seen(memory: int, autojump_clock: trio.testing.MockClock) -> None:
    service = Service()
    async with opened(service, memory) as cache:
        await cache.write(4096, b"a" * 4096)
        assert service.writes == []
        assert await cache.read(4096, 4096) == b"a" * 4096
        assert await cache.read(0, 12288) == bytes(4096) + b"a" * 4096 + bytes(4096)
        assert cache.dirty_bytes == 4096


async def test_flush_makes_durable_in_one_request(memory: int, autojump_clock: trio.testing.MockClock) -> None:
    service = Service()
    async with opened(service, memory) as cache:
        for page in reversed(range(64)):
            await cache.write(page * 4096, bytes([page + 1]) * 4096)
        await cache.flush()
        assert service.writes == [(0, 64 * 4096)]
        assert [service.image[page * 4096] for page in range(64)] == list(range(1, 65))
        assert cache.dirty_bytes == 0


async def test_idle_data_is_sent_within_the_bound(memory: int, autojump_clock: trio.testing.MockClock) -> None:
    service = Service()
    async with opened(service, memory, idle_s=1.0) as cache:
        await cache.write(0, b"a" * 512)
        await trio.sleep(0.9)
        await cache.write(8192, b"b" * 512)
        assert service.writes == []
        await trio.sleep(0.2)
        assert sorted(service.writes) == [(0, 512), (8192, 512)]


class Urgencies(Service):
    """Remembers how urgent each write was."""

    def __init__(self) -> None:
        super().__init__(latency_s=0.1)
        self.urgencies: list[Priority] = []

    async def write(self, offset: int, data: Buffer) -> None:
        self.urgencies.append(current_priority(Priority.FLUSH))
        await super().write(offset, data)


async def test_what_is_only_old_yields_and_a_flush_does_not_wait_for_much_of_it(
    memory: int, autojump_clock: trio.testing.MockClock
) -> None:
    service = Urgencies()
    async with opened(service, memory, idle_s=1.0) as cache:
        for page in range(100):
            await cache.write(page * 8192, b"a" * 512)
        await trio.sleep(1.01)
        assert service.urgencies == [Priority.DRAIN] * IDLE_IN_FLIGHT
        await cache.flush()
        assert service.urgencies[IDLE_IN_FLIGHT:] == [Priority.FLUSH] * (100 - IDLE_IN_FLIGHT)
        await cache.write(0, b"b" * 512)
        await trio.sleep(1.05)
        assert service.urgencies[100:] == [Priority.DRAIN]


async def test_what_is_sent_for_room_goes_along_with_reads_until_a_writer_waits(
    memory: int, autojump_clock: trio.testing.MockClock
) -> None:
    service = Urgencies()
    async with opened(service, memory) as cache:
        step = 128 << 10
        half = MIN_CAPACITY // 2 // step
        for turn in range(half):
            await cache.write(turn % 64 * 2 * step, b"a" * step)
        await trio.testing.wait_all_tasks_blocked()
        assert set(service.urgencies) == {Priority.READ}
        for turn in range(2 * half):
            await cache.write(turn % 64 * 2 * step, b"b" * step)
        assert service.urgencies[-1] is Priority.FLUSH


async def test_newest_data_wins_over_data_in_flight(memory: int, autojump_clock: trio.testing.MockClock) -> None:
    service = Service(latency_s=1.0)
    async with opened(service, memory) as cache, trio.open_nursery() as nursery:
        await cache.write(0, b"old" * 1024 + b"x" * 1024)
        nursery.start_soon(cache.flush)
        await trio.testing.wait_all_tasks_blocked()
        await cache.write(512, b"new!" * 128)
        expected = (b"old" * 1024 + b"x" * 1024)[:512] + b"new!" * 128 + (b"old" * 1024 + b"x" * 1024)[1024:]
        assert await cache.read(0, 4096) == expected
        await cache.flush()
        assert service.image[:4096] == expected
        assert len(service.writes) == 2


async def test_a_flush_waits_for_what_replaced_its_data(memory: int, autojump_clock: trio.testing.MockClock) -> None:
    """Content accepted before a flush and replaced during it: the flush may return only when the newer is durable."""
    service = Service(latency_s=1.0)
    async with opened(service, memory, idle_s=1e6) as cache:
        await cache.write(0, b"1" * 512)  # sent first, so that what follows waits behind it
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cache.flush)
            await trio.testing.wait_all_tasks_blocked()
            await cache.write(0, b"2" * 512)
            done = trio.Event()

            async def flush() -> None:
                await cache.flush()
                assert service.image[0:512] in (b"2" * 512, b"3" * 512)
                done.set()

            nursery.start_soon(flush)
            await trio.testing.wait_all_tasks_blocked()
            await cache.write(0, b"3" * 512)
            with trio.fail_after(100):  # far below idle_s: the flush itself must have it sent
                await done.wait()


async def test_flushes_share_the_work(memory: int, autojump_clock: trio.testing.MockClock) -> None:
    service = Service(latency_s=1.0)
    async with opened(service, memory) as cache:
        await cache.write(0, b"a" * 4096)
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(cache.flush)
        assert service.writes == [(0, 4096)]


async def test_a_flush_does_not_wait_for_later_writes(memory: int, autojump_clock: trio.testing.MockClock) -> None:
    service = Service(latency_s=1.0)
    async with opened(service, memory, idle_s=1000) as cache:
        await cache.write(0, b"a" * 512)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cache.flush)
            await trio.testing.wait_all_tasks_blocked()
            await cache.write(1 << 20, b"b" * 512)
        assert service.writes == [(0, 512)]


async def test_a_second_flush_does_not_wait_for_later_writes(
    memory: int, autojump_clock: trio.testing.MockClock
) -> None:
    """It finds nothing of its own to make durable, only what the first waits for; what comes later is not its own."""
    service = Service(latency_s=1.0)
    async with opened(service, memory, idle_s=0.01) as cache:
        await cache.write(0, b"a" * 512)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cache.flush)
            await trio.testing.wait_all_tasks_blocked()
            done = trio.Event()

            async def second() -> None:
                await cache.flush()
                done.set()

            nursery.start_soon(second)
            await trio.testing.wait_all_tasks_blocked()
            for page in range(1, 1000):  # something of it is under way at every moment
                await cache.write(page * 8192, b"b" * 512)
                await trio.sleep(0.1)
            assert done.is_set()


async def test_zeros_are_cleared_not_written(memory: int, autojump_clock: trio.testing.MockClock) -> None:
    service = Service()
    async with opened(service, memory) as cache:
        await cache.write(0, b"a" * 8192)
        await cache.zero(4096, SIZE - 4096)
        assert await cache.read(0, 8192) == b"a" * 4096 + bytes(4096)
        await cache.flush()
        assert service.zeros == [(4096, SIZE - 4096)]
        assert service.writes == [(0, 4096)]


async def test_extents_know_what_is_dirty(memory: int, autojump_clock: trio.testing.MockClock) -> None:
    service = Service()
    async with opened(service, memory) as cache:
        await cache.write(4096, b"a" * 1024)
        assert await cache.extents(0, SIZE) == [(4096, 1024)]
        assert await cache.extents(4608, PAGE) == [(4608, PAGE)]


async def test_a_full_ring_makes_writers_wait_not_fail(memory: int, autojump_clock: trio.testing.MockClock) -> None:
    service = Service(latency_s=0.01)
    async with opened(service, memory) as cache:

        async def writer(place: int) -> None:
            for number in range(10):
                await cache.write(place << 20, bytes([place * 10 + number]) * (1 << 20))

        async with trio.open_nursery() as nursery:
            for place in range(4):
                nursery.start_soon(writer, place)
        await cache.flush()
        assert [service.image[place << 20] for place in range(4)] == [9, 19, 29, 39]
        assert cache.dirty_bytes == 0


async def test_a_lost_write_latches(memory: int, autojump_clock: trio.testing.MockClock) -> None:
    service = Service()
    async with opened(service, memory) as cache:
        await cache.write(0, b"a" * 512)
        service.broken = True
        with pytest.raises(StoreError, match="gone"):
            await cache.flush()
        service.broken = False
        for call in (cache.flush(), cache.write(0, b"b" * 512), cache.zero(0, 512)):
            with pytest.raises(StoreError, match="earlier write was lost"):
                await call
        assert await cache.read(0, 512) == b"a" * 512


async def test_writers_waiting_for_room_fail_when_it_latches(
    memory: int, autojump_clock: trio.testing.MockClock
) -> None:
    service = Service()
    service.broken = True
    async with opened(service, memory) as cache:
        with pytest.raises(StoreError):
            for index in range(16):
                await cache.write(index << 20, b"a" * (1 << 20))


async def test_every_writer_waiting_for_room_fails_when_it_latches(
    memory: int, autojump_clock: trio.testing.MockClock
) -> None:
    """Only the first in line is there to see the failure; those behind it must not wait for room that never comes."""
    service = Service()
    service.broken = True
    ended: list[str] = []

    async def writer(cache: WriteBack, place: int) -> None:
        try:
            await cache.write(place << 20, b"a" * (1 << 20))
        except StoreError:
            ended.append("failed")
        else:
            ended.append("accepted")

    async with opened(service, memory) as cache:
        with trio.fail_after(1000):
            async with trio.open_nursery() as nursery:
                for place in range(SIZE >> 20):
                    nursery.start_soon(writer, cache, place)
        room = MIN_CAPACITY // ((1 << 20) + PAGE)
        assert sorted(ended) == ["accepted"] * room + ["failed"] * ((SIZE >> 20) - room)


async def test_a_new_worker_takes_up_what_was_accepted(memory: int, autojump_clock: trio.testing.MockClock) -> None:
    service = Service()
    async with opened(service, memory) as cache:
        await cache.write(0, b"a" * 4096)
        await cache.write(1024, b"b" * 512)
        await cache.zero(2048, 512)
    async with opened(service, memory) as cache:
        expected = b"a" * 1024 + b"b" * 512 + b"a" * 512 + bytes(512) + b"a" * 1536
        assert await cache.read(0, 4096) == expected
        await cache.flush()
        assert service.image[:4096] == expected


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 1 << 32))
def test_model(seed: int) -> None:
    """Random writers, readers, flushes, cancellations, worker kills and node crashes; every page is checked.

    Each page write carries its own number. A read must return a number not older than the newest write that had
    returned when it began, and not newer than the newest begun when it ended. After a node crash (the ring is gone too)
    each page holds a number not older than the last flush that returned guarantees.
    """
    trio.run(_model, seed, clock=trio.testing.MockClock(autojump_threshold=0))


PAGES = 48


async def _model(seed: int) -> None:
    rng = random.Random(seed)
    service = Service(seed)
    numbers = iter(range(1, 1 << 30))
    history: list[list[int]] = [[0] for _ in range(PAGES)]  # begun writes of a page, in order; 0: zeros
    accepted = [0] * PAGES  # index into history of the newest write that returned
    durable = [0] * PAGES  # the same, as of the last flush that returned
    busy: set[int] = set()  # pages under a modifying call: callers do not overlap their own writes

    def number(data: Buffer) -> int:
        return int.from_bytes(bytes(data[:8]), "little")

    async def write(cache: WriteBack) -> None:
        first = rng.randrange(PAGES)
        count = rng.randint(1, min(8, PAGES - first))
        pages = range(first, first + count)
        if busy.intersection(pages):
            return
        busy.update(pages)
        kind = rng.random()
        stamps = [0 if kind < 0.15 else next(numbers) for _ in pages]
        for page, stamp in zip(pages, stamps, strict=True):
            history[page].append(stamp)
        places = [len(history[page]) - 1 for page in pages]
        try:
            if kind < 0.15:
                await cache.zero(first * PAGE, count * PAGE)
            else:
                await cache.write(first * PAGE, b"".join(s.to_bytes(8, "little") * 64 for s in stamps))
            for page, place in zip(pages, places, strict=True):
                accepted[page] = place
        finally:
            busy.difference_update(pages)

    async def read(cache: WriteBack) -> None:
        first = rng.randrange(PAGES)
        count = rng.randint(1, PAGES - first)
        floor = accepted[first : first + count]
        data = await cache.read(first * PAGE, count * PAGE)
        for index in range(count):
            page = memoryview(data)[index * PAGE : (index + 1) * PAGE]
            assert bytes(page) == bytes(page[:8]) * 64, "a torn page"
            assert number(page) in history[first + index][floor[index] :]

    async def flush(cache: WriteBack) -> None:
        before = list(accepted)
        await cache.flush()
        durable[:] = [max(a, b) for a, b in zip(durable, before, strict=True)]
        for page in range(PAGES):
            assert number(service.image[page * PAGE : page * PAGE + 8]) in history[page][before[page] :]

    async def client(cache: WriteBack) -> None:
        for _ in range(rng.randint(1, 25)):
            action = rng.choices((write, read, flush), (6, 3, 1))[0]
            with trio.move_on_after(0.001 if rng.random() < 0.1 else 1000):
                await action(cache)
            if rng.random() < 0.5:
                await trio.sleep(rng.expovariate(500))

    memory = os.memfd_create("ring")
    try:
        for _ in range(rng.randint(1, 4)):
            async with opened(service, memory, idle_s=rng.choice((0.001, 0.02, 1.0))) as cache:
                with trio.move_on_after(rng.choice((0.005, 0.05, 1000))):  # a kill, or an orderly end
                    async with trio.open_nursery() as nursery:
                        for _ in range(rng.randint(1, 6)):
                            nursery.start_soon(client, cache)
            if rng.random() < 0.3:  # the node goes down: the ring is lost, the service is all there is
                os.close(memory)
                memory = os.memfd_create("ring")
                for page in range(PAGES):
                    found = number(service.image[page * PAGE : page * PAGE + 8])
                    assert found in history[page][durable[page] :]
                    history[page] = [found]
                accepted[:] = durable[:] = [0] * PAGES
        async with opened(service, memory) as cache:
            await read(cache)
            await flush(cache)
    finally:
        os.close(memory)
