"""Throttle and its Limiter: how many at once, who first, and no slot is ever lost."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from math import inf
from random import Random

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from blobfuse_dysk.errors import Kind, StoreError
from blobfuse_dysk.store.layers.throttle import Throttle
from blobfuse_dysk.store.parts.backoff import MOST_RETRY_AFTER_S
from blobfuse_dysk.store.parts.limiter import PASSED_OVER, Limiter
from blobfuse_dysk.store.parts.pacer import Pacer
from blobfuse_dysk.store.parts.priority import Priority, current_priority, priority
from blobfuse_dysk.testing import Fault, FaultyStore, MemoryStore, RecordingStore, at_random, in_turn

DATA = b"x" * 512


async def use(limiter: Limiter, level: int, hold_s: float, done: Callable[[], None] = lambda: None) -> None:
    started = await limiter.enter(level)
    done()
    await trio.sleep(hold_s)
    limiter.succeeded(started, 512)
    limiter.leave()


async def test_no_more_than_the_limit_are_in_flight(autojump_clock: MockClock) -> None:
    limiter = Limiter(first=5, most=5)
    seen: list[int] = []
    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(use, limiter, 1, 1.0, lambda: seen.append(limiter.in_flight))
    assert max(seen) == 5
    assert limiter.in_flight == limiter.waiting == 0


async def test_urgent_first_and_fair_within_a_priority(autojump_clock: MockClock) -> None:
    limiter = Limiter(first=1, most=1)
    order: list[tuple[int, int]] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(use, limiter, 0, 1.0)
        await wait_all_tasks_blocked()
        for level in (3, 1, 0, 2):
            for turn in range(2):
                nursery.start_soon(use, limiter, level, 0.1, lambda level=level, turn=turn: order.append((level, turn)))
                await wait_all_tasks_blocked()
    assert order == sorted(order)


async def test_the_least_urgent_gets_its_turn_among_many_urgent_ones(autojump_clock: MockClock) -> None:
    limiter = Limiter(first=1, most=1)
    order: list[int] = []

    async def urgent() -> None:
        while len(order) < 100:
            await use(limiter, 0, 0.1, lambda: order.append(0))

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(urgent)
        await wait_all_tasks_blocked()
        nursery.start_soon(use, limiter, 3, 0.1, lambda: order.append(3))
    assert order.index(3) <= PASSED_OVER + 2


async def test_a_refusal_halves_once_per_round_trip(autojump_clock: MockClock) -> None:
    limiter = Limiter(first=64)
    started = [await limiter.enter(1) for _ in range(64)]
    await trio.sleep(1)
    for start in started:
        limiter.refused(start, None)
        limiter.leave()
    assert limiter.limit == 32
    assert limiter.cuts == 1
    await trio.sleep(1)
    limiter.refused(await limiter.enter(1), None)
    assert limiter.limit == 16


async def test_the_limit_never_falls_below_one(autojump_clock: MockClock) -> None:
    limiter = Limiter(first=4)
    for _ in range(10):
        await trio.sleep(1)
        limiter.refused(await limiter.enter(1), None)
        limiter.leave()
    assert limiter.limit == 1
    await use(limiter, 1, 1.0)


async def test_it_grows_by_one_a_window_while_it_is_the_limit(autojump_clock: MockClock) -> None:
    limiter = Limiter(first=8, most=12)
    async with trio.open_nursery() as nursery:
        for _ in range(8 * 4):
            nursery.start_soon(use, limiter, 1, 1.0)
    assert 9 <= int(limiter.limit) <= 12
    idle = Limiter(first=32)
    for _ in range(100):
        await use(idle, 1, 0.01)
    assert idle.limit == 32


async def test_it_stops_growing_when_latency_has_risen(autojump_clock: MockClock) -> None:
    limiter = Limiter(first=2)
    await use(limiter, 1, 0.001)
    limits = []
    for _ in range(40):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(use, limiter, 1, 0.05)
            nursery.start_soon(use, limiter, 1, 0.05)
            nursery.start_soon(use, limiter, 1, 0.05)
        limits.append(limiter.limit)
    assert limits[-1] == limits[10]


async def test_retry_after_closes_the_gate_for_all(autojump_clock: MockClock) -> None:
    store = RecordingStore(FaultyStore(MemoryStore(1 << 20), in_turn([Fault(Kind.THROTTLED, retry_after_s=7)])))
    throttle = Throttle(store)
    with pytest.raises(StoreError):
        await throttle.write(0, DATA)
    refused_at = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(throttle.write, 0, DATA)
        nursery.start_soon(throttle.read, 4096, 512)
        nursery.start_soon(throttle.extents, 0, 512)
    assert {call.started for call in store.calls[1:]} == {refused_at + 7}
    assert throttle.status()["throttled"] == 1


async def test_retry_after_of_one_refusal_among_many_stops_nobody_else(autojump_clock: MockClock) -> None:
    limiter = Limiter()
    for _ in range(200):
        await use(limiter, 1, 0.01)
    others = [await limiter.enter(1, 4096) for _ in range(4)]
    limiter.refused(await limiter.enter(1, 4096), 7.0)
    limiter.leave(4096)
    asked_at = trio.current_time()
    await use(limiter, 1, 0.01)
    assert trio.current_time() - asked_at < 1
    await trio.sleep(0.01)
    for started in others:
        limiter.succeeded(started, 4096)
        limiter.leave(4096)


async def test_a_pause_of_all_is_made_longer_by_every_refusal_in_it(autojump_clock: MockClock) -> None:
    limiter = Limiter()
    started = [await limiter.enter(1) for _ in range(3)]
    for start in started:
        limiter.refused(start, 7.0)
        limiter.leave()
        await trio.sleep(1)
    refused_last = trio.current_time() - 1
    await limiter.enter(1)
    assert trio.current_time() == refused_last + 7


async def test_a_large_request_takes_a_slot_for_each_part(autojump_clock: MockClock) -> None:
    limiter = Limiter()
    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(limiter.enter, 1, 4 << 20)
        await wait_all_tasks_blocked()
        assert (limiter.in_flight, limiter.waiting) == (17, 7)
        limiter.leave(4 << 20)
        assert (limiter.in_flight, limiter.waiting) == (17, 6)
        nursery.cancel_scope.cancel()


async def test_clear_means_that_a_request_of_this_length_starts_at_once(autojump_clock: MockClock) -> None:
    limiter = Limiter()
    assert limiter.is_clear(4 << 20)
    for _ in range(15):
        await limiter.enter(1, 4096)
    assert limiter.is_clear(4 << 20)
    await limiter.enter(1, 4096)
    assert not limiter.is_clear(4 << 20)
    for _ in range(16):
        assert limiter.is_clear(4096)
        await limiter.enter(1, 4096)
    assert not limiter.is_clear(4096)
    assert not Limiter(pacer=Pacer(100)).is_clear(4096)


async def test_being_cancelled_at_the_gate_gives_the_slot_back(autojump_clock: MockClock) -> None:
    limiter = Limiter(first=1, most=1)
    limiter.refused(await limiter.enter(1), 10.0)
    limiter.leave()
    with trio.move_on_after(1):
        await limiter.enter(1)
    assert limiter.in_flight == 0
    await use(limiter, 1, 0.1)


async def test_a_stale_connection_is_no_refusal(autojump_clock: MockClock) -> None:
    store = FaultyStore(
        MemoryStore(1 << 20), in_turn([Fault(Kind.UNREACHABLE, immediate=True), Fault(Kind.UNREACHABLE)])
    )
    throttle = Throttle(store)
    before = throttle.status()["concurrency"]
    with pytest.raises(StoreError):
        await throttle.read(0, 512)
    assert throttle.status()["concurrency"] == before
    await trio.sleep(1)
    with pytest.raises(StoreError):
        await throttle.read(0, 512)
    assert throttle.status()["concurrency"] != before


async def test_the_priority_is_that_of_the_task(autojump_clock: MockClock) -> None:
    assert current_priority(Priority.READ) is Priority.READ
    limiter = Limiter(first=1, most=1)
    store = RecordingStore(FaultyStore(MemoryStore(1 << 20), lambda name, offset, length: Fault(kind=None, delay_s=1)))
    throttle = Throttle(store, limiter=limiter)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(throttle.read, 0, 512)
        await wait_all_tasks_blocked()
        with priority(Priority.TRIM):
            nursery.start_soon(throttle.zero, 512, 512)
        with priority(Priority.READ_AHEAD):
            nursery.start_soon(throttle.read, 1024, 512)
        nursery.start_soon(throttle.read, 1536, 512)
        nursery.start_soon(throttle.write, 2048, DATA)
        assert current_priority(Priority.FLUSH) is Priority.FLUSH
    assert [call.offset for call in store.calls] == [0, 2048, 1536, 1024, 512]


@pytest.mark.parametrize("seed", range(12))
async def test_no_slot_is_lost_whatever_happens(seed: int, autojump_clock: MockClock) -> None:
    """Refusals, pauses and cancellation at any moment; in the end all slots are back and all calls have ended."""
    random = Random(seed)
    limiter = Limiter(first=random.choice((2, 20)), most=24)
    faults = [
        Fault(Kind.THROTTLED, retry_after_s=1.5),
        Fault(Kind.UNREACHABLE, delay_s=2),
        Fault(kind=None, delay_s=1),
    ]
    throttle = Throttle(FaultyStore(MemoryStore(8 << 20), at_random(random, 0.4, faults)), limiter=limiter)
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: throttle.read(0, random.choice((512, 1 << 20))),
        lambda: throttle.write(0, bytes(random.choice((512, 1 << 20)))),
        lambda: throttle.zero(0, 8 << 20),
        lambda: throttle.extents(0, 8 << 20),
    ]

    async def one(call: Callable[[], Awaitable[object]], level: int, pause_s: float, cancel_s: float) -> None:
        await trio.sleep(pause_s)
        with trio.move_on_after(cancel_s), priority(Priority(level)), contextlib.suppress(StoreError):
            await call()

    with trio.fail_after(10_000):
        async with trio.open_nursery() as nursery:
            for _ in range(100):
                pause_s, cancel_s = random.choice((0.0, 0.5, 1.0, 3.0)), random.choice((inf, inf, 0.0, 0.4, 2.0))
                nursery.start_soon(one, random.choice(calls), random.randrange(4), pause_s, cancel_s)
        assert limiter.in_flight == limiter.waiting == 0
        assert 1 <= limiter.limit <= 24
        await limiter.enter(1, 4 << 20)  # no pause is left that nobody ends
        limiter.leave(4 << 20)


@pytest.mark.parametrize("waits", [False, True])
async def test_a_request_of_more_slots_than_there_are_starts_alone(waits: bool, autojump_clock: MockClock) -> None:
    limiter = Limiter(first=2, most=2)
    with trio.fail_after(100):
        async with trio.open_nursery() as nursery:
            if waits:
                nursery.start_soon(use, limiter, 1, 1.0)
                await wait_all_tasks_blocked()
            await limiter.enter(1, 4 << 20)
            nursery.start_soon(use, limiter, 1, 1.0)
            await wait_all_tasks_blocked()
            assert limiter.waiting == 1
            limiter.leave(4 << 20)
    assert limiter.in_flight == 0


async def test_nobody_overtakes_those_who_wait(autojump_clock: MockClock) -> None:
    """A large request that does not fit yet would wait for ever for small ones that do."""
    limiter = Limiter(first=2, most=2)
    async with trio.open_nursery() as nursery:
        await limiter.enter(1)
        nursery.start_soon(limiter.enter, 1, 4 << 20)
        await wait_all_tasks_blocked()
        assert limiter.enter_at_once() is None
        assert not limiter.is_clear(512)
        limiter.leave()
    assert limiter.in_flight == 17
    limiter.leave(4 << 20)


@pytest.mark.parametrize("name", ["read", "write", "zero", "extents"])
async def test_errors_come_through(name: str, autojump_clock: MockClock) -> None:
    throttle = Throttle(FaultyStore(MemoryStore(1 << 20), in_turn([Fault(Kind.THROTTLED)], [name])))
    with pytest.raises(StoreError) as caught:
        await getattr(throttle, name)(0, DATA if name == "write" else 512)
    assert caught.value.kind is Kind.THROTTLED


async def test_flush_is_handed_on_without_a_slot(autojump_clock: MockClock) -> None:
    store, limiter = RecordingStore(MemoryStore(1 << 20)), Limiter(first=1, most=1)
    await limiter.enter(1)
    await Throttle(store, limiter=limiter).flush()
    assert [call.name for call in store.calls] == ["flush"]


async def test_an_absurd_retry_after_is_not_kept(autojump_clock: MockClock) -> None:
    store = FaultyStore(MemoryStore(1 << 20), in_turn([Fault(Kind.THROTTLED, retry_after_s=1e6)]))
    throttle = Throttle(store)
    with pytest.raises(StoreError):
        await throttle.read(0, 512)
    started = trio.current_time()
    await throttle.read(0, 512)
    assert trio.current_time() - started == MOST_RETRY_AFTER_S
