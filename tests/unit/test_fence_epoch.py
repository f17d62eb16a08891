"""Fence and the epoch: a write that may still land is fenced off before anything overlaps it."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from blobfuse_dysk.errors import Kind, StoreError
from blobfuse_dysk.testing import Fate, Fault, MemoryStore
from tests.unit.fenced import DATA, OURS, fails, opened

GOOD = Fate()


@pytest.mark.parametrize("when", ["lost", "dropped", "late"])
async def test_an_unknown_outcome_raises_the_epoch_before_the_next_write(when: str, autojump_clock: MockClock) -> None:
    async with opened(Fault(Kind.UNREACHABLE, when)) as it:  # type: ignore[arg-type]
        await fails(it.fence, Kind.UNREACHABLE)
        assert it.guard.epoch == 1
        await it.fence.zero(4096, 512)
        assert it.guard.epoch == it.blob.number == 2
        assert it.client.sent == ["raise"]


async def test_a_provable_refusal_raises_nothing(autojump_clock: MockClock) -> None:
    async with opened(Fault(Kind.THROTTLED), Fault(Kind.UNREACHABLE)) as it:
        await fails(it.fence, Kind.THROTTLED)
        await fails(it.fence, Kind.UNREACHABLE)
        await it.fence.write(0, DATA)
        assert it.guard.epoch == 1


@pytest.mark.parametrize("call", ["write", "zero"])
async def test_a_cancelled_call_raises_the_epoch(call: str, autojump_clock: MockClock) -> None:
    async with opened(Fault(kind=None, delay_s=10)) as it:
        with trio.move_on_after(1):
            await (it.fence.write(0, DATA) if call == "write" else it.fence.zero(0, 512))
        await it.fence.write(0, DATA)
        assert it.guard.epoch == 2


async def test_a_write_cancelled_before_it_passed_raises_nothing(autojump_clock: MockClock) -> None:
    async with opened() as it:
        it.client.down = True
        await trio.sleep(61)
        with trio.move_on_after(1) as scope:
            await it.fence.write(0, DATA)
        assert scope.cancelled_caught
        assert not it.fence._raise_due


async def test_an_unforeseen_exception_raises_the_epoch(autojump_clock: MockClock) -> None:
    class Broken(MemoryStore):
        async def write(self, offset: int, data: object) -> None:
            raise ZeroDivisionError

    async with opened() as it:
        it.fence._inner = Broken(1 << 20)
        with pytest.raises(ZeroDivisionError):
            await it.fence.write(0, DATA)
        it.fence._inner = it.data
        await it.fence.write(0, DATA)
        assert it.guard.epoch == 2


async def test_one_raise_serves_all_that_are_ambiguous(autojump_clock: MockClock) -> None:
    lost = [Fault(Kind.UNREACHABLE, "lost", delay_s=1)] * 64
    async with opened(*lost) as it:
        async with trio.open_nursery() as nursery:
            for index in range(64):
                nursery.start_soon(fails, it.fence, Kind.UNREACHABLE, index * 512)
        await it.fence.write(0, DATA)
        assert it.guard.epoch == 2
        assert it.client.sent.count("raise") == 1


async def test_what_was_sent_in_an_older_epoch_needs_no_raise(autojump_clock: MockClock) -> None:
    async with opened(Fault(Kind.UNREACHABLE, "lost")) as it:
        await fails(it.fence, Kind.UNREACHABLE)
        await it.fence.write(0, DATA)
        it.fence._judge(StoreError("late news", Kind.UNREACHABLE, unknown=True, epoch=1))
        await it.fence.write(0, DATA)
        assert it.guard.epoch == 2
        it.fence._judge(StoreError("news", Kind.UNREACHABLE, unknown=True, epoch=2))
        await it.fence.write(0, DATA)
        assert it.guard.epoch == 3


async def test_a_raise_whose_answer_is_lost_is_asked_for_again_with_the_same_number(autojump_clock: MockClock) -> None:
    fates = iter([Fate(lost_s=0.0015), Fate(unsent=True)])
    async with opened(Fault(Kind.UNREACHABLE, "late")) as it:
        it.client.fate = lambda name: next(fates, GOOD) if name == "raise" else GOOD
        await fails(it.fence, Kind.UNREACHABLE)
        await trio.sleep(0.01)
        assert it.blob.number == 2
        assert it.guard.epoch == 1, "not acknowledged yet"
        await it.fence.write(0, DATA)
        assert it.client.sent == ["raise"] * 3
        assert it.blob.number == it.guard.epoch == 2
        assert it.states == ["recovering", "attached"]


async def test_being_overtaken_by_our_own_raise_is_no_doubt(autojump_clock: MockClock) -> None:
    async with opened(Fault(Kind.UNREACHABLE, "late")) as it:
        await fails(it.fence, Kind.UNREACHABLE)
        await it.fence.write(0, DATA)
        it.fence._judge(StoreError("overtaken", Kind.EPOCH, epoch=1))
        assert it.fence.state == "attached"
        assert "renew" not in it.client.sent


async def test_an_epoch_raised_by_another_under_our_lease_id_fences(autojump_clock: MockClock) -> None:
    async with opened() as it:
        it.blob.raise_number(5, OURS)
        it.fence._judge(StoreError("refused", Kind.EPOCH, epoch=1))
        await fails(it.fence, Kind.FENCED)


async def test_a_raise_that_finds_a_greater_number_fences(autojump_clock: MockClock) -> None:
    async with opened(Fault(Kind.UNREACHABLE, "late")) as it:
        it.blob.raise_number(5, OURS)
        await fails(it.fence, Kind.UNREACHABLE)
        await fails(it.fence, Kind.FENCED)


async def test_a_number_raised_during_a_lapse_fences(autojump_clock: MockClock) -> None:
    """An emulator may renew an expired lease whatever happened meanwhile: the number tells."""
    async with opened() as it:
        it.client.down = True
        await trio.sleep(100)
        it.blob.number = 2
        it.client.down = False
        await trio.sleep(30)
        assert it.fence.state == "fenced"


async def test_no_raise_while_the_lease_is_not_held(autojump_clock: MockClock) -> None:
    async with opened(Fault(Kind.UNREACHABLE, "late")) as it:
        it.client.down = True
        await trio.sleep(61)
        it.client.sent.clear()
        it.fence._judge(StoreError("lost", Kind.UNREACHABLE, unknown=True, epoch=1))
        await trio.sleep(100)
        assert "raise" not in it.client.sent
        it.client.down = False
        await fails(it.fence, Kind.UNREACHABLE)
        assert it.guard.epoch == 2
