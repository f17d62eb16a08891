"""Throttle against services that sell so much and no more: in virtual time, so the figures are exact."""

from __future__ import annotations

import pytest
import trio

from blobfuse_dysk.store.parts.pacer import Pacer
from blobfuse_dysk.store.parts.priority import Priority, priority
from tests.simulation.clocks import JumpingClock
from tests.simulation.limited import Client, LimitedStore

MIB = 1 << 20


@pytest.mark.parametrize("how", ["503", "delay"])
@pytest.mark.parametrize(
    ("tier", "length", "depth"),
    [
        ("P10", 4096, 32),
        ("P10", 4096, 128),
        ("P10", 65536, 64),
        ("P10", MIB, 32),
        ("P10", 4 * MIB, 16),
        ("P15", 4096, 128),
        ("P20", 4096, 64),
        ("P20", MIB, 32),
        ("P20", 4 * MIB, 16),
        ("P30", MIB, 32),
        ("P40", 4 * MIB, 16),
    ],
)
async def test_what_a_tier_sells_is_reached_from_the_start(
    jumping_clock: JumpingClock, how: str, tier: str, length: int, depth: int
) -> None:
    seen = await Client(LimitedStore(tier, how)).load(length, depth, 8, write=length == 4096)
    assert seen.used >= 0.97
    assert seen.refused < 0.01


@pytest.mark.parametrize("tier", ["P10", "P15", "P20"])
@pytest.mark.parametrize("length", [4096, MIB])
async def test_a_service_that_lets_nothing_queue(jumping_clock: JumpingClock, tier: str, length: int) -> None:
    client = Client(LimitedStore(tier, "strict"))
    await client.load(length, 64, 3)  # finding the limit
    seen = await client.load(length, 64, 12)
    assert seen.used >= 0.97
    assert seen.refused < 0.01


async def test_a_service_that_counts_by_the_second(jumping_clock: JumpingClock) -> None:
    client = Client(LimitedStore("500/100", "seconds"))
    await client.load(4096, 64, 30)
    seen = await client.load(4096, 64, 30)
    assert seen.used >= 0.95
    assert seen.refused < 0.01


@pytest.mark.parametrize("how", ["503", "strict"])
async def test_a_limit_that_falls_to_a_tenth_makes_no_storm(jumping_clock: JumpingClock, how: str) -> None:
    client = Client(LimitedStore("P30", how))
    await client.load(4096, 64, 3)
    client.service.rates = (500.0, 1e8)
    before = client.service.refused
    seen = await client.load(4096, 64, 5)
    assert seen.used >= 0.95
    assert client.service.refused - before < 250  # of 64 callers, each a few times
    seen = await client.load(4096, 64, 15)
    assert seen.used >= 0.97
    assert seen.refused < 0.01


@pytest.mark.parametrize("how", ["503", "strict"])
async def test_a_limit_that_rises_is_found(jumping_clock: JumpingClock, how: str) -> None:
    client = Client(LimitedStore("P10", how))
    await client.load(4096, 64, 10)
    client.service.rates = (2300.0, 1.5e8)
    seen = await client.load(4096, 64, 12)
    assert seen.refused < 0.01
    seen = await client.load(4096, 64, 8)
    assert seen.used >= 0.97
    assert seen.refused < 0.01


@pytest.mark.parametrize("how", ["503", "strict"])
async def test_what_is_learned_of_large_requests_does_not_bind_small_ones(
    jumping_clock: JumpingClock, how: str
) -> None:
    client = Client(LimitedStore("P10", how))
    used = []
    for length, depth in ((4 * MIB, 16), (4096, 64), (4 * MIB, 16), (65536, 64), (4096, 64)):
        seen = await client.load(length, depth, 8)
        used.append(seen.used)
    assert min(used) >= (0.97 if how == "503" else 0.85)  # finding a limit takes up to a second


@pytest.mark.parametrize("noise", [0.002, 0.03])
async def test_refusals_at_random_do_not_pull_the_rate_down(jumping_clock: JumpingClock, noise: float) -> None:
    client = Client(LimitedStore("P10", "503"))
    await client.load(4096, 64, 3)
    client.service.noise = noise
    seen = await client.load(4096, 64, 40)
    assert seen.used >= 0.9
    client.service.noise = 0.0
    await client.load(4096, 64, 10)
    assert (await client.load(4096, 64, 5)).used >= 0.97


@pytest.mark.parametrize("how", ["503", "strict"])
async def test_an_outage_is_forgotten_soon(jumping_clock: JumpingClock, how: str) -> None:
    client = Client(LimitedStore("1000/100", how))
    await client.load(4096, 64, 5)
    client.service.noise = 1.0
    seen = await client.load(4096, 64, 5)
    assert seen.used == 0
    client.service.noise = 0.0
    await client.load(4096, 64, 4)
    assert (await client.load(4096, 64, 10)).used >= 0.97


async def test_long_pauses_are_asked_for_rarely(jumping_clock: JumpingClock) -> None:
    client = Client(LimitedStore("P10", "strict", retry_after_s=1.0))
    await client.load(4096, 64, 20)
    seen = await client.load(4096, 64, 200)
    assert seen.used >= 0.92
    assert seen.refused < 0.001


@pytest.mark.parametrize(
    ("tier", "depth", "least"),
    [("50/100", 32, 0.95), ("P4", 1, 0.83), ("P4", 4, 0.95), ("P10", 1, 0.9), ("P10", 4, 0.95), ("P10", 32, 0.97)],
)
async def test_a_limit_is_found_though_each_refusal_means_a_pause(
    jumping_clock: JumpingClock, tier: str, depth: int, least: float
) -> None:
    """A single caller is stopped by each pause; of several callers, the others show the way meanwhile."""
    client = Client(LimitedStore(tier, "strict", retry_after_s=1.0, latency_s=0.001))
    await client.load(4096, depth, 40)
    seen = await client.load(4096, depth, 20)
    assert seen.used >= least
    assert seen.refused < 0.01


@pytest.mark.parametrize(("fallen", "depth"), [(300.0, 1), (300.0, 4), (300.0, 16), (300.0, 32), (50.0, 1), (50.0, 32)])
async def test_a_limit_that_falls_is_found_though_each_refusal_means_a_pause(
    jumping_clock: JumpingClock, fallen: float, depth: int
) -> None:
    """What was borne before is no reason to call it noise."""
    client = Client(LimitedStore("P10", "strict", retry_after_s=1.0))
    await client.load(4096, depth, 15)
    client.service.rates = (fallen, 1e8)
    await client.load(4096, depth, 40)
    seen = await client.load(4096, depth, 20)
    assert seen.used >= 0.8
    assert seen.refused < 0.01


async def test_a_refusal_among_many_that_get_through_stops_nobody_else(jumping_clock: JumpingClock) -> None:
    """One in a hundred of 2,500 requests a second, each to be repeated a second later: a fifth of 128 callers waits."""
    service = LimitedStore("20000/1000", "503", retry_after_s=1.0, latency_s=0.05)
    client = Client(service)
    before = await client.load(4096, 128, 5)
    service.noise = 0.01
    seen = await client.load(4096, 128, 20)
    assert seen.operations >= 0.8 * before.operations


@pytest.mark.parametrize(
    ("iops", "mbps", "length", "depth"),
    [(1000, None, 4096, 64), (1000, None, 4096, 8), (40, None, MIB, 8), (None, 50.0, MIB, 8), (700, 2.0, 4096, 16)],
)
async def test_limits_of_the_user_are_exact(
    jumping_clock: JumpingClock, iops: int | None, mbps: float | None, length: int, depth: int
) -> None:
    client = Client(LimitedStore("P40", "503"), Pacer(iops, None if mbps is None else mbps * 1e6))
    seconds = 10.0
    await client.load(length, depth, seconds)
    shares = []
    if iops is not None:
        shares.append(client.service.done / seconds / iops)
    if mbps is not None:
        shares.append(client.service.bytes / seconds / (mbps * 1e6))
    assert 0.97 <= max(shares) <= 1.03
    assert client.service.refused == 0


async def test_a_user_limit_above_the_tier_changes_nothing(jumping_clock: JumpingClock) -> None:
    client = Client(LimitedStore("P10", "strict"), Pacer(5000))
    await client.load(4096, 64, 3)
    seen = await client.load(4096, 64, 10)
    assert seen.used >= 0.97
    assert seen.refused < 0.01


async def test_urgent_ones_go_first_when_it_is_time_that_is_waited_for(jumping_clock: JumpingClock) -> None:
    """At 100 requests a second with 50 reads waiting, a flush is next but for the one that is due."""
    client = Client(LimitedStore("P40", "503"), Pacer(100))
    async with trio.open_nursery() as nursery:
        for level in (Priority.READ, Priority.READ_AHEAD, Priority.TRIM):
            with priority(level):
                nursery.start_soon(client.load, 4096, 50, 20)
        await trio.sleep(5)
        started = trio.current_time()
        for _ in range(5):
            await client.store.write(0, bytes(4096))
        assert trio.current_time() - started < 5 * 0.03 + 0.05
        nursery.cancel_scope.cancel()
    assert client.limiter.waiting == client.limiter.in_flight == 0


async def test_cancelled_while_time_is_waited_for(jumping_clock: JumpingClock) -> None:
    client = Client(LimitedStore("P40", "503"), Pacer(10))
    with trio.move_on_after(1):
        await client.load(4096, 20, 5)
    assert client.limiter.waiting == client.limiter.in_flight == 0
    started = trio.current_time()
    await client.store.read(0, 4096)
    assert trio.current_time() - started < 0.11


async def test_limits_of_the_user_can_be_changed(jumping_clock: JumpingClock) -> None:
    """P40 sells 7500 operations a second."""
    pacer = Pacer(1500)
    client = Client(LimitedStore("P40", "503"), pacer)
    assert (await client.load(4096, 32, 4)).operations == pytest.approx(0.2, rel=0.05)
    pacer.allow(750, None)
    assert (await client.load(4096, 32, 4)).operations == pytest.approx(0.1, rel=0.05)
    pacer.allow(None, 1500 * 4096)
    assert (await client.load(4096, 32, 4)).operations == pytest.approx(0.2, rel=0.05)
    pacer.allow(None, None)
    assert not pacer.paced
    assert (await client.load(4096, 32, 4)).operations > 0.9
