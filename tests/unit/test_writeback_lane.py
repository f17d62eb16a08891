"""WriteBack in the plain lane: what begins in its own, and what it sends in that of the layer below."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from blobfuse_dysk.errors import Kind, StoreError
from blobfuse_dysk.store.layers.writeback import WriteBack
from blobfuse_dysk.store.parts.commitlog import SINGLES
from blobfuse_dysk.store.parts.ring import MIN_CAPACITY
from blobfuse_dysk.store.passage import DONE, NO, UNDER_WAY, Passage
from tests.unit.below import DATA, Below, Caller, gives, raises
from tests.unit.written import memory, opened

__all__ = ["memory"]

LOST = StoreError("a test", Kind.GONE)


@pytest.fixture
def below(autojump_clock: MockClock) -> Below:
    return Below()


async def flushing(cache: WriteBack, below: Below, nursery: trio.Nursery) -> Passage:
    """Begin a flush; the one run that is sent for it."""
    below.under_way.clear()
    nursery.start_soon(cache.flush)
    await wait_all_tasks_blocked()
    [run] = below.under_way
    return run


async def test_a_read_of_what_is_dirty_or_in_flight_does_not_begin(below: Below, memory: int) -> None:
    async with opened(below, memory, idle_s=1000) as cache:
        assert Caller(cache).began == UNDER_WAY
        assert Caller(cache, DATA).began == DONE
        assert (Caller(cache).began, Caller(cache, offset=512).began) == (NO, UNDER_WAY)
        async with trio.open_nursery() as nursery:
            run = await flushing(cache, below, nursery)
            assert (run.offset, run.length, bytes(run.data or b"")) == (0, 512, DATA)
            assert (Caller(cache).began, Caller(cache, offset=512).began) == (NO, UNDER_WAY)
            run.succeed(b"", 2.0)
        assert Caller(cache).began == UNDER_WAY


@pytest.mark.parametrize("fails", [True, False])
async def test_what_is_left_of_a_run_decides_over_the_flush(fails: bool, below: Below, memory: int) -> None:
    async with opened(below, memory, idle_s=1000) as cache:
        assert Caller(cache, DATA).began == DONE
        async with trio.open_nursery() as nursery:
            ended: list[object] = []

            async def flush() -> None:
                try:
                    await cache.flush()
                except StoreError as error:
                    ended.append(error.kind)
                else:
                    ended.append(None)

            nursery.start_soon(flush)
            await wait_all_tasks_blocked()
            below.under_way.pop().hand_over(raises(LOST) if fails else gives())
            assert ended == []
        assert ended == [Kind.GONE if fails else None]
        assert Caller(cache).began == (NO if fails else UNDER_WAY)
        assert Caller(cache, DATA).began == (NO if fails else DONE)


async def test_a_logs_commit_does_not_begin(below: Below, memory: int) -> None:
    async with opened(below, memory, idle_s=1000) as cache:
        for number in range(SINGLES):
            assert Caller(cache, DATA, offset=512 * number).began == DONE
            async with trio.open_nursery() as nursery:
                (await flushing(cache, below, nursery)).succeed(b"", 2.0)
        assert Caller(cache, DATA, offset=512 * SINGLES).began == NO
        assert Caller(cache, DATA, offset=1 << 20).began == DONE
        assert Caller(cache, DATA, offset=512 * SINGLES).began == DONE


async def test_what_there_is_no_room_for_does_not_begin(below: Below, memory: int) -> None:
    async with opened(below, memory, idle_s=1000) as cache:
        piece, accepted = b"x" * (256 << 10), 0
        while Caller(cache, piece, offset=accepted, length=len(piece)).began == DONE:
            accepted += len(piece)
            assert accepted < 2 * MIN_CAPACITY
        assert accepted > MIN_CAPACITY // 2


async def test_zeros_are_not_sent_in_it(below: Below, memory: int) -> None:
    async with opened(below, memory, idle_s=1000) as cache:
        below.poke(0, DATA)
        await cache.zero(0, 512)
        await cache.flush()
        assert below.under_way == []
        assert below.peek(0, 512) == bytes(512)


@pytest.mark.parametrize("left", [True, False])
async def test_a_run_that_ends_after_the_cache_was_closed_leaves_the_ring_alone(
    left: bool, below: Below, memory: int
) -> None:
    """It may be the next worker's."""
    async with opened(below, memory, idle_s=1000) as cache:
        assert Caller(cache, DATA).began == DONE
        async with trio.open_nursery() as nursery:
            run = await flushing(cache, below, nursery)
            used = cache._ring.used
            await cache.aclose()
            if left:
                run.hand_over(gives())
            else:
                run.succeed(b"", 2.0)
            await wait_all_tasks_blocked()
            assert cache._ring.used == used > 0
            nursery.cancel_scope.cancel()
