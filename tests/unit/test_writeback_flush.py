"""WriteBack: a flush is a barrier, for what was accepted before it and for what has replaced that."""

from __future__ import annotations

import trio
import trio.testing

from tests.slowservice import SlowService as Service
from tests.unit.written import memory, opened

__all__ = ["memory"]


async def test_flush_makes_durable_in_one_request(memory: int, autojump_clock: trio.testing.MockClock) -> None:
    service = Service()
    async with opened(service, memory) as cache:
        for page in reversed(range(64)):
            await cache.write(page * 4096, bytes([page + 1]) * 4096)
        await cache.flush()
        assert service.writes == [(0, 64 * 4096)]
        assert [service.image[page * 4096] for page in range(64)] == list(range(1, 65))
        assert cache.dirty_bytes == 0


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
        with trio.fail_after(1000):
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
