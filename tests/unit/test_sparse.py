"""Sparse: free pages cost no request, and the map never calls a page free that may hold data."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from blobfuse_dysk.errors import Kind, StoreError
from blobfuse_dysk.store.layers.sparse import (
    CLEAR_MOST,
    LOAD_AGAIN_S,
    READ_PATIENCE_S,
    ZERO_PATIENCE_S,
    Sparse,
    is_zero,
    zeros,
)
from blobfuse_dysk.testing import CheckedStore, Fault, FaultyStore, MemoryStore, RecordingStore, in_turn
from blobfuse_dysk.testing.faulty import Chooser

K = 1024
SIZE = 4 << 30
REGION = 1 << 30


@asynccontextmanager
async def opened(
    choose: Chooser = lambda name, offset, length: None, *, written: tuple[tuple[int, int], ...] = ()
) -> AsyncIterator[tuple[Sparse, RecordingStore]]:
    memory = MemoryStore(SIZE)
    for offset, length in written:
        memory.poke(offset, b"d" * length)
    recording = RecordingStore(CheckedStore(FaultyStore(memory, choose)))
    async with trio.open_nursery() as nursery:
        yield Sparse(recording, nursery, region=REGION), recording
        nursery.cancel_scope.cancel()


async def fails(call: object) -> StoreError:
    with pytest.raises(StoreError) as caught:
        await call  # type: ignore[misc]
    return caught.value


async def test_free_pages_cost_one_list_and_no_read(autojump_clock: MockClock) -> None:
    async with opened() as (sparse, below):
        for offset in range(0, 1 << 20, 64 * K):
            assert bytes(await sparse.read(offset, 64 * K)) == bytes(64 * K)
        assert [call.what for call in below.calls] == [("extents", 0, REGION)]


async def test_what_is_known_of_the_last_regions_is_not_asked_for(autojump_clock: MockClock) -> None:
    """S7; what begins in the middle of a region says nothing of the rest of it."""
    last, allocated = SIZE - REGION, [(SIZE - 8 * K, 4 * K)]
    memory = MemoryStore(SIZE)
    for offset in (last - 4 * K, last, SIZE - 8 * K):
        memory.poke(offset, b"d" * 4 * K)
    below = RecordingStore(memory)
    async with trio.open_nursery() as nursery:
        sparse = Sparse(below, nursery, region=REGION, known=(last - 8 * K, allocated))
        assert await sparse.extents(last, REGION) == allocated
        assert bytes(await sparse.read(last, 4 * K)) == bytes(4 * K)  # it is not looked at: the list was believed
        assert bytes(await sparse.read(SIZE - 8 * K, 4 * K)) == b"d" * 4 * K
        assert [call.what for call in below.calls] == [("read", SIZE - 8 * K, 4 * K)]
        assert bytes(await sparse.read(last - 4 * K, 4 * K)) == b"d" * 4 * K
        nursery.cancel_scope.cancel()


async def test_zeros_over_free_pages_cost_nothing(autojump_clock: MockClock) -> None:
    async with opened() as (sparse, below):
        await sparse.zero(0, 8 << 20)
        await sparse.write(4096, bytes(64 * K))
        await sparse.write(8192, memoryview(bytearray(512)))
        assert below.named("write", "zero") == []


async def test_zeros_over_data_become_a_clear_and_free_it(autojump_clock: MockClock) -> None:
    async with opened() as (sparse, below):
        await sparse.write(64 * K, b"x" * 8192)
        await sparse.write(64 * K, bytes(4096))
        await sparse.zero(0, 1 << 20)
        await sparse.zero(0, 1 << 20)
        assert bytes(await sparse.read(64 * K, 8192)) == bytes(8192)
        assert below.named("zero") == [("zero", 64 * K, 4096), ("zero", 68 * K, 4096)]
        assert below.named("read") == []


async def test_a_clear_spans_gaps_within_bounds(autojump_clock: MockClock) -> None:
    async with opened(written=((4096, 512), (1 << 20, 512), (CLEAR_MOST + 512, 512))) as (sparse, below):
        await sparse.zero(0, SIZE)
        assert below.named("zero") == [("zero", 4096, (1 << 20) - 4096 + 512), ("zero", CLEAR_MOST + 512, 512)]
        assert await sparse.extents(0, SIZE) == []


@pytest.mark.parametrize("start", [0, 4096])
async def test_reads_fetch_only_what_is_allocated(start: int, autojump_clock: MockClock) -> None:
    """Also when the read begins with data."""
    async with opened(written=((4096, 512), (8192, 512), (2 << 20, 4096))) as (sparse, below):
        expected = bytearray(4 << 20)
        for offset, length in ((4096, 512), (8192, 512), (2 << 20, 4096)):
            expected[offset : offset + length] = b"d" * length
        await sparse.extents(0, 512)
        same = bytes(await sparse.read(start, (4 << 20) - start)) == expected[start:]
        assert same  # said like this, pytest makes no diff of 4 MiB
        assert below.named("read") == [("read", 4096, 4608), ("read", 2 << 20, 4096)]


async def test_a_read_of_allocated_pages_is_passed_as_it_is(autojump_clock: MockClock) -> None:
    async with opened(written=((0, 64 * K),)) as (sparse, below):
        await sparse.read(4096, 8192)
        assert below.named("read") == [("read", 4096, 8192)]


def test_zeros_are_in_memory_before_anybody_looks_at_them() -> None:
    """A page of an answer that the kernel must bring in, while the worker is being killed, costs an I/O error."""
    program = """
import resource
from blobfuse_dysk.store.layers.sparse import zeros

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for made in (zeros(1 << 20), zeros(1 << 21)):
    view = memoryview(made)
    before = faults()
    for at in range(0, len(view), 4096):
        view[at]
    print(faults() - before)
"""
    # In a process of its own, whose pages nobody has looked at yet.
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert max(map(int, done.stdout.split())) < 64


async def test_regions_are_loaded_when_needed_and_neighbours_together(autojump_clock: MockClock) -> None:
    async with opened(written=((0, 512), (REGION - 512, 1024))) as (sparse, below):
        await sparse.read(2 * REGION, 512)
        assert await sparse.extents(0, SIZE) == [(0, 512), (REGION - 512, 1024)]
        await sparse.read(REGION - 512, 1024)
        assert below.named("extents")[0] == ("extents", 2 * REGION, REGION)
        assert set(below.named("extents")[1:]) == {("extents", 0, 2 * REGION), ("extents", 3 * REGION, REGION)}
        assert len(below.named("extents")) == 3


async def test_many_wait_for_one_load(autojump_clock: MockClock) -> None:
    async with opened(in_turn([Fault(kind=None, delay_s=0.2)], ["extents"])) as (sparse, below):
        async with trio.open_nursery() as nursery:
            for offset in range(0, 1 << 20, 4096):
                nursery.start_soon(sparse.read, offset, 4096)
                nursery.start_soon(sparse.zero, offset, 4096)
        assert [call.what for call in below.calls] == [("extents", 0, REGION)]


async def test_nobody_waits_for_ever_for_a_slow_load(autojump_clock: MockClock) -> None:
    async with opened(in_turn([Fault(kind=None, delay_s=100)], ["extents"])) as (sparse, below):
        started = trio.current_time()
        for _ in range(2):
            await sparse.read(0, 512)
            assert trio.current_time() - started == READ_PATIENCE_S
        assert below.named("read") == [("read", 0, 512)] * 2
        for _ in range(2):
            await sparse.zero(0, 512)
            assert trio.current_time() - started == ZERO_PATIENCE_S
        assert below.named("zero") == [("zero", 0, 512)] * 2
        assert await sparse.extents(0, 512) == []
        assert trio.current_time() - started == 100


async def test_zeros_wait_a_moment_for_the_load(autojump_clock: MockClock) -> None:
    async with opened(in_turn([Fault(kind=None, delay_s=4)], ["extents"])) as (sparse, below):
        await sparse.zero(0, 512)
        assert [call.what for call in below.calls] == [("extents", 0, REGION)]


async def test_cancelling_who_asked_does_not_end_the_load(autojump_clock: MockClock) -> None:
    async with opened(in_turn([Fault(kind=None, delay_s=4)], ["extents"])) as (sparse, below):
        with trio.move_on_after(1):
            await sparse.zero(0, 512)
        await sparse.zero(0, 512)
        assert [call.what for call in below.calls] == [("extents", 0, REGION)]


async def test_a_write_that_races_with_the_load_stays_known(autojump_clock: MockClock) -> None:
    """The list was made before the write landed: what was marked meanwhile must survive the list."""

    class Snapshot(MemoryStore):
        async def extents(self, offset: int, length: int) -> list[tuple[int, int]]:
            found = await super().extents(offset, length)
            await trio.sleep(10)
            return found

    async with trio.open_nursery() as nursery:
        sparse = Sparse(Snapshot(SIZE), nursery, region=REGION)
        async with trio.open_nursery() as inner:
            inner.start_soon(sparse.zero, 1 << 20, 512)
            await trio.sleep(1)
            await sparse.write(0, b"x" * 512)
        assert bytes(await sparse.read(0, 512)) == b"x" * 512
        assert await sparse.extents(0, 4096) == [(0, 512)]
        await sparse.zero(0, 512)
        assert bytes(await sparse.read(0, 512)) == bytes(512)
        nursery.cancel_scope.cancel()


async def test_a_list_that_cannot_be_had_makes_it_slow_not_wrong(autojump_clock: MockClock) -> None:
    async with opened(in_turn([Fault(Kind.INTERNAL)] * 2, ["extents"]), written=((0, 512),)) as (sparse, below):
        assert bytes(await sparse.read(0, 512)) == b"d" * 512
        await sparse.zero(0, 4096)
        assert below.named("zero") == [("zero", 0, 4096)], "not loaded counts as allocated"
        assert bytes(await sparse.read(0, 512)) == bytes(512)
        assert below.named("extents") == [("extents", 0, REGION)], "not asked for again at once"
        assert (await fails(sparse.extents(0, 512))).kind is Kind.INTERNAL
        await trio.sleep(LOAD_AGAIN_S + 1)
        assert (await fails(sparse.extents(0, 512))).kind is Kind.INTERNAL
        await trio.sleep(LOAD_AGAIN_S + 1)
        assert await sparse.extents(0, 512) == []


@pytest.mark.parametrize("how", ["fails", "cancelled"])
async def test_a_write_that_did_not_return_well_leaves_its_range_allocated(how: str, autojump_clock: MockClock) -> None:
    fault = Fault(Kind.GONE, "late") if how == "fails" else Fault(kind=None, delay_s=100)
    async with opened(in_turn([fault], ["write"])) as (sparse, below):
        await sparse.extents(0, 4096)
        if how == "fails":
            await fails(sparse.write(0, b"x" * 512))
        else:
            with trio.move_on_after(1):
                await sparse.write(0, b"x" * 512)
        assert await sparse.extents(0, 4096) == [(0, 512)]
        await sparse.zero(0, 512)
        assert below.named("zero") == [("zero", 0, 512)], "a late copy may have made it allocated"


@pytest.mark.parametrize("how", ["fails", "cancelled"])
async def test_a_clear_that_did_not_return_well_frees_nothing(how: str, autojump_clock: MockClock) -> None:
    fault = Fault(Kind.GONE, "dropped") if how == "fails" else Fault(kind=None, delay_s=100)
    async with opened(in_turn([fault], ["zero"]), written=((0, 512),)) as (sparse, _):
        if how == "fails":
            await fails(sparse.zero(0, 512))
        else:
            with trio.move_on_after(1):
                await sparse.zero(0, 512)
        assert bytes(await sparse.read(0, 512)) == b"d" * 512


async def test_a_range_is_not_free_while_its_clear_is_in_flight(autojump_clock: MockClock) -> None:
    async with (
        opened(in_turn([Fault(kind=None, delay_s=10)], ["zero"]), written=((0, 512),)) as (sparse, _),
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(sparse.zero, 0, 512)
        await trio.sleep(1)
        assert bytes(await sparse.read(0, 512)) == b"d" * 512
        assert await sparse.extents(0, 512) == [(0, 512)]


async def test_a_range_is_allocated_before_its_write_is_sent(autojump_clock: MockClock) -> None:
    async with opened(in_turn([Fault(kind=None, delay_s=10)], ["write"])) as (sparse, below):
        await sparse.extents(0, 4096)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sparse.write, 0, b"x" * 512)
            await wait_all_tasks_blocked()
            await sparse.read(0, 512)
        assert below.named("read") == [("read", 0, 512)]


async def test_closing_ends_loads(autojump_clock: MockClock) -> None:
    started = trio.current_time()
    async with trio.open_nursery() as loads:  # left when its loads have ended
        choose = in_turn([Fault(kind=None, delay_s=1000)], ["extents"])
        sparse = Sparse(FaultyStore(MemoryStore(SIZE), choose), loads, region=REGION)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sparse.zero, 0, 512)
            await trio.sleep(1)
            nursery.cancel_scope.cancel()
            await sparse.aclose()
    assert trio.current_time() - started == 1


async def test_a_load_that_had_not_begun_when_the_store_was_closed_asks_nothing(autojump_clock: MockClock) -> None:
    async with opened() as (sparse, below):
        sparse._start_loads(range(1))
        await sparse.aclose()
        await wait_all_tasks_blocked()
        assert below.named("extents") == []


async def test_a_load_that_is_cut_off_tells_nothing(autojump_clock: MockClock) -> None:
    """Who waits for it while the store is closed may be given the data or an error, not zeros."""
    choose = in_turn([Fault(kind=None, delay_s=1000)], ["extents"])
    memory = MemoryStore(SIZE)
    memory.poke(0, b"d" * 512)
    async with trio.open_nursery() as loads:
        sparse = Sparse(FaultyStore(memory, choose), loads, region=REGION)
        async with trio.open_nursery() as nursery:

            async def read() -> None:
                assert bytes(await sparse.read(0, 512)) == b"d" * 512

            nursery.start_soon(read)
            await wait_all_tasks_blocked()
            await sparse.aclose()


async def test_a_read_sees_the_data_at_every_step_of_a_load() -> None:
    """The scheduler runs what can run in any order: a reader in each step, and the whole of it many times."""

    class Stepwise(MemoryStore):
        async def extents(self, offset: int, length: int) -> list[tuple[int, int]]:
            found = await super().extents(offset, length)
            for _ in range(10):
                await trio.lowlevel.checkpoint()
            return found

    for _ in range(30):
        memory = Stepwise(1 << 20)
        memory.poke(0, b"d" * 512)
        async with trio.open_nursery() as nursery:
            sparse = Sparse(memory, nursery)

            async def read(sparse: Sparse = sparse) -> None:
                assert bytes(await sparse.read(0, 512)) == b"d" * 512

            for _ in range(30):
                nursery.start_soon(read)
                await trio.lowlevel.checkpoint()


async def test_flush_is_handed_on(autojump_clock: MockClock) -> None:
    async with opened() as (sparse, below):
        await sparse.flush()
        assert [call.name for call in below.calls] == ["flush"]


@pytest.mark.parametrize("length", [512, 4096, 64 * K, 64 * K + 512, 4 << 20])
def test_zeros_are_recognised_wherever_the_only_other_byte_is(length: int) -> None:
    for make in (bytes, bytearray, lambda n: memoryview(bytearray(n))):
        assert is_zero(make(length))
    for position in (0, 15, 16, length // 2, length - 1):
        data = bytearray(length)
        data[position] = 1
        assert not is_zero(data)
        assert not is_zero(memoryview(data))
    assert bytes(zeros(length)) == bytes(length)
