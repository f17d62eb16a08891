"""The plain lane of the whole stack: what goes through it, what is left of calls, and what does not go that way."""

from __future__ import annotations

from random import Random

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from blobfuse_dysk.errors import Kind, StoreError
from blobfuse_dysk.options import Cache
from blobfuse_dysk.store.stack import StackOptions
from blobfuse_dysk.testing import Fate, LaneStore, weather
from tests.contract.factories import sim_stack

PAGE = bytes(range(256)) * 2


@pytest.mark.parametrize("cache", ["none", "readonly", "readwrite"])
async def test_in_good_weather_all_that_is_plain_goes_through_it(cache: Cache, autojump_clock: MockClock) -> None:
    async with (
        sim_stack(options=StackOptions(node="a", cache=cache)) as (stack, client),
        trio.open_nursery() as nursery,
    ):
        await stack.store.write(0, PAGE)  # the first waits for the node's name on the blob
        await stack.store.flush()
        lanes = LaneStore(stack.store, nursery)
        for page in range(20):
            await lanes.write(page * 4096, PAGE)
        await stack.store.flush()
        client.sent.clear()
        for page in (3, 11, 5, 17, 8):
            assert bytes(await lanes.read(page * 4096, 512)) == PAGE
        assert (lanes.passed, lanes.handed_over, client.sent) == (25, 0, ["get"] * 5)
        io = stack.status()["io"]
        assert io == io | {"in_flight": 0, "errors": {}}  # type: ignore[operator]
        assert io["calls"]["read"] == 5  # type: ignore[index]
        assert stack.status()["requests"]["in_flight"] == stack._limiter.in_flight == 0  # type: ignore[index]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("cache", ["none", "readwrite"])
async def test_what_fails_goes_on_as_any_call(cache: Cache, autojump_clock: MockClock) -> None:
    options = StackOptions(node="a", cache=cache, io_timeout_s=None)
    async with sim_stack(options=options) as (stack, client), trio.open_nursery() as nursery:
        await stack.store.write(0, PAGE)
        await stack.store.flush()
        lanes = LaneStore(stack.store, nursery)
        client.fate = weather(Random(1), bad=0.5)
        for page in range(60):
            await lanes.write(page * 4096, PAGE)
        await stack.store.flush()
        for page in range(59, 0, -3):
            assert bytes(await lanes.read(page * 4096, 512)) == PAGE
        assert lanes.handed_over > (5 if cache == "none" else 0)
        assert stack._retry.retries > 5
        assert stack._limiter.in_flight == 0
        assert not stack._retry._calls
        nursery.cancel_scope.cancel()
    assert not client.overlaps
    assert not client.stragglers


async def test_a_lost_answer_to_a_write_in_it_raises_the_epoch_before_it_is_sent_again(
    autojump_clock: MockClock,
) -> None:
    async with sim_stack() as (stack, client), trio.open_nursery() as nursery:
        await stack.store.write(0, PAGE)
        lanes, epoch = LaneStore(stack.store, nursery), stack.epoch or 0
        fates = iter([Fate(lost_s=0.5, after_s=100.0)])
        client.fate = lambda name: next(fates, Fate())
        client.sent.clear()
        await lanes.write(0, PAGE[::-1])
        assert (lanes.passed, lanes.handed_over) == (1, 1)
        assert client.sent == ["put", "raise", "put"]
        assert (stack.epoch or 0) > epoch
        nursery.cancel_scope.cancel()


async def test_it_is_closed_while_a_raise_is_due_the_lease_is_in_doubt_or_the_disk_is_lost(
    autojump_clock: MockClock,
) -> None:
    async with sim_stack() as (stack, _), trio.open_nursery() as nursery:
        await stack.store.write(0, PAGE)
        lanes, fence = LaneStore(stack.store, nursery), stack._fence
        assert fence
        await lanes.write(0, PAGE)
        fence._suspect(None)
        await lanes.write(0, PAGE)
        assert lanes.passed == 1
        await lanes.write(0, PAGE)
        assert lanes.passed == 2
        fence._doubt(StoreError("a test", Kind.LEASE))
        await lanes.write(0, PAGE)
        assert lanes.passed == 2
        stack.fail(StoreError("a test", Kind.GONE))
        for call in (lanes.write(0, PAGE), lanes.write(512, PAGE)):
            with pytest.raises(StoreError, match="a test"):
                await call
        assert bytes(await lanes.read(0, 512)) == PAGE
        assert lanes.passed == 2  # and reads have a time of their own then
        nursery.cancel_scope.cancel()


async def test_overlapping_writes_follow_each_other(autojump_clock: MockClock) -> None:
    async with sim_stack() as (stack, client), trio.open_nursery() as nursery:
        await stack.store.write(0, PAGE)
        lanes = LaneStore(stack.store, nursery)
        client.fate = lambda name: Fate(before_s=1.0)
        async with trio.open_nursery() as writers:
            for version in range(8):
                writers.start_soon(lanes.write, 512 * (version % 3), bytes([version]) * 1024)
                await trio.testing.wait_all_tasks_blocked()
        found = bytes(await lanes.read(0, 2048))
        assert [found[page * 512] for page in range(4)] == [6, 7, 7, 5]
        nursery.cancel_scope.cancel()
    assert not client.overlaps


async def test_a_disk_that_is_traced_has_none(autojump_clock: MockClock) -> None:
    async with sim_stack() as (stack, _), trio.open_nursery() as nursery:
        await stack.store.write(0, PAGE)
        lanes = LaneStore(stack.store, nursery)
        stack.trace(60)
        await lanes.write(0, PAGE)
        assert lanes.passed == 0
        await trio.sleep(61)
        await lanes.write(0, PAGE)  # ends the trace
        await lanes.write(0, PAGE)
        assert lanes.passed == 1
        nursery.cancel_scope.cancel()


async def test_a_limit_that_was_cut_goes_up_again_by_what_succeeds_in_it(autojump_clock: MockClock) -> None:
    async with sim_stack() as (stack, _), trio.open_nursery() as nursery:
        await stack.store.write(0, PAGE)
        lanes, limiter = LaneStore(stack.store, nursery), stack._limiter
        limiter.limit = 1.0
        for page in range(10):
            await lanes.write(512 * page, PAGE)
            await lanes.read(512 * page, 512)
        assert (lanes.passed, limiter.in_flight) == (20, 0)
        assert limiter.limit > 4
        nursery.cancel_scope.cancel()
