"""WriteBack: reads and page lists see what was accepted, wherever it is on its way to the service."""

from __future__ import annotations

import os

import pytest
import trio
import trio.lowlevel
from trio.testing import MockClock, wait_all_tasks_blocked

from blobfuse_dysk.detached import attach
from blobfuse_dysk.store.contract import PAGE, Buffer, Extent
from blobfuse_dysk.store.layers.writeback import WriteBack
from blobfuse_dysk.store.parts import ring as ring_module
from tests.slowservice import SlowService as Service
from tests.unit.written import memory, opened

__all__ = ["memory"]


async def test_a_write_returns_at_once_and_is_seen(memory: int, autojump_clock: MockClock) -> None:
    service = Service()
    async with opened(service, memory) as cache:
        await cache.write(4096, b"a" * 4096)
        assert service.writes == []
        assert await cache.read(4096, 4096) == b"a" * 4096
        assert await cache.read(0, 12288) == bytes(4096) + b"a" * 4096 + bytes(4096)
        assert cache.dirty_bytes == 4096


async def test_newest_data_wins_over_data_in_flight(memory: int, autojump_clock: MockClock) -> None:
    service = Service(latency_s=1.0)
    async with opened(service, memory) as cache, trio.open_nursery() as nursery:
        await cache.write(0, b"old" * 1024 + b"x" * 1024)
        nursery.start_soon(cache.flush)
        await wait_all_tasks_blocked()
        await cache.write(512, b"new!" * 128)
        expected = (b"old" * 1024 + b"x" * 1024)[:512] + b"new!" * 128 + (b"old" * 1024 + b"x" * 1024)[1024:]
        assert await cache.read(0, 4096) == expected
        await cache.flush()
        assert service.image[:4096] == expected
        assert len(service.writes) == 2


async def test_extents_know_what_is_dirty(memory: int, autojump_clock: MockClock) -> None:
    service = Service()
    async with opened(service, memory) as cache:
        await cache.write(4096, b"a" * 1024)
        assert await cache.extents(0, 65536) == [(4096, 1024)]
        assert await cache.extents(4608, PAGE) == [(4608, PAGE)]


class Waiting(Service):
    """Reads and page lists are answered late, with what was there when they were asked for."""

    async def read(self, offset: int, length: int) -> Buffer:
        image = bytes(self.image[offset : offset + length])
        await trio.sleep(100)
        return image

    async def extents(self, offset: int, length: int) -> list[Extent]:
        found = await super().extents(offset, length)
        await trio.sleep(100)
        return found


async def test_a_read_that_waits_while_the_ring_goes_round(memory: int, autojump_clock: MockClock) -> None:
    """Half of what it asks for is in the ring; when the service has answered for the rest, other writes lie there."""
    service = Waiting(latency_s=0.001)
    found: list[bytes] = []
    async with opened(service, memory) as cache:
        await cache.write(0, b"a" * PAGE)

        async def read() -> None:
            found.append(bytes(await cache.read(0, 2 * PAGE)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await wait_all_tasks_blocked()
            for _ in range(3):
                for place in range(1, 8):
                    await cache.write(place << 20, b"z" * (1 << 20))
                await cache.flush()
            assert not found
        assert found == [b"a" * PAGE + bytes(PAGE)]


class Gated(Service):
    """Writes end when the gate opens, all in one step; reads are answered at once."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = trio.Event()

    async def read(self, offset: int, length: int) -> Buffer:
        await trio.lowlevel.checkpoint()
        return bytes(self.image[offset : offset + length])

    async def write(self, offset: int, data: Buffer) -> None:
        await attach()
        content = bytes(data)
        await self.gate.wait()
        self.image[offset : offset + len(content)] = content


@pytest.mark.parametrize("waiting", [0, 8])
async def test_reads_in_every_step_in_which_places_in_the_ring_change_hands(
    waiting: int, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """An acknowledgement frees the place of what is being read, and in that step another write may take it."""
    monkeypatch.setattr(ring_module, "MIN_CAPACITY", 64)
    records = 16

    async def read(cache: WriteBack, page: int) -> None:
        assert await cache.read(2 * page * PAGE, PAGE) == bytes([page + 1]) * PAGE

    async def once(memory: int) -> None:
        service = Gated()
        async with opened(service, memory, capacity=records * (PAGE + 64)) as cache, trio.open_nursery() as nursery:
            for page in range(records):
                await cache.write(2 * page * PAGE, bytes([page + 1]) * PAGE)
            for page in range(waiting):
                nursery.start_soon(cache.write, (100 + page) * PAGE, b"w" * PAGE)
            await wait_all_tasks_blocked()
            service.gate.set()
            for step in range(8):
                for page in range(records):
                    nursery.start_soon(read, cache, page)
                for page in range(4):
                    nursery.start_soon(cache.write, (200 + 4 * step + page) * PAGE, b"v" * PAGE)
                await trio.lowlevel.checkpoint()

    for _ in range(10):  # the order of tasks within a step is another one each time
        memory = os.memfd_create("ring")
        try:
            await once(memory)
        finally:
            os.close(memory)


async def test_every_part_of_a_disk_in_all_states(memory: int, autojump_clock: MockClock) -> None:
    """Pages clean, in flight, dirty, both, and cleared, beside one another: each range of them reads as it should."""
    service = Service(latency_s=1.0)
    pages = 16
    service.image[: pages * PAGE] = expected = bytearray(b"".join(bytes([n]) * PAGE for n in range(100, 100 + pages)))

    async def put(cache: WriteBack, first: int, count: int, letter: str | None) -> None:
        content = b"".join(f"{letter}{n:03}".encode() * (PAGE // 4) for n in range(count)) if letter else None
        if content is None:
            await cache.zero(first * PAGE, count * PAGE)
        else:
            await cache.write(first * PAGE, content)
        expected[first * PAGE : (first + count) * PAGE] = content or bytes(count * PAGE)

    async with opened(service, memory, idle_s=1000) as cache, trio.open_nursery() as nursery:
        await put(cache, 1, 5, "f")
        await put(cache, 7, 3, None)
        await put(cache, 11, 3, "g")
        nursery.start_soon(cache.flush)
        await wait_all_tasks_blocked()
        await put(cache, 2, 1, "d")
        await put(cache, 5, 4, "e")
        await put(cache, 12, 1, None)
        await put(cache, 14, 1, "h")
        now = trio.current_time()
        for first in range(pages):
            for last in range(first + 1, pages + 1):
                nursery.start_soon(_same, cache, first * PAGE, bytes(expected[first * PAGE : last * PAGE]))
        await trio.lowlevel.checkpoint()
        assert trio.current_time() == now
    async with opened(service, memory) as cache:
        await _same(cache, 0, bytes(expected))


async def _same(cache: WriteBack, offset: int, expected: bytes) -> None:
    assert await cache.read(offset, len(expected)) == expected


async def test_what_is_all_in_the_ring_is_not_asked_of_the_service(memory: int, autojump_clock: MockClock) -> None:
    service = Service(latency_s=1.0)
    async with opened(service, memory) as cache, trio.open_nursery() as nursery:
        await cache.write(PAGE, b"f" * 2 * PAGE)
        nursery.start_soon(cache.flush)
        await wait_all_tasks_blocked()
        await cache.write(0, b"d" * PAGE)
        await cache.write(2 * PAGE, b"e" * PAGE)
        await cache.zero(3 * PAGE, PAGE)
        assert await cache.read(0, 4 * PAGE) == b"d" * PAGE + b"f" * PAGE + b"e" * PAGE + bytes(PAGE)
        assert service.reads == []


@pytest.mark.parametrize("when", ["dirty", "in flight"])
async def test_extents_asked_for_while_a_write_is_acknowledged(
    when: str, memory: int, autojump_clock: MockClock
) -> None:
    """The service's list is from before it; and the write is not in the ring any more when the list comes."""
    service = Waiting(latency_s=1.0)
    found: list[list[Extent]] = []

    async with opened(service, memory) as cache:

        async def ask() -> None:
            found.append(await cache.extents(0, 65536))

        await cache.write(4096, b"a" * PAGE)
        async with trio.open_nursery() as nursery:
            if when == "in flight":
                nursery.start_soon(cache.flush)
                await wait_all_tasks_blocked()
            nursery.start_soon(ask)
            await wait_all_tasks_blocked()
            await cache.flush()
            assert not found
    assert found == [[(4096, PAGE)]]


async def test_extents_are_those_of_the_service_and_of_the_ring_within_the_range(
    memory: int, autojump_clock: MockClock
) -> None:
    service = Service()
    service.image[:PAGE] = service.image[8 * PAGE : 9 * PAGE] = b"s" * PAGE
    async with opened(service, memory, idle_s=1000) as cache:
        await cache.write(4 * PAGE, b"a" * 4 * PAGE)
        assert await cache.extents(0, 65536) == [(0, PAGE), (4 * PAGE, 5 * PAGE)]
        assert await cache.extents(5 * PAGE, 2 * PAGE) == [(5 * PAGE, 2 * PAGE)]
        assert await cache.extents(0, 5 * PAGE) == [(0, PAGE), (4 * PAGE, PAGE)]


async def test_extents_do_not_name_what_was_cleared(memory: int, autojump_clock: MockClock) -> None:
    """Else a disk that was only cleared would not count as blank."""
    async with opened(Service(), memory, idle_s=1000) as cache:
        await cache.write(0, b"a" * 4 * PAGE)
        await cache.zero(0, 3 * PAGE)
        assert await cache.extents(0, 65536) == [(3 * PAGE, PAGE)]
