"""Requests about lease and epoch that come late, twice, or from an attempt that failed: one writer all the same."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

import pytest
import trio
from trio.testing import MockClock

from blobfuse_dysk.errors import DyskError, Kind, StoreError
from blobfuse_dysk.store.open import ResumeState
from blobfuse_dysk.store.parts.ring import MIN_CAPACITY, Ring
from blobfuse_dysk.store.stack import Stack
from blobfuse_dysk.testing import Fate, SimBlob, SimClient
from blobfuse_dysk.testing.fates import refuse
from tests.simulation.stacks import DATA, LEASE, Node, attached, held, refused

OLD, NEW = b"o" * 512, b"n" * 512
LATE = Fate(before_s=30.0, lost_s=1.0)  # arrives half a minute after its sender stopped waiting


@pytest.fixture
def memory() -> Iterator[int]:
    memory = os.memfd_create("ring")
    yield memory
    os.close(memory)


async def cut_off_with_accepted_writes(client: SimClient, memory: int, **options: object) -> ResumeState:
    """A worker that dies while its node is cut off, with a write in the dirty ring that nobody flushed."""
    async with attached(client, cache="readwrite", ring=Ring(memory, MIN_CAPACITY), **options) as stack:  # type: ignore[arg-type]
        await stack.store.write(0, DATA)
        await stack.store.flush()
        client.down = True
        await stack.store.write(0, OLD)
        await trio.sleep(1.5)
        return held(stack)


async def replaced(client: SimClient, memory: int, state: ResumeState, **options: object) -> None:
    """The next worker of that attachment, which must learn that others had the disk."""
    client.down = False
    error = await refused(client, StoreError, cache="readwrite", ring=Ring(memory), resume=state, **options)
    assert isinstance(error, StoreError)
    assert error.kind is Kind.FENCED


async def test_a_new_worker_does_not_go_on_after_another_node_had_the_disk_under_the_same_lease_id(
    blob: SimBlob, node: Node, memory: int, autojump_clock: MockClock
) -> None:
    one = node("1")
    state = await cut_off_with_accepted_writes(one, memory, lease_id=LEASE)
    async with attached(node("2"), lease_id=LEASE, seed=2) as other:
        await other.store.write(0, NEW)
        await other.store.flush()
        await replaced(one, memory, state, lease_id=LEASE)
        await trio.sleep(61)
        assert other.state == "attached"
        assert blob.get(0, 512) == NEW


@pytest.mark.parametrize("who", ["another node", "an outsider"])
async def test_a_new_worker_does_not_go_on_when_a_late_acquire_took_the_lease_again(
    who: str, blob: SimBlob, node: Node, memory: int, autojump_clock: MockClock
) -> None:
    one = node("1", acquire=[Fate(before_s=40.0, lost_s=1.0)])
    state = await cut_off_with_accepted_writes(one, memory)
    if who == "another node":
        async with attached(node("2"), break_lease=True, seed=2) as other:
            await other.store.write(0, NEW)
            await other.store.flush()
            await other.release()
    else:
        blob.break_now()
        blob.put("outsider", 0, NEW, 512, None, None)
    await trio.sleep(45)
    assert blob.lease_state == "available", "what was sent before the disk changed hands is void"
    await replaced(one, memory, state)
    assert blob.get(0, 512) == NEW


async def test_a_late_copy_of_its_own_break_does_not_end_a_lease(
    blob: SimBlob, node: Node, autojump_clock: MockClock
) -> None:
    blob.acquire(60, LEASE)
    async with attached(node("1", **{"break": [LATE]}), break_lease=True) as stack:
        await stack.store.write(0, DATA)
        await trio.sleep(60)
        assert stack.state == "attached"


async def test_a_late_break_does_not_end_the_lease_of_a_third_node(
    blob: SimBlob, node: Node, autojump_clock: MockClock
) -> None:
    blob.acquire(60, LEASE)
    async with attached(node("1", **{"break": [LATE]}), break_lease=True) as stack:
        await stack.release()
    async with attached(node("2"), seed=2) as stack:
        await trio.sleep(60)
        assert stack.state == "attached"


def keep_busy(holder: Stack, blob: SimBlob, other: SimClient) -> None:
    """Have the holder write in every moment: whatever another node looked at has changed when it goes on."""
    mine, fate = held(holder), other.fate

    def write_first(name: str) -> Fate:
        with suppress(DyskError):
            blob.put("busy", 4096, DATA, 512, mine.lease_id, mine.epoch)
        return fate(name)

    other.fate = write_first


@pytest.mark.parametrize("lease_id", [None, LEASE])
async def test_a_busy_holder_is_taken_over_all_the_same(
    lease_id: str | None, blob: SimBlob, node: Node, autojump_clock: MockClock
) -> None:
    two = node("2")
    async with attached(node("busy"), lease_id=lease_id) as old:
        keep_busy(old, blob, two)
        async with attached(two, break_lease=True, lease_id=lease_id, seed=2) as new:
            await new.store.write(0, NEW)
            with pytest.raises(StoreError) as caught:
                await old.store.write(0, OLD)
            assert caught.value.kind is Kind.FENCED
            assert new.state == "attached"
            assert blob.get(0, 512) == NEW


@pytest.mark.parametrize("late_s", [2.5, 3.5, 30.0])
async def test_a_late_break_of_a_busy_holders_lease_does_not_end_the_new_one(
    late_s: float, blob: SimBlob, node: Node, autojump_clock: MockClock
) -> None:
    """Its condition is a moment in the near future; the attach outlasts that before it says success."""
    two = node("2", **{"break": [Fate()] * 4 + [Fate(before_s=late_s, lost_s=0.2)]})
    async with attached(node("busy")) as old:
        await trio.sleep(10)
        keep_busy(old, blob, two)
        async with attached(two, break_lease=True, seed=2) as new:
            assert two.sent.count("break") > 5
            assert blob.metadata["dysk_node"] == "here"
            await trio.sleep(61)
            assert new.state == "attached"


@pytest.mark.parametrize(("held_s", "wanted_s"), [(15.0, 60.0), (60.0, None), (15.0, None), (None, 15.0)])
async def test_a_lease_that_is_taken_up_keeps_the_term_it_has(
    held_s: float | None, wanted_s: float | None, blob: SimBlob, node: Node, autojump_clock: MockClock
) -> None:
    async with attached(node("1"), lease_s=held_s) as stack:
        state = held(stack)
    two = node("2")
    async with attached(two, resume=state, lease_s=wanted_s, seed=2) as stack:
        assert stack.lease_s == held_s
        for _ in range(20):
            await trio.sleep(5)
            assert blob.lease_state == "leased"
        two.down = True
        await trio.sleep(16)
        believes = stack.state == "attached"
        assert believes == (blob.lease_state == "leased") == (held_s != 15.0)


@pytest.mark.parametrize("seed", range(2, 8))
async def test_a_raise_of_a_dead_worker_that_comes_late_does_not_fence_the_next(
    seed: int, node: Node, autojump_clock: MockClock
) -> None:
    async with attached(node("1"), seed=1) as stack:
        state = held(stack)
    with trio.move_on_after(1):
        async with attached(node("w2", **{"raise": [Fate(before_s=5.0)]}), resume=state, seed=seed):
            raise AssertionError("attached")
    async with attached(node("w3"), resume=state, seed=3) as stack:
        await stack.store.write(0, DATA)
        await trio.sleep(10)
        await stack.store.write(0, DATA)
        assert stack.state == "attached"


async def test_a_raise_of_a_dead_worker_that_comes_between_look_and_raise_of_the_next(
    blob: SimBlob, node: Node, autojump_clock: MockClock
) -> None:
    """It is of the same generation, and of the same attachment: no reason to stop."""
    async with attached(node("1"), seed=1) as stack:
        state = held(stack)
    with trio.move_on_after(1):
        async with attached(node("w2", **{"raise": [Fate(before_s=5.0)]}), resume=state, seed=2):
            raise AssertionError("attached")
    async with attached(node("w3", **{"raise": [Fate(before_s=6.0)]}), resume=state, seed=3) as stack:
        assert stack.epoch == blob.number
        await stack.store.write(0, DATA)


async def test_a_new_worker_gets_through_a_storm_of_stragglers(
    blob: SimBlob, node: Node, autojump_clock: MockClock
) -> None:
    async with attached(node("1"), seed=1) as stack:
        state = held(stack)
    left = 40
    two = node("w2")

    def straggle(name: str) -> Fate:
        nonlocal left
        if left and name == "raise":
            left -= 1
            blob.put("w1", 4096, DATA, 512, state.lease_id, state.epoch)
        return Fate()

    two.fate = straggle
    async with attached(two, resume=state, seed=2) as stack:
        await stack.store.write(0, DATA)
        assert left == 0


async def test_a_late_release_of_an_earlier_attachment_under_the_same_lease_id(
    node: Node, autojump_clock: MockClock
) -> None:
    async with attached(node("1", release=[Fate(before_s=20.0, lost_s=1.0)]), lease_id=LEASE) as stack:
        await stack.release()
    async with attached(node("2"), lease_id=LEASE, seed=2) as stack:
        await stack.store.write(0, DATA)
        await trio.sleep(40)
        assert stack.state == "attached"


async def test_a_new_worker_whose_lease_is_always_over_before_its_raise_does_not_hammer_the_service(
    blob: SimBlob, node: Node, autojump_clock: MockClock
) -> None:
    async with attached(node("1"), seed=1) as stack:
        state = held(stack)
    two = node("w2", **{"raise": [Fate(error=refuse(412, "LeaseLost"))] * 100})
    async with attached(two, resume=state, seed=2) as stack:
        assert trio.current_time() > 30
        await stack.store.write(0, DATA)


async def test_a_lease_that_is_taken_or_taken_up_counts_from_before_the_request(
    node: Node, autojump_clock: MockClock
) -> None:
    slow = Fate(before_s=3.0, after_s=4.0)
    started = trio.current_time()
    async with attached(node("1", acquire=[slow])) as stack:
        state = held(stack)
        assert stack._held is not None
        assert stack._held.guard.valid_until == pytest.approx(started + 60, abs=0.1)
    started = trio.current_time()
    async with attached(node("w2", renew=[slow]), resume=state, seed=2) as stack:
        assert stack._held is not None
        assert stack._held.guard.valid_until == pytest.approx(started + 60, abs=0.1)


async def test_a_new_worker_looks_again_whose_the_number_is(
    blob: SimBlob, node: Node, autojump_clock: MockClock
) -> None:
    """It changed between look and raise, and another set it, in our own generation."""
    async with attached(node("1"), seed=1) as stack:
        state = held(stack)
    two = node("w2")

    def raise_first(name: str) -> Fate:
        if name == "raise":
            blob.raise_number(state.epoch + (1 << 20), state.lease_id)
        return Fate()

    two.fate = raise_first
    error = await refused(two, StoreError, resume=state, seed=2)
    assert isinstance(error, StoreError)
    assert error.kind is Kind.FENCED
    assert two.sent.count("raise") == 1


async def test_a_disk_that_was_taken_is_lost_to_the_caches_too(
    node: Node, memory: int, autojump_clock: MockClock
) -> None:
    one = node("1")
    async with (
        attached(one, cache="readwrite", ring=Ring(memory, MIN_CAPACITY)) as old,
        attached(node("2"), break_lease=True, seed=2),
    ):
        await trio.sleep(61)
        assert old.state == "fenced"
        with pytest.raises(StoreError) as caught:
            await old.store.write(0, OLD)
        assert caught.value.kind is Kind.FENCED
        sent = len(one.sent)
        await old.release()
        assert len(one.sent) == sent, "nothing of it is ours to release"
