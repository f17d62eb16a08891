"""WriteBack: reads and page lists see what was accepted, wherever it is on its way to the service."""

from __future__ import annotations

import trio
import trio.testing

from blobfuse_dysk.store.base import PAGE
from tests.slowservice import SIZE
from tests.slowservice import SlowService as Service
from tests.unit.written import memory, opened

__all__ = ["memory"]


async def test_a_write_returns_at_once_and_is_seen(memory: int, autojump_clock: trio.testing.MockClock) -> None:
    service = Service()
    async with opened(service, memory) as cache:
        await cache.write(4096, b"a" * 4096)
        assert service.writes == []
        assert await cache.read(4096, 4096) == b"a" * 4096
        assert await cache.read(0, 12288) == bytes(4096) + b"a" * 4096 + bytes(4096)
        assert cache.dirty_bytes == 4096


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


async def test_extents_know_what_is_dirty(memory: int, autojump_clock: trio.testing.MockClock) -> None:
    service = Service()
    async with opened(service, memory) as cache:
        await cache.write(4096, b"a" * 1024)
        assert await cache.extents(0, SIZE) == [(4096, 1024)]
        assert await cache.extents(4608, PAGE) == [(4608, PAGE)]
