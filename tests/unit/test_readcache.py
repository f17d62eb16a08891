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
from blobfuse_dysk.store.layers.readcache import UNUSED_S, ReadCache
from blobfuse_dysk.store.parts.readahead import CROWD, CROWDED_READS
from blobfuse_dysk.store.parts.readahead import UNIT as SMALL_UNIT
from blobfuse_dysk.store.passage import NO, Lane
from blobfuse_dysk.testing import LaneStore
from tests.slowservice import SIZE, SlowService

UNIT = 1 << 20  # bytes of a large read


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


async def test_a_read_that_the_lane_below_refuses_is_looked_at_once(autojump_clock: trio.testing.MockClock) -> None:
    service = filled(SlowService())
    service.plain_read = Lane(lambda passage: NO)
    places = range(0, 40 << 14, 2 << 14)
    async with opened(service) as cache:
        lanes = LaneStore(cache)
        for offset in places:
            assert await lanes.read(offset, 4096) == service.image[offset : offset + 4096]
        assert (lanes.passed, cache.hits, cache.misses) == (0, 0, len(places))
    assert service.reads == [(offset, 4096) for offset in places]


async def test_a_sequential_reader_is_ahead_of_its_requests(autojump_clock: trio.testing.MockClock) -> None:
    service = filled(SlowService())
    async with opened(service) as cache:
        for offset in range(0, SIZE, 65536):
            assert await cache.read(offset, 65536) == service.image[offset : offset + 65536]
    assert len(service.reads) <= SIZE // SMALL_UNIT + 5  # two reads and the first windows
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
    assert max(offset + length for offset, length in service.reads) <= 2 << 20


async def test_a_fill_that_a_write_overtakes_is_discarded(autojump_clock: trio.testing.MockClock) -> None:
    service = SlowService(latency_s=1.0)
    async with opened(service) as cache, trio.open_nursery() as nursery:
        await cache.read(0, 4096)
        await cache.read(4096, 4096)
        nursery.start_soon(cache.read, 8192, 4096)  # recognised: the chunk is being filled with zeros
        await trio.testing.wait_all_tasks_blocked()
        assert cache._starts
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
        await trio.sleep(5)  # less than until what is not read is given back
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
            assert sum(piece.end - piece.start for piece in cache._pieces.values()) == cache._bytes <= 1 << 20
    assert len(service.reads) <= 2 + SIZE // SMALL_UNIT + 3, "what was fetched was evicted before it was read"


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


class Noting(SlowService):
    """Remembers what it returned, and how many reads there were at once."""

    def __init__(self, latency_s: float = 0.002) -> None:
        super().__init__(latency_s=latency_s)
        self.returned: list[bytes] = []

    async def read(self, offset: int, length: int) -> Buffer:
        data = bytes(await super().read(offset, length))
        self.returned.append(data)
        return data


@pytest.mark.parametrize("place", [0, 8192, 192 << 10])
@pytest.mark.parametrize("length", [512 << 10, 640 << 10, UNIT])
async def test_large_reads_in_order_are_answered_by_what_came(
    length: int, place: int, autojump_clock: trio.testing.MockClock
) -> None:
    """Not by a copy of it, wherever the stream begins; and all but the first have been fetched before."""
    service = Noting()
    filled(service)
    reads = (SIZE - place) // length
    async with opened(service, capacity=32 << 20, window=8 << 20) as cache:
        for offset in range(place, place + reads * length, length):
            data = await cache.read(offset, length)
            assert data == service.image[offset : offset + length]
            assert any(data is each for each in service.returned)
    assert cache.hits == reads - 2
    assert len(service.reads) <= reads + 1


@pytest.mark.parametrize("depth", [CROWD, 8])
async def test_large_reads_that_come_several_at_once_cost_what_they_ask_for(
    depth: int, autojump_clock: trio.testing.MockClock
) -> None:
    """As without a cache, from the moment on at which that is known."""
    service = Noting()
    filled(service)
    left = list(range(0, SIZE, UNIT))
    wanted = list(left)

    async def reader(cache: ReadCache) -> None:
        while left:
            offset = left.pop(0)
            assert await cache.read(offset, UNIT) == service.image[offset : offset + UNIT]

    async with opened(service, capacity=32 << 20, window=8 << 20) as cache:
        async with trio.open_nursery() as nursery:
            for _ in range(depth):
                nursery.start_soon(reader, cache)
        assert cache.misses >= len(wanted) - CROWD
        assert sorted(service.reads) == [(offset, UNIT) for offset in wanted]


async def test_where_the_service_is_far_more_is_fetched_than_a_crowd_asks_for(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """And that ends when the service is near again, though nothing but the cache asks it then."""
    service = Noting(latency_s=0.1)
    service.image = bytearray(192 << 20)
    left = list(range(0, service.size, UNIT))
    far = len(left) // 2
    misses: list[int] = []

    async def reader(cache: ReadCache) -> None:
        while left:
            offset = left.pop(0)
            if offset == far * UNIT:
                service._latency_s = 0.002
            misses.append(cache.misses)
            await cache.read(offset, UNIT)

    async with opened(service, capacity=32 << 20, window=8 << 20) as cache, trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(reader, cache)
    assert misses[far] == misses[far // 2]
    assert misses[-1] >= misses[far] + CROWDED_READS, "they were a crowd again"


async def test_large_reads_far_from_each_other_are_no_crowd(autojump_clock: trio.testing.MockClock) -> None:
    service = Noting(latency_s=0.01)
    service.image = bytearray(96 << 20)

    async def reader(cache: ReadCache, place: int) -> None:
        for offset in range(place, place + (8 << 20), UNIT):
            await cache.read(offset, UNIT)

    async with opened(service, capacity=64 << 20, window=32 << 20) as cache:
        async with trio.open_nursery() as nursery:
            for number in range(CROWD + 1):
                nursery.start_soon(reader, cache, number * (20 << 20))
        assert cache.misses == 2 * (CROWD + 1)


async def test_what_was_read_is_not_kept(autojump_clock: trio.testing.MockClock) -> None:
    """The kernel has it. Requests of one reader may arrive out of order, so a piece goes when all of it was read."""
    service = filled(SlowService())
    async with opened(service, capacity=32 << 20, window=2 << 20) as cache:
        offsets = list(range(0, 8 << 20, 65536))
        for at in range(8, len(offsets) - 4, 4):
            offsets[at : at + 4] = reversed(offsets[at : at + 4])
        for offset in offsets:
            assert await cache.read(offset, 65536) == service.image[offset : offset + 65536]
            await trio.sleep(0.1)
            kept = cache.status()["read_bytes"]
            assert isinstance(kept, int) and kept <= (2 << 20) + 2 * UNIT
        assert cache.misses == 2, "a piece was dropped before all of it was read"


async def test_what_is_fetched_goes_on_where_the_reader_will(autojump_clock: trio.testing.MockClock) -> None:
    service = filled(SlowService())
    async with opened(service) as cache:
        for offset in range(3 * 4096, SIZE - 65536, 65536):
            await cache.read(offset, 65536)
        assert all((offset - 3 * 4096) % 65536 == 0 for offset, _ in service.reads)
    assert sum(length for _, length in service.reads) <= SIZE


async def test_of_pieces_that_nobody_read_the_oldest_make_room(autojump_clock: trio.testing.MockClock) -> None:
    service = SlowService()
    async with opened(service, capacity=4 * UNIT) as cache:
        for start in (8, 2, 5, 0):
            cache._fetch(start * UNIT, (start + 1) * UNIT, UNIT, 0)
            await trio.sleep(1)
        cache._fetch(12 * UNIT, 14 * UNIT, UNIT, 0)
        await trio.sleep(1)
        assert sorted(cache._pieces) == cache._starts == [start * UNIT for start in (0, 5, 12, 13)]
        assert cache.status()["read_bytes"] == 4 * UNIT


async def test_fills_that_were_dropped_count_until_they_end(autojump_clock: trio.testing.MockClock) -> None:
    """Their memory is there as long: a writer beside a reader must not make it more than the cache may have."""
    service = SlowService(latency_s=10)
    async with opened(service, capacity=2 * UNIT) as cache:
        cache._fetch(0, 3 * UNIT, UNIT, 0)
        assert sorted(cache._pieces) == [0, UNIT], "what is on its way makes no room"
        cache._drop(0, 2 * UNIT)
        cache._fetch(4 * UNIT, 5 * UNIT, UNIT, 0)
        assert not cache._pieces
        await trio.sleep(100)
        assert cache._bytes == 0
        cache._fetch(4 * UNIT, 6 * UNIT, UNIT, 0)
        assert sorted(cache._pieces) == [4 * UNIT, 5 * UNIT]
        await trio.sleep(100)
        cache._drop(0, SIZE)
        assert cache._bytes == 0
