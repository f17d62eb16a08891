"""Fence: the lease is kept or given up in time, ambiguous writes are fenced off, somebody else's disk is left alone."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from blobfuse_dysk.errors import Kind, StoreError
from blobfuse_dysk.store import guard
from blobfuse_dysk.store.base import Store
from blobfuse_dysk.store.bloblease import BlobLease
from blobfuse_dysk.store.fence import Fence
from blobfuse_dysk.store.guard import Guard
from blobfuse_dysk.testing import Fate, Fault, FaultyStore, MemoryStore, RecordingStore, SimBlob, SimClient, in_turn

OURS, THEIRS = "1" * 8 + "-1111-1111-1111-" + "1" * 12, "2" * 8 + "-2222-2222-2222-" + "2" * 12
DATA = b"x" * 512
GOOD = Fate()


class Setting:
    """A Fence over a store in memory, with a simulated blob for lease and epoch."""

    def __init__(self, nursery: trio.Nursery, faults: list[Fault | None], lease_s: float | None) -> None:
        self.blob = SimBlob(1 << 20)
        self.client = SimClient(self.blob, nursery, name="a")
        self.blob.acquire(-1 if lease_s is None else int(lease_s), OURS)
        until = float("inf") if lease_s is None else trio.current_time() + lease_s
        self.guard = Guard(OURS, self.blob.raise_number(1, OURS), until)
        self.data = RecordingStore(FaultyStore(MemoryStore(1 << 20), in_turn(faults)))
        self.states: list[str] = []
        self.fence = Fence(
            self.data,
            BlobLease(self.client),
            self.guard,
            lease_s=lease_s,
            on_state=self.states.append,
            random=Random(0),
        )


@asynccontextmanager
async def opened(*faults: Fault | None, lease_s: float | None = 60.0) -> AsyncIterator[Setting]:
    async with trio.open_nursery() as nursery:
        setting = Setting(nursery, list(faults), lease_s)
        nursery.start_soon(setting.fence.run)
        await wait_all_tasks_blocked()
        yield setting
        nursery.cancel_scope.cancel()


async def fails(store: Store, kind: Kind, offset: int = 0) -> StoreError:
    with pytest.raises(StoreError) as caught:
        await store.write(offset, DATA)
    assert caught.value.kind is kind, caught.value
    return caught.value


async def test_renews_three_times_a_term(autojump_clock: MockClock) -> None:
    async with opened() as it:
        await trio.sleep(610)
        assert it.client.sent.count("renew") == 30
        assert it.blob.lease_state == "leased"
        assert it.states == []


async def test_validity_counts_from_before_the_request(autojump_clock: MockClock) -> None:
    async with opened() as it:
        it.client.fate = lambda name: Fate(before_s=3.0, after_s=4.0)
        await trio.sleep(20 + 7.5)
        assert it.client.sent == ["renew"]
        assert it.guard.valid_until == pytest.approx(trio.current_time() - 7.5 + 60, abs=0.01)


async def test_pauses_when_the_lease_runs_out_and_goes_on_when_it_is_renewed(autojump_clock: MockClock) -> None:
    async with opened() as it:
        it.client.down = True
        await trio.sleep(61)
        assert it.states == ["paused"]
        assert it.fence.expires_in_s == 0
        done = trio.Event()

        async def write() -> None:
            await it.fence.write(0, DATA)
            done.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            await trio.sleep(300)
            assert not done.is_set()
            assert it.data.calls == []
            assert bytes(await it.fence.read(0, 512)) == bytes(512)
            await it.fence.flush()
            it.client.down = False
        assert done.is_set()
        assert it.states == ["paused", "attached"]


@pytest.fixture
def suspend(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Let so many seconds pass in which the machine sleeps: CLOCK_MONOTONIC, which is trio's, stands still."""
    real = time.clock_gettime
    asleep = [0.0]
    monkeypatch.setattr(time, "clock_gettime", lambda c: real(c) + (asleep[0] if c == time.CLOCK_BOOTTIME else 0.0))
    monkeypatch.setattr(guard, "_sleep", guard._Sleep())

    def suspend(seconds: float) -> None:
        asleep[0] += seconds

    return suspend


async def test_the_lease_runs_on_while_the_machine_is_suspended(
    suspend: Callable[[float], None], autojump_clock: MockClock
) -> None:
    """Nobody took the disk meanwhile: the first write has the lease renewed, and nothing goes out before that."""
    async with opened() as it:
        await it.fence.write(0, DATA)
        suspend(61.0)
        assert it.fence.expires_in_s == 0
        with pytest.raises(StoreError, match="ran out") as caught:
            it.guard.permit()
        assert caught.value.kind is Kind.LEASE
        before = trio.current_time()
        await it.fence.write(0, DATA)
        assert it.client.sent == ["renew", "properties"]
        assert trio.current_time() - before < 1.0
        assert it.fence.expires_in_s == pytest.approx(60, abs=0.1)
        await trio.sleep(61)
        assert it.client.sent.count("renew") == 4
        assert it.fence.state == "attached"


async def test_a_disk_that_was_taken_while_the_machine_was_suspended(
    suspend: Callable[[float], None], autojump_clock: MockClock
) -> None:
    async with opened() as it:
        suspend(61.0)
        it.blob.break_now()
        it.blob.acquire(60, THEIRS)
        await fails(it.fence, Kind.FENCED)
        assert it.data.calls == [], "the service would refuse it, but it is not even sent"


async def test_a_lease_that_took_long_to_take_is_renewed_in_time(autojump_clock: MockClock) -> None:
    """Its age counts, not the time since the block layer was opened."""
    async with trio.open_nursery() as nursery:
        setting = Setting(nursery, [], 60.0)
        await trio.sleep(50)
        setting.fence = Fence(setting.data, BlobLease(setting.client), setting.guard, lease_s=60.0)
        nursery.start_soon(setting.fence.run)
        await trio.sleep(1)
        assert setting.client.sent == ["renew"]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("event", ["broken", "released", "taken", "taken after expiry", "changed after expiry"])
async def test_somebody_else_means_fenced_for_good(event: str, autojump_clock: MockClock) -> None:
    async with opened() as it:
        if event.endswith("after expiry"):
            it.client.down = True
            await trio.sleep(100)
        if event == "broken":
            it.blob.break_now()
        elif event == "released":
            it.blob.release(OURS)
        elif event == "changed after expiry":
            it.blob.put("other", 0, DATA, 512, None, None)
        else:
            if event == "taken":
                it.blob.break_now()
            it.blob.acquire(60, THEIRS)
            it.blob.release(THEIRS)
        it.client.down = False
        await trio.sleep(60)
        assert it.states[-1] == "fenced"
        await fails(it.fence, Kind.FENCED)
        for call in (it.fence.read(0, 512), it.fence.extents(0, 512), it.fence.flush(), it.fence.zero(0, 512)):
            with pytest.raises(StoreError) as caught:
                await call
            assert caught.value.kind is Kind.FENCED
        await trio.sleep(1000)
        assert it.states[-1] == "fenced"
        assert it.data.calls == []


async def test_fencing_wakes_those_who_wait(autojump_clock: MockClock) -> None:
    async with opened() as it:
        it.client.down = True
        await trio.sleep(61)
        async with trio.open_nursery() as nursery:
            for offset in range(0, 8192, 512):
                nursery.start_soon(fails, it.fence, Kind.FENCED, offset)
            await trio.sleep(30)
            it.blob.acquire(60, THEIRS)
            it.client.down = False


async def test_a_refused_lease_id_is_looked_into_at_once(autojump_clock: MockClock) -> None:
    async with opened(Fault(Kind.LEASE)) as it:
        it.blob.break_now()
        started = trio.current_time()
        await fails(it.fence, Kind.LEASE)
        assert it.fence.state == "paused"
        await fails(it.fence, Kind.FENCED)
        assert trio.current_time() - started < 1


async def test_a_refused_lease_id_that_is_ours_after_all_is_forgotten(autojump_clock: MockClock) -> None:
    async with opened(Fault(Kind.LEASE)) as it:
        await fails(it.fence, Kind.LEASE)
        await it.fence.write(0, DATA)
        assert it.states == ["paused", "attached"]


async def test_an_infinite_lease_that_is_broken_is_noticed(autojump_clock: MockClock) -> None:
    async with opened(lease_s=None) as it:
        assert it.fence.expires_in_s is None
        await trio.sleep(1000)
        it.client.down = True
        await trio.sleep(1000)
        await it.fence.write(0, DATA)  # no term, so no pause
        it.client.down = False
        it.blob.break_now()
        await trio.sleep(80)
        assert it.states == ["fenced"]


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


async def test_a_cancelled_write_raises_the_epoch(autojump_clock: MockClock) -> None:
    async with opened(Fault(kind=None, delay_s=10)) as it:
        with trio.move_on_after(1):
            await it.fence.write(0, DATA)
        await it.fence.write(0, DATA)
        assert it.guard.epoch == 2


async def test_a_write_cancelled_before_it_passed_raises_nothing(autojump_clock: MockClock) -> None:
    async with opened(Fault(Kind.LEASE)) as it:
        it.client.down = True
        await fails(it.fence, Kind.LEASE)
        with trio.move_on_after(1):
            await it.fence.write(0, DATA)
        it.client.down = False
        await it.fence.write(0, DATA)
        assert it.guard.epoch == 1


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


async def test_a_doubt_that_arises_during_a_renewal_is_not_ended_by_it(autojump_clock: MockClock) -> None:
    async with opened(Fault(Kind.LEASE), Fault(Kind.LEASE)) as it:
        await fails(it.fence, Kind.LEASE)
        await trio.sleep(0.0015)  # the service has done the renewal, its answer is on its way
        it.fence._judge(StoreError("refused", Kind.LEASE))
        await trio.sleep(0.004)
        assert it.fence.state == "paused"
        await trio.sleep(1)
        assert it.fence.state == "attached"


async def test_a_blob_that_is_gone_is_an_error_not_a_wait(autojump_clock: MockClock) -> None:
    async with opened(Fault(Kind.LEASE)) as it:
        it.blob.gone = True
        await fails(it.fence, Kind.LEASE)
        await fails(it.fence, Kind.GONE)


async def test_a_blob_that_comes_back_is_ours_again(autojump_clock: MockClock) -> None:
    async with opened(Fault(Kind.LEASE)) as it:
        it.blob.gone = True
        await fails(it.fence, Kind.LEASE)
        await fails(it.fence, Kind.GONE)
        it.blob.gone = False
        await trio.sleep(5)
        await it.fence.write(0, DATA)
        it.client.down = True
        await trio.sleep(61)
        with trio.move_on_after(1) as waiting:
            await it.fence.write(0, DATA)
        assert waiting.cancelled_caught, "the error of then says nothing about now"


async def test_after_release_nothing_passes_and_nothing_is_renewed(autojump_clock: MockClock) -> None:
    async with opened() as it:
        it.fence.release()
        await fails(it.fence, Kind.REJECTED)
        await trio.sleep(1000)
        assert it.client.sent == []
        assert it.states == ["released"]
