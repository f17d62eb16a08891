"""The plain lane of the whole stack: what goes through it, what is left of calls, and what does not go that way."""

from __future__ import annotations

from random import Random

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from blobfuse_dysk.errors import Kind, StoreError
from blobfuse_dysk.options import Cache
from blobfuse_dysk.store.lease.token import HoldState
from blobfuse_dysk.store.open import open_stack
from blobfuse_dysk.store.stack import StackOptions
from blobfuse_dysk.testing import Fate, LaneStore, SimBlob, SimClient, weather
from tests.contract.factories import ADDRESS, NOBODY, ring_for, sim_stack
from tests.contract.model import SIZE

PAGE = bytes(range(256)) * 2


@pytest.mark.parametrize("cache", ["none", "readonly", "readwrite"])
async def test_in_good_weather_all_that_is_plain_goes_through_it(cache: Cache, autojump_clock: MockClock) -> None:
    async with sim_stack(options=StackOptions(node="a", cache=cache)) as (stack, client):
        await stack.store.write(0, PAGE)  # the first waits for the node's name on the blob
        await stack.store.flush()
        lanes = LaneStore(stack.store)
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


@pytest.mark.parametrize("cache", ["none", "readwrite"])
async def test_what_fails_goes_on_as_any_call(cache: Cache, autojump_clock: MockClock) -> None:
    options = StackOptions(node="a", cache=cache, io_timeout_s=None)
    async with sim_stack(options=options) as (stack, client):
        await stack.store.write(0, PAGE)
        await stack.store.flush()
        lanes = LaneStore(stack.store)
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
    assert not client.overlaps
    assert not client.stragglers


async def test_a_lost_answer_to_a_write_in_it_raises_the_epoch_before_it_is_sent_again(
    autojump_clock: MockClock,
) -> None:
    async with sim_stack() as (stack, client):
        await stack.store.write(0, PAGE)
        lanes, epoch = LaneStore(stack.store), stack.epoch or 0
        fates = iter([Fate(lost_s=0.5, after_s=100.0)])
        client.fate = lambda name: next(fates, Fate())
        client.sent.clear()
        await lanes.write(0, PAGE[::-1])
        assert (lanes.passed, lanes.handed_over) == (1, 1)
        assert client.sent == ["put", "raise", "put"]
        assert (stack.epoch or 0) > epoch


async def test_it_is_closed_while_a_raise_is_due_the_lease_is_in_doubt_or_the_disk_is_lost(
    autojump_clock: MockClock,
) -> None:
    async with sim_stack() as (stack, _):
        await stack.store.write(0, PAGE)
        lanes, fence = LaneStore(stack.store), stack._fence
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


async def test_overlapping_writes_follow_each_other(autojump_clock: MockClock) -> None:
    async with sim_stack() as (stack, client):
        await stack.store.write(0, PAGE)
        lanes = LaneStore(stack.store)
        client.fate = lambda name: Fate(before_s=1.0)
        async with trio.open_nursery() as writers:
            for version in range(8):
                writers.start_soon(lanes.write, 512 * (version % 3), bytes([version]) * 1024)
                await trio.testing.wait_all_tasks_blocked()
        found = bytes(await lanes.read(0, 2048))
        assert [found[page * 512] for page in range(4)] == [6, 7, 7, 5]
    assert not client.overlaps


async def test_a_disk_that_is_traced_has_none(autojump_clock: MockClock) -> None:
    async with sim_stack() as (stack, _):
        await stack.store.write(0, PAGE)
        lanes = LaneStore(stack.store)
        stack.trace(60)
        await lanes.write(0, PAGE)
        assert lanes.passed == 0
        await trio.sleep(61)
        await lanes.write(0, PAGE)  # ends the trace
        await lanes.write(0, PAGE)
        assert lanes.passed == 1


async def test_what_is_left_of_a_run_when_the_disk_was_closed_is_no_loss_of_it(autojump_clock: MockClock) -> None:
    """It stays in the ring, for the next worker."""
    options = StackOptions(node="a", cache="readwrite", io_timeout_s=120.0, write_delay_s=0.1)
    states: list[HoldState] = []
    async with trio.open_nursery() as network, ring_for(options) as ring:
        client = SimClient(SimBlob(SIZE), network)
        async with open_stack(ADDRESS, NOBODY, options, client=client, ring=ring, on_state=states.append) as stack:
            await stack.store.write(0, PAGE)
            await stack.store.flush()
            await trio.sleep(1)
            client.fate = lambda name: Fate(lost_s=1.0, after_s=2.0)
            client.sent.clear()
            await stack.store.write(4096, PAGE)
            await trio.sleep(0.5)
            assert client.sent == ["put"]
        await trio.sleep(200)
        assert (states, stack.failure, stack.unwritten) == ([], None, [(4096, 512)])
        network.cancel_scope.cancel()


async def test_a_limit_that_was_cut_goes_up_again_by_what_succeeds_in_it(autojump_clock: MockClock) -> None:
    async with sim_stack() as (stack, _):
        await stack.store.write(0, PAGE)
        lanes, limiter = LaneStore(stack.store), stack._limiter
        limiter.limit = 1.0
        for page in range(10):
            await lanes.write(512 * page, PAGE)
            await lanes.read(512 * page, 512)
        assert (lanes.passed, limiter.in_flight) == (20, 0)
        assert limiter.limit > 4
