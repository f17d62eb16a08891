"""Order: overlapping modifying calls run one after the other, as they came; everything else at once."""

from __future__ import annotations

import contextlib
from random import Random

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from blobfuse_dysk.errors import StoreError
from blobfuse_dysk.store.layers.order import Order
from blobfuse_dysk.store.parts.rangelock import WIDE, RangeLock, Ticket
from blobfuse_dysk.testing import CheckedStore, Fault, FaultyStore, MemoryStore, RecordingStore, in_turn

SIZE = 1 << 30
PAGE = 512


def slow(size: int = SIZE) -> tuple[Order, RecordingStore]:
    """Every modifying call takes a second."""
    inner = FaultyStore(
        MemoryStore(size),
        lambda name, offset, length: Fault(kind=None, delay_s=1) if name in ("write", "zero") else None,
    )
    recording = RecordingStore(CheckedStore(inner))
    return Order(recording), recording


async def test_overlapping_writes_run_in_the_order_of_arrival(autojump_clock: MockClock) -> None:
    order, recording = slow()
    with trio.fail_after(100):
        async with trio.open_nursery() as nursery:
            for index in range(10):
                nursery.start_soon(order.write, index % 3 * PAGE, bytes([index]) * 3 * PAGE)
                await wait_all_tasks_blocked()
    assert [call.offset for call in recording.calls] == [index % 3 * PAGE for index in range(10)]
    assert trio.current_time() >= 10
    assert bytes(await order.read(2 * PAGE, PAGE)) == bytes([9]) * PAGE


async def test_separate_ranges_run_at_once(autojump_clock: MockClock) -> None:
    order, recording = slow()
    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        for index in range(100):
            nursery.start_soon(order.write, index * PAGE, b"x" * PAGE)
    assert trio.current_time() - started == 1
    assert len(recording.calls) == 100


async def test_reads_and_flush_do_not_wait(autojump_clock: MockClock) -> None:
    order, _ = slow()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(order.write, 0, b"x" * PAGE)
        await wait_all_tasks_blocked()
        started = trio.current_time()
        await order.read(0, PAGE)
        await order.flush()
        await order.extents(0, PAGE)
        assert trio.current_time() == started


async def test_a_wide_range_waits_for_narrow_ones_and_they_for_it(autojump_clock: MockClock) -> None:
    order, recording = slow()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(order.write, 100 << 20, b"a" * PAGE)
        await wait_all_tasks_blocked()
        nursery.start_soon(order.zero, 0, SIZE)
        await wait_all_tasks_blocked()
        nursery.start_soon(order.write, 500 << 20, b"b" * PAGE)
        nursery.start_soon(order.zero, 0, 64 << 20)
    starts = {(call.name, call.offset, call.length): call.started for call in recording.calls}
    assert starts["zero", 0, SIZE] - starts["write", 100 << 20, PAGE] == 1
    assert starts["write", 500 << 20, PAGE] - starts["zero", 0, SIZE] == 1
    assert starts["zero", 0, 64 << 20] - starts["zero", 0, SIZE] == 1


async def test_cancelled_while_waiting_it_keeps_nobody(autojump_clock: MockClock) -> None:
    order, recording = slow()
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(order.write, 0, b"a" * PAGE)
            await wait_all_tasks_blocked()
            with trio.move_on_after(0.5):
                await order.write(0, b"b" * PAGE)
            await order.write(0, b"c" * PAGE)
    assert recording.named("write") == [("write", 0, PAGE)] * 2
    assert bytes(await order.read(0, PAGE)) == b"c" * PAGE


@pytest.mark.parametrize("first", ["write", "zero"])
@pytest.mark.parametrize("second", ["write", "zero"])
async def test_calls_that_share_one_page_follow_each_other(first: str, second: str, autojump_clock: MockClock) -> None:
    """The last of the older is the first of the younger, and the other way round."""
    for older, younger in ((0, 7 * PAGE), (7 * PAGE, 0)):
        order, recording = slow()
        async with trio.open_nursery() as nursery:
            nursery.cancel_scope.deadline = trio.current_time() + 10
            for name, offset in ((first, older), (second, younger)):
                what = b"x" * (8 * PAGE) if name == "write" else 8 * PAGE
                nursery.start_soon(getattr(order, name), offset, what)
                await wait_all_tasks_blocked()
        starts = [call.started for call in recording.calls]
        assert starts[1] - starts[0] == 1


@pytest.mark.parametrize("name", ["write", "zero"])
@pytest.mark.parametrize("how", ["fails", "cancelled"])
async def test_a_call_that_fails_or_is_cancelled_keeps_nobody(how: str, name: str, autojump_clock: MockClock) -> None:
    fault = Fault() if how == "fails" else Fault(kind=None, delay_s=100)
    order = Order(CheckedStore(FaultyStore(MemoryStore(SIZE), in_turn([fault]))))
    with trio.move_on_after(1) as scope, contextlib.suppress(StoreError):
        await (order.write(0, b"a" * PAGE) if name == "write" else order.zero(0, PAGE))
    assert scope.cancelled_caught == (how == "cancelled")
    with trio.fail_after(10):
        await order.write(0, b"b" * PAGE)
        await order.zero(0, SIZE)


async def test_flush_is_handed_on() -> None:
    recording = RecordingStore(MemoryStore(SIZE))
    await Order(recording).flush()
    assert [call.name for call in recording.calls] == ["flush"]


@pytest.mark.parametrize("seed", range(40))
def test_the_lock_agrees_with_a_simple_one(seed: int) -> None:
    """Tickets come and go in any order that their blockers allow (or are given up while blocked).

    Ranges are a quarter of a bucket to 40 buckets long, so some end within one, some where one ends, some are wide.
    """
    random = Random(seed)
    lock = RangeLock()
    alive: list[tuple[Ticket, int, int, int]] = []  # ticket, start, end, arrival
    for arrival in range(60):
        start, length = random.randrange(160) << 18, random.choice((1, 2, 4, 7, 64, 160)) << 18
        for _ in range(20):
            here, size = random.randrange(320) << 17, random.choice((1, 2, 5, 8, 9)) << 17
            is_free = not any(here < end and begin < here + size for _, begin, end, _ in alive)
            wide = any((end - 1 >> 20) - (begin >> 20) >= WIDE for _, begin, end, _ in alive)
            one_bucket = here >> 20 == here + size - 1 >> 20
            assert lock.is_free(here, size) == (is_free and one_bucket and not wide)
        enter = lock.enter_free if lock.is_free(start, length) and random.random() < 0.5 else lock.enter
        ticket = enter(start, length)
        alive.append((ticket, start, start + length, arrival))
        for mine, a, b, came in alive:
            expected = sum(1 for _, c, d, other in alive if other < came and c < b and a < d)
            assert mine.blockers == expected
        if random.random() < 0.7:
            gone = alive.pop(random.randrange(len(alive)))
            lock.leave(gone[0])
    for left in alive:
        lock.leave(left[0])
    assert not lock._buckets
    assert not lock._wide


async def test_all_who_wait_for_one_range_are_let_go(autojump_clock: MockClock) -> None:
    order, recording = slow()
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(order.zero, 0, 8 * PAGE)
            await wait_all_tasks_blocked()
            for page in range(8):
                nursery.start_soon(order.write, page * PAGE, b"x" * PAGE)
    assert [call.started - recording.calls[0].started for call in recording.calls] == [0] + [1] * 8
