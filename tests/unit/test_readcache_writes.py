"""ReadCache: after a write nobody reads what was there before, be it in the cache or on its way there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from blobfuse_dysk.errors import Kind, StoreError
from blobfuse_dysk.store.contract import PAGE, Buffer
from blobfuse_dysk.store.layers.readcache import ReadCache
from blobfuse_dysk.store.parts.priority import Priority, current_priority, priority
from tests.slowservice import SlowService
from tests.unit.test_readcache import opened

CHUNK = 65536  # bytes of a piece here
SIZE = 12 * CHUNK + 8 * PAGE  # the last chunk is a small one
IMAGE = b"".join(number.to_bytes(8, "little") * (PAGE // 8) for number in range(SIZE // PAGE))  # no page like another


class Gated(SlowService):
    """Reads of chunks are answered when the gate opens, with what was there when they were asked for."""

    def __init__(self) -> None:
        super().__init__(size=SIZE)
        self.image[:] = IMAGE
        self.gate = trio.Event()
        self.error: StoreError | None = None
        self.urgencies: list[Priority] = []
        self.flushes = self.closed = 0

    async def read(self, offset: int, length: int) -> Buffer:
        self.reads.append((offset, length))
        self.urgencies.append(current_priority(Priority.READ))
        assert offset + length <= SIZE
        image = bytes(self.image[offset : offset + length])
        if offset % CHUNK == 0 and length == min(CHUNK, SIZE - offset):
            await self.gate.wait()
        await trio.lowlevel.checkpoint()
        if self.error:
            raise self.error
        return image

    async def write(self, offset: int, data: Buffer) -> None:
        await trio.lowlevel.checkpoint()
        self.image[offset : offset + len(data)] = data

    async def zero(self, offset: int, length: int) -> None:
        await self.write(offset, bytes(length))

    async def flush(self) -> None:
        self.flushes += 1

    async def aclose(self) -> None:
        self.closed += 1


def kept(cache: ReadCache, *, present: bool) -> set[int]:
    """The chunks that are pieces, there or on their way."""
    return {start // CHUNK for start, piece in cache._pieces.items() if (piece.data is not None) == present}


async def fetch(cache: ReadCache, service: Gated, chunks: set[int], *, present: bool) -> None:
    """Have these chunks in the cache, or on their way there."""
    for index in chunks:
        cache._fetch(index * CHUNK, min((index + 1) * CHUNK, SIZE), CHUNK, 0)
    await wait_all_tasks_blocked()
    if present:
        service.gate.set()
        await wait_all_tasks_blocked()
        service.gate = trio.Event()
    assert kept(cache, present=present) == chunks and not kept(cache, present=not present)


RANGES = [
    pytest.param(CHUNK, PAGE, id="the first page of a chunk"),
    pytest.param(2 * CHUNK - PAGE, PAGE, id="the last page of a chunk"),
    pytest.param(2 * CHUNK - PAGE, 2 * PAGE, id="over a border"),
    pytest.param(CHUNK, CHUNK, id="a chunk"),
    pytest.param(2 * CHUNK - PAGE, CHUNK + 2 * PAGE, id="three chunks"),
    pytest.param(CHUNK, 4 * CHUNK, id="more than there are, from the first of them"),
    pytest.param(0, 4 * CHUNK, id="more than there are, up to the last of them"),
    pytest.param(2 * CHUNK, 8 * CHUNK, id="more than there are, from the second of them"),
    pytest.param(0, 3 * CHUNK, id="as many as there are"),
    pytest.param(0, CHUNK, id="what is in front of them"),
    pytest.param(4 * CHUNK, PAGE, id="what is behind them"),
    pytest.param(0, SIZE, id="all"),
    pytest.param(12 * CHUNK, 8 * PAGE, id="the small chunk at the end"),
]


@pytest.mark.parametrize(("offset", "length"), RANGES)
@pytest.mark.parametrize("present", [True, False], ids=["present", "on its way"])
@pytest.mark.parametrize("how", ["write", "zero", "failed write", "cancelled write"])
async def test_what_was_there_before_a_write_is_not_read_after_it(
    how: str, present: bool, offset: int, length: int, autojump_clock: MockClock
) -> None:
    class Doubtful(Gated):
        """Does what it was asked for, and then fails, or does not answer."""

        async def write(self, offset: int, data: Buffer) -> None:
            await super().write(offset, data)
            if how == "failed write":
                raise StoreError("lost", Kind.TIMEOUT, unknown=True)
            if how == "cancelled write":
                await trio.sleep_forever()

    service = Doubtful()
    chunks = {1, 2, 3, 12} if offset >= 12 * CHUNK else {1, 2, 3}
    async with opened(service) as cache:
        await fetch(cache, service, chunks, present=present)
        if how == "zero":
            await cache.zero(offset, length)
        else:
            with trio.move_on_after(10):
                try:
                    await cache.write(offset, b"n" * length)
                except StoreError:
                    assert how == "failed write"
        service.gate.set()
        await wait_all_tasks_blocked()
        touched = set(range(offset // CHUNK, (offset + length - 1) // CHUNK + 1))
        assert kept(cache, present=True) == chunks - touched, "dropped too little, or too much"
        for at in {index * CHUNK for index in range(13)} | {offset - PAGE, offset, offset + length - PAGE}:
            for place in (at - PAGE, at, at + PAGE):
                if 0 <= place < SIZE:
                    assert await cache.read(place, PAGE) == service.image[place : place + PAGE]


async def test_a_write_that_ends_in_the_step_in_which_a_fill_comes(autojump_clock: MockClock) -> None:
    class Together(Gated):
        async def write(self, offset: int, data: Buffer) -> None:
            await self.gate.wait()
            await super().write(offset, data)

    for _ in range(20):  # the order of tasks within a step is another one each time
        service = Together()
        async with opened(service) as cache, trio.open_nursery() as nursery:
            await fetch(cache, service, {0}, present=False)
            nursery.start_soon(cache.write, CHUNK // 2, b"n" * PAGE)
            await wait_all_tasks_blocked()
            service.gate.set()
            await wait_all_tasks_blocked()
            assert await cache.read(CHUNK // 2, PAGE) == b"n" * PAGE


async def test_a_read_after_a_write_does_not_wait_for_a_fill_from_before_it(autojump_clock: MockClock) -> None:
    service = Gated()
    async with opened(service) as cache:
        await fetch(cache, service, {0, 1}, present=False)
        await cache.write(CHUNK - PAGE, b"n" * 2 * PAGE)
        for offset, length in ((CHUNK - PAGE, 2 * PAGE), (CHUNK - 2 * PAGE, 2 * PAGE), (CHUNK, PAGE)):
            with trio.fail_after(10):
                assert await cache.read(offset, length) == service.image[offset : offset + length]


PARTS = [(0, PAGE), (PAGE, 3 * PAGE), (CHUNK - PAGE, PAGE), (CHUNK - 2 * PAGE, 5 * PAGE), (PAGE, 2 * CHUNK), (0, CHUNK)]


@pytest.mark.parametrize(("offset", "length"), PARTS)
@pytest.mark.parametrize("chunks", [{0, 1, 2}, {0, 2}, {1}, {0, 1}], ids=str)
@pytest.mark.parametrize("present", [True, False], ids=["present", "on its way"])
async def test_reads_of_any_part_of_what_is_there_and_what_is_not(
    present: bool, chunks: set[int], offset: int, length: int, autojump_clock: MockClock
) -> None:
    service = Gated()
    found: list[Buffer] = []
    async with opened(service) as cache, trio.open_nursery() as nursery:
        await fetch(cache, service, chunks, present=present)
        asked = len(service.reads)

        async def read() -> None:
            found.append(await cache.read(offset, length))

        nursery.start_soon(read)
        await wait_all_tasks_blocked()
        service.gate.set()
        await wait_all_tasks_blocked()
        assert found == [service.image[offset : offset + length]]
        needed = set(range(offset // CHUNK, (offset + length - 1) // CHUNK + 1))
        assert len(service.reads) - asked == (not needed <= chunks), "what is there, or on its way, costs no request"


async def test_the_end_of_a_disk_that_is_no_whole_number_of_chunks(autojump_clock: MockClock) -> None:
    service = Gated()
    async with opened(service) as cache:
        await fetch(cache, service, {12}, present=True)
        assert service.reads == [(12 * CHUNK, 8 * PAGE)]
        assert await cache.read(12 * CHUNK, 8 * PAGE) == service.image[12 * CHUNK :]
        assert cache.hits == 1


async def test_a_chunk_on_its_way_is_asked_for_once(autojump_clock: MockClock) -> None:
    service = Gated()
    async with opened(service) as cache:
        cache._fetch(0, 2 * CHUNK, CHUNK, 0)
        cache._fetch(0, 3 * CHUNK, CHUNK, 0)
        await wait_all_tasks_blocked()
        assert sorted(service.reads) == [(0, CHUNK), (CHUNK, CHUNK), (2 * CHUNK, CHUNK)]


async def test_who_waits_for_a_fill_that_fails_reads_himself(autojump_clock: MockClock) -> None:
    service = Gated()
    service.error = StoreError("no", Kind.TIMEOUT)
    async with opened(service) as cache, trio.open_nursery() as nursery:
        await fetch(cache, service, {0}, present=False)

        async def read() -> None:
            with trio.fail_after(10), pytest.raises(StoreError, match="no"):
                await cache.read(PAGE, PAGE)

        nursery.start_soon(read)
        await wait_all_tasks_blocked()
        service.gate.set()
        await wait_all_tasks_blocked()
        assert not cache._pieces and not cache._bytes
    assert service.reads == [(0, CHUNK), (PAGE, PAGE)]


async def test_reading_ahead_is_less_urgent_than_reading(autojump_clock: MockClock) -> None:
    @contextmanager
    def ahead() -> Iterator[None]:
        with priority(Priority.READ_AHEAD):
            yield

    service = Gated()
    async with trio.open_nursery() as nursery:
        cache = ReadCache(service, nursery, capacity=4 << 20, window=2 << 20, read_ahead=ahead)
        await fetch(cache, service, {0}, present=True)
        await cache.read(CHUNK, PAGE)
    assert service.urgencies == [Priority.READ_AHEAD, Priority.READ]


async def test_what_is_not_about_reading_is_passed_on(autojump_clock: MockClock) -> None:
    service = Gated()
    service.image[PAGE:] = bytes(SIZE - PAGE)
    service.image[:PAGE] = b"a" * PAGE
    async with opened(service) as cache:
        await cache.flush()
        assert await cache.extents(0, 8 * PAGE) == [(0, PAGE)]
        await cache.aclose()
    assert (service.flushes, service.closed) == (1, 1)
