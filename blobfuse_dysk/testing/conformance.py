"""One conformance suite for every Store: each layer, the whole stack, MemoryStore.

    @pytest.mark.parametrize("check", CHECKS, ids=check_name)
    async def test_contract(check): await check(factory)

or all at once: `await check_store(factory)`. `factory` returns an async context manager that yields an empty store of
at least 8 MiB. What is checked is the contract of store/contract.py, without faults, and what cancellation leaves
behind.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from random import Random

import trio

from blobfuse_dysk.store.contract import MAX_WRITE, PAGE, Store
from blobfuse_dysk.testing.checked import CheckedStore

__all__ = ["CHECKS", "Check", "Factory", "check_name", "check_store"]

Factory = Callable[[], AbstractAsyncContextManager[Store]]
Check = Callable[[Factory], Awaitable[None]]
MIN_SIZE = 8 << 20


@asynccontextmanager
async def _opened(factory: Factory) -> AsyncIterator[Store]:
    async with factory() as store:
        assert store.size >= MIN_SIZE, "the suite needs a store of at least 8 MiB"
        yield CheckedStore(store)


def _data(seed: int, length: int) -> bytes:
    return Random(seed).randbytes(length)


async def fresh_reads_as_zeros(factory: Factory) -> None:
    """Pages never written are zeros, the last one included, and no extent names them."""
    async with _opened(factory) as store:
        assert bytes(await store.read(0, 4096)) == bytes(4096)
        assert bytes(await store.read(store.size - PAGE, PAGE)) == bytes(PAGE)
        assert await store.extents(0, store.size) == []


async def reads_what_was_written(factory: Factory) -> None:
    """Any alignment to pages, both ends of the store, reads that cover more and less than was written."""
    async with _opened(factory) as store:
        for offset, length in ((0, PAGE), (3 * PAGE, 4096), (1 << 20, 128 << 10), (store.size - PAGE, PAGE)):
            data = _data(offset, length)
            await store.write(offset, data)
            assert bytes(await store.read(offset, length)) == data
        assert bytes(await store.read(0, 3 * PAGE)) == _data(0, PAGE) + bytes(2 * PAGE)
        assert bytes(await store.read((1 << 20) + PAGE, PAGE)) == _data(1 << 20, 128 << 10)[PAGE : 2 * PAGE]


async def takes_the_largest_write(factory: Factory) -> None:
    """MAX_WRITE bytes at once, and a read of as much."""
    async with _opened(factory) as store:
        data = _data(1, MAX_WRITE)
        await store.write(PAGE, data)
        assert bytes(await store.read(PAGE, MAX_WRITE)) == data


async def takes_any_buffer(factory: Factory) -> None:
    """bytes, bytearray and memoryview; the store keeps no reference that sees later changes (6)."""
    async with _opened(factory) as store:
        data = bytearray(_data(2, 4096))
        await store.write(0, memoryview(data))
        await store.write(4096, data)
        expected = bytes(data)
        data[:] = bytes(4096)
        assert bytes(await store.read(0, 8192)) == expected * 2


async def overwrites(factory: Factory) -> None:
    """The newest data wins, page by page."""
    async with _opened(factory) as store:
        await store.write(0, _data(3, 8192))
        await store.write(2048, _data(4, 4096))
        old, new = _data(3, 8192), _data(4, 4096)
        assert bytes(await store.read(0, 8192)) == old[:2048] + new + old[6144:]


async def zeroes(factory: Factory) -> None:
    """zero makes zeros, only where it should, over written and over fresh pages; then writes work again."""
    async with _opened(factory) as store:
        data = _data(5, 64 << 10)
        await store.write(0, data)
        await store.zero(4096, 8192)
        await store.zero(1 << 20, 1 << 20)
        assert bytes(await store.read(0, 64 << 10)) == data[:4096] + bytes(8192) + data[12288:]
        assert bytes(await store.read(1 << 20, 4096)) == bytes(4096)
        await store.write(4096, data[:4096])
        assert bytes(await store.read(4096, 8192)) == data[:4096] + bytes(4096)


async def zeroes_everything(factory: Factory) -> None:
    """zero takes any length up to the whole size."""
    async with _opened(factory) as store:
        await store.write(0, _data(6, 4096))
        await store.write(store.size - 4096, _data(7, 4096))
        await store.zero(0, store.size)
        assert bytes(await store.read(0, 4096)) == bytes(4096)
        assert bytes(await store.read(store.size - 4096, 4096)) == bytes(4096)


async def writes_zeros(factory: Factory) -> None:
    """A write of zeros is a write, over data and over fresh pages."""
    async with _opened(factory) as store:
        await store.write(0, _data(8, 8192))
        await store.write(4096, bytes(8192))
        assert bytes(await store.read(0, 16384)) == _data(8, 8192)[:4096] + bytes(12288)


async def names_what_is_not_zero(factory: Factory) -> None:
    """extents never misses a non-zero page, is clipped, sorted and disjoint (CheckedStore asserts the latter)."""
    async with _opened(factory) as store:
        written = [(0, PAGE), (8192, 4096), (1 << 20, 128 << 10), (store.size - PAGE, PAGE)]
        for offset, length in written:
            await store.write(offset, _data(offset, length))
        await store.zero(8192 + PAGE, PAGE)
        found = await store.extents(0, store.size)
        for offset, length in [*written[:1], (8192, PAGE), (8192 + 2 * PAGE, 4096 - 2 * PAGE), *written[2:]]:
            assert any(start <= offset and offset + length <= start + size for start, size in found), (offset, found)
        inside = await store.extents((1 << 20) + PAGE, 4096)
        assert inside == [((1 << 20) + PAGE, 4096)]


async def flushes(factory: Factory) -> None:
    """flush returns, idle and after writes, and changes nothing."""
    async with _opened(factory) as store:
        await store.flush()
        await store.write(0, _data(9, 4096))
        await store.flush()
        assert bytes(await store.read(0, 4096)) == _data(9, 4096)


async def runs_many_at_once(factory: Factory) -> None:
    """Writes, zeros and reads on separate ranges at the same time."""
    async with _opened(factory) as store:

        async def one(index: int) -> None:
            offset = index * 16384
            await store.write(offset, _data(index, 8192))
            await store.zero(offset + 4096, PAGE)
            assert bytes(await store.read(offset, 4096)) == _data(index, 8192)[:4096]

        async with trio.open_nursery() as nursery:
            for index in range(64):
                nursery.start_soon(one, index)
        for index in range(64):
            expected = bytearray(_data(index, 8192))
            expected[4096 : 4096 + PAGE] = bytes(PAGE)
            assert bytes(await store.read(index * 16384, 8192)) == expected


async def reads_old_or_new(factory: Factory) -> None:
    """A read beside an overlapping write returns, page by page, the old or the new content."""
    async with _opened(factory) as store:
        old, new = _data(10, 16384), _data(11, 16384)
        await store.write(0, old)

        async def read() -> None:
            data = bytes(await store.read(0, 16384))
            for at in range(0, 16384, PAGE):
                assert data[at : at + PAGE] in (old[at : at + PAGE], new[at : at + PAGE])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            nursery.start_soon(store.write, 0, new)
            nursery.start_soon(read)


async def survives_cancellation(factory: Factory) -> None:
    """A write cancelled at any of its awaits leaves old or new pages; what is written next is what is read (4, 5)."""
    async with _opened(factory) as store:
        newest = bytes(8192)
        for steps in range(12):
            old, new = newest, _data(100 + steps, 8192)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(store.write, 0, new)
                for _ in range(steps):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
            data = bytes(await store.read(0, 8192))
            for at in range(0, 8192, PAGE):
                assert data[at : at + PAGE] in (old[at : at + PAGE], new[at : at + PAGE]), f"after {steps} steps"
            newest = _data(200 + steps, 8192)
            await store.write(0, newest)
            assert bytes(await store.read(0, 8192)) == newest


async def grows(factory: Factory) -> None:
    """The new end is there, reads as zeros, is named by nobody, and holds what is written to it and across it (8)."""
    async with _opened(factory) as store:
        for number in range(3):
            before = store.size
            await store.write(before - 4096, _data(300 + number, 4096))
            await store.grow(before)
            assert store.size == before
            await store.grow(before + (1 << 20) + 2560)
            assert store.size == before + (1 << 20) + 2560
            assert bytes(await store.read(before - 4096, 8192)) == _data(300 + number, 4096) + bytes(4096)
            assert bytes(await store.read(store.size - PAGE, PAGE)) == bytes(PAGE)
            assert await store.extents(before, store.size - before) == []
            await store.zero(before + 8192, store.size - before - 8192)
            for offset in (store.size - PAGE, before - 1024):
                await store.write(offset, _data(offset, 4096)[: store.size - offset])
            await store.flush()
            data = bytes(await store.read(before - 4096, 8192))
            across = _data(before - 1024, 4096)
            assert data == _data(300 + number, 4096)[:3072] + across + bytes(1024)
            assert bytes(await store.read(store.size - PAGE, PAGE)) == _data(store.size - PAGE, PAGE)
            found = await store.extents(0, store.size)
            assert any(start <= store.size - PAGE < start + size for start, size in found)


async def grows_in_the_middle_of_everything(factory: Factory) -> None:
    """Calls of all kinds go on while the store grows, none of them notices, and what is new is used at once (8)."""
    async with _opened(factory) as store:

        async def one(index: int) -> None:
            base = index * 65536
            for serial in range(12):
                data = _data(1000 * index + serial, 8192)
                await store.write(base, data)
                await store.zero(base + 4096, PAGE)
                expected = data[:4096] + bytes(PAGE) + data[4096 + PAGE :]
                assert bytes(await store.read(base, 8192)) == expected
                assert (await store.extents(base, 65536))[0][0] == base
                await store.flush()

        async def read_through() -> None:
            for _ in range(6):
                for offset in range(4 << 20, min(store.size, 6 << 20), 64 << 10):
                    assert bytes(await store.read(offset, 64 << 10)) == bytes(64 << 10)
                await trio.sleep(0.001)

        async with trio.open_nursery() as nursery:
            for index in range(4):
                nursery.start_soon(one, index)
            nursery.start_soon(read_through)
            for number in range(4):
                before = store.size
                await store.grow(before + (300 << 10) + PAGE)
                end = _data(400 + number, 8192)
                assert bytes(await store.read(before - 4096, 8192)) == bytes(8192)
                await store.write(before - 4096, end)
                assert bytes(await store.read(before - 4096, 8192)) == end
                assert bytes(await store.read(before + 4096, 256 << 10)) == bytes(256 << 10)


async def keeps_its_size_when_growing_is_cancelled(factory: Factory) -> None:
    """Cancelled at any of its awaits, grow leaves the old size, and a later one reaches the new (5, 8)."""
    async with _opened(factory) as store:
        for steps in range(12):
            before = store.size
            done = False

            async def grow(to: int) -> None:
                nonlocal done
                await store.grow(to)
                done = True

            async with trio.open_nursery() as nursery:
                nursery.start_soon(grow, before + 4096)
                for _ in range(steps):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
            assert store.size == (before + 4096 if done else before)
            await store.write(0, _data(500 + steps, 4096))
            await store.grow(before + 4096)
            await store.write(before, _data(600 + steps, 4096))
            assert bytes(await store.read(before, 4096)) == _data(600 + steps, 4096)
            assert bytes(await store.read(0, 4096)) == _data(500 + steps, 4096)


async def closes_twice(factory: Factory) -> None:
    """aclose is idempotent."""
    async with _opened(factory) as store:
        await store.write(0, _data(12, PAGE))
        await store.aclose()
        await store.aclose()


CHECKS: tuple[Check, ...] = (
    fresh_reads_as_zeros,
    reads_what_was_written,
    takes_the_largest_write,
    takes_any_buffer,
    overwrites,
    zeroes,
    zeroes_everything,
    writes_zeros,
    names_what_is_not_zero,
    flushes,
    runs_many_at_once,
    reads_old_or_new,
    survives_cancellation,
    grows,
    grows_in_the_middle_of_everything,
    keeps_its_size_when_growing_is_cancelled,
    closes_twice,
)


def check_name(check: Check) -> str:
    """A test id."""
    return str(getattr(check, "__name__", check))


async def check_store(factory: Factory) -> None:
    """Run all CHECKS, each on a fresh store of the factory's."""
    for check in CHECKS:
        await check(factory)
