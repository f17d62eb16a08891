"""Fence and the lease: it is kept or given up in time, and a disk that somebody else has is left alone."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from blobfuse_dysk.errors import Kind, StoreError
from blobfuse_dysk.store.layers.fence import Fence
from blobfuse_dysk.store.lease.requests import BlobLease
from blobfuse_dysk.testing import Fate, Fault
from tests.suspension import Suspend
from tests.unit.fenced import DATA, OURS, THEIRS, Setting, fails, opened

GOOD = Fate()


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
        assert it.guard.expires_in_s == 0
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
            with pytest.raises(StoreError) as caught:
                await it.fence.flush()
            assert caught.value.kind is Kind.UNREACHABLE, "nobody knows whose the disk is now"
            it.client.down = False
        assert done.is_set()
        assert it.states == ["paused", "attached"]


async def test_the_lease_runs_on_while_the_machine_is_suspended(suspend: Suspend, autojump_clock: MockClock) -> None:
    """Nobody took the disk meanwhile: the first write has the lease renewed, and nothing goes out before that."""
    async with opened() as it:
        await it.fence.write(0, DATA)
        suspend(61.0)
        assert it.guard.expires_in_s == 0
        with pytest.raises(StoreError, match="ran out") as caught:
            it.guard.permit()
        assert caught.value.kind is Kind.LEASE
        before = trio.current_time()
        await it.fence.write(0, DATA)
        assert it.client.sent == ["renew", "properties", "raise"]
        assert trio.current_time() - before < 1.0
        assert it.guard.expires_in_s == pytest.approx(60, abs=0.1)
        await trio.sleep(61)
        assert it.client.sent.count("renew") == 4
        assert it.fence.state == "attached"


async def test_a_disk_that_was_taken_while_the_machine_was_suspended(
    suspend: Suspend, autojump_clock: MockClock
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
        assert it.guard.expires_in_s is None
        await trio.sleep(1000)
        it.client.down = True
        await trio.sleep(1000)
        await it.fence.write(0, DATA)  # no term, so no pause
        it.client.down = False
        it.blob.break_now()
        await trio.sleep(80)
        assert it.states == ["fenced"]


async def test_a_doubt_that_arises_during_a_renewal_is_not_ended_by_it(autojump_clock: MockClock) -> None:
    async with opened(Fault(Kind.LEASE), Fault(Kind.LEASE)) as it:
        await fails(it.fence, Kind.LEASE)
        await trio.sleep(0.0015)  # the service has done the renewal, its answer is on its way
        it.fence._judge(StoreError("refused", Kind.LEASE))
        await trio.sleep(0.004)
        assert it.fence.state == "paused"
        await trio.sleep(1)
        assert str(it.fence.state) == "attached"


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


async def test_a_renewal_that_is_under_way_at_the_release_opens_nothing(autojump_clock: MockClock) -> None:
    async with opened() as it:
        it.client.fate = lambda name: Fate(before_s=1.0, after_s=1.0)
        await trio.sleep(20.5)
        it.fence.release()
        await trio.sleep(5)
        assert it.client.sent == ["renew"]
        assert not it.guard.certain
        await fails(it.fence, Kind.REJECTED)


async def test_fencing_closes_the_gate_before_the_term_of_the_lease_ends(autojump_clock: MockClock) -> None:
    async with opened() as it:
        it.blob.break_now()
        await trio.sleep(21)
        assert it.states == ["fenced"]
        assert not it.guard.certain
        await fails(it.fence, Kind.FENCED)
        assert it.data.calls == []
