"""WriteBack against a slow, failing inner store on a virtual clock: urgency, room, failures, the next worker."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from blobfuse_dysk.detached import attach
from blobfuse_dysk.errors import StoreError
from blobfuse_dysk.store.contract import PAGE, Buffer
from blobfuse_dysk.store.layers.writeback import IDLE_IN_FLIGHT, WriteBack
from blobfuse_dysk.store.parts.priority import Priority, current_priority
from blobfuse_dysk.store.parts.ring import MIN_CAPACITY
from tests.slowservice import SIZE
from tests.slowservice import SlowService as Service
from tests.unit.written import memory, opened

__all__ = ["memory"]


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
        await attach()
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


async def test_zeros_are_cleared_not_written(memory: int, autojump_clock: trio.testing.MockClock) -> None:
    service = Service()
    async with opened(service, memory) as cache:
        await cache.write(0, b"a" * 8192)
        await cache.zero(4096, SIZE - 4096)
        assert await cache.read(0, 8192) == b"a" * 4096 + bytes(4096)
        await cache.flush()
        assert service.zeros == [(4096, SIZE - 4096)]
        assert service.writes == [(0, 4096)]


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
        with pytest.raises(StoreError, match="gone"), trio.fail_after(1000):
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
