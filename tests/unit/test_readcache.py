"""ReadCache: what it asks below, and that nobody ever sees content older than a write that had returned."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from blobfuse_dysk.errors import StoreError
from blobfuse_dysk.store.contract import Buffer, Store
from blobfuse_dysk.store.layers.readcache import CHUNK, UNUSED_S, ReadCache
from tests.slowservice import SIZE, SlowService


@asynccontextmanager
async def opened(inner: Store, capacity: int = 4 << 20, window: int = 2 << 20) -> AsyncIterator[ReadCache]:
    async with trio.open_nursery() as nursery:
        yield ReadCache(inner, nursery, capacity=capacity, window=window)
        nursery.cancel_scope.cancel()


def filled(service: SlowService) -> SlowService:
    service.image[:] = random.Random(1).randbytes(SIZE)
    return service


async def test_random_reads_cost_what_they_ask_for(autojump_clock: trio.testing.MockClock) -> None:
    service = filled(SlowService())
    places = random.Random(2).sample(range(0, SIZE, 8192), 500)
    async with opened(service) as cache:
        for offset in places:
            assert await cache.read(offset, 4096) == service.image[offset : offset + 4096]
    assert service.reads == [(offset, 4096) for offset in places]


async def test_a_sequential_reader_is_ahead_of_its_requests(autojump_clock: trio.testing.MockClock) -> None:
    service = filled(SlowService())
    async with opened(service) as cache:
        for offset in range(0, SIZE, 65536):
            assert await cache.read(offset, 65536) == service.image[offset : offset + 65536]
    assert len(service.reads) <= SIZE // CHUNK + 2
    assert sum(length for _, length in service.reads) <= SIZE + 2 * 65536
    assert cache.hits >= SIZE // 65536 - 2


async def test_several_streams_at_once(autojump_clock: trio.testing.MockClock) -> None:
    service = filled(SlowService())
    async with opened(service) as cache:
        for step in range(0, SIZE // 4, 65536):
            for stream in range(4):
                offset = stream * SIZE // 4 + step
                assert await cache.read(offset, 65536) == service.image[offset : offset + 65536]
    assert sum(length for _, length in service.reads) <= SIZE * 1.2


async def test_requests_of_one_reader_may_arrive_out_of_order(autojump_clock: trio.testing.MockClock) -> None:
    service = filled(SlowService())
    async with opened(service) as cache:
        offsets = list(range(0, 8 << 20, 32768))
        for at in range(8, len(offsets) - 4, 4):
            offsets[at : at + 4] = random.Random(at).sample(offsets[at : at + 4], 4)
        for offset in offsets:
            assert await cache.read(offset, 32768) == service.image[offset : offset + 32768]
    assert sum(length for _, length in service.reads) <= (8 << 20) + (3 << 20)
    assert len(cache._streams) == 1, "a swap of two requests must not look like another reader"


async def test_read_ahead_stops_where_the_reader_stops(autojump_clock: trio.testing.MockClock) -> None:
    service = filled(SlowService())
    async with opened(service, window=1 << 20) as cache:
        for offset in range(0, 1 << 20, 4096):
            await cache.read(offset, 4096)
        await trio.sleep(1)
    assert max(offset + length for offset, length in service.reads) <= (2 << 20) + CHUNK


async def test_a_fill_that_a_write_overtakes_is_discarded(autojump_clock: trio.testing.MockClock) -> None:
    service = SlowService(latency_s=1.0)
    async with opened(service) as cache, trio.open_nursery() as nursery:
        await cache.read(0, 4096)
        await cache.read(4096, 4096)
        nursery.start_soon(cache.read, 8192, 4096)  # recognised: the chunk is being filled with zeros
        await trio.testing.wait_all_tasks_blocked()
        assert cache._fills
        await cache.write(65536, b"new!" * 128)
        await trio.sleep(10)
        assert await cache.read(65536, 512) == b"new!" * 128


async def test_a_fill_that_begins_during_a_write_is_discarded(autojump_clock: trio.testing.MockClock) -> None:
    service = SlowService(latency_s=1.0)
    async with opened(service) as cache, trio.open_nursery() as nursery:
        await cache.read(0, 4096)
        await cache.read(4096, 4096)
        nursery.start_soon(cache.write, 65536, b"new!" * 128)
        await trio.testing.wait_all_tasks_blocked()
        await cache.read(8192, 4096)
        await trio.sleep(20)
        assert await cache.read(65536, 512) == b"new!" * 128


async def test_errors_of_read_ahead_stay_quiet_and_those_of_reads_do_not(
    autojump_clock: trio.testing.MockClock,
) -> None:
    class Failing(SlowService):
        async def read(self, offset: int, length: int) -> Buffer:
            if offset + length > 1 << 20:
                raise StoreError("no", kind=_KIND)
            return await super().read(offset, length)

    from blobfuse_dysk.errors import Kind

    _KIND = Kind.TIMEOUT
    service = filled(Failing())
    async with opened(service) as cache:
        for offset in range(0, 1 << 20, 65536):
            assert await cache.read(offset, 65536) == service.image[offset : offset + 65536]
        with pytest.raises(StoreError, match="no"):
            await cache.read(1 << 20, 65536)


async def test_memory_is_bounded(autojump_clock: trio.testing.MockClock) -> None:
    service = filled(SlowService())
    async with opened(service, capacity=1 << 20) as cache:
        for offset in range(0, SIZE, 65536):
            await cache.read(offset, 65536)
        assert len(cache._chunks) <= (1 << 20) // CHUNK


async def test_what_was_read_ahead_and_is_not_read_is_given_back(autojump_clock: trio.testing.MockClock) -> None:
    service = filled(SlowService())
    async with opened(service) as cache:
        for turn in range(2):
            for offset in range(0, SIZE // 4, 65536):
                await cache.read(offset, 65536)
                await trio.sleep(UNUSED_S / 16)
            assert cache.status()["read_bytes"], turn
            await trio.sleep(2 * UNUSED_S + 1)
            assert cache.status()["read_bytes"] == 0, turn
        for offset in range(0, SIZE // 4, 65536):
            assert await cache.read(offset, 65536) == service.image[offset : offset + 65536]
