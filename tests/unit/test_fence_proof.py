"""Fence: looks that cross a raise, what is due after a lapse, and flushes that rest on a proof of the lease."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from blobfuse_dysk.azure.wire import Condition
from blobfuse_dysk.errors import Kind, ServiceError, StoreError
from blobfuse_dysk.testing import Fate, Fault
from blobfuse_dysk.testing.fates import refuse
from tests.suspension import Suspend
from tests.unit.fenced import DATA, OURS, THEIRS, Setting, fails, opened

LOST = Fault(Kind.UNREACHABLE, "lost")


def by_operation(it: Setting, **fates: Fate) -> None:
    """What becomes of the first request of each operation."""
    it.client.fate = lambda name: fates.pop(name, Fate())


async def flush_fails(it: Setting, kind: Kind) -> None:
    with pytest.raises(StoreError) as caught:
        await it.fence.flush()
    assert caught.value.kind is kind


async def test_a_raise_that_is_acknowledged_while_the_answer_to_a_look_is_on_its_way(
    autojump_clock: MockClock,
) -> None:
    """The service answered the look before it carried the raise out: the number is the one from before."""
    async with opened(LOST) as it:
        by_operation(it, **{"raise": Fate(before_s=3.0), "properties": Fate(after_s=5.0)})
        await fails(it.fence, Kind.UNREACHABLE)
        await trio.sleep(0.5)
        it.fence._doubt(StoreError("refused", Kind.LEASE))
        await trio.sleep(20)
        assert it.fence.state == "attached"
        await it.fence.write(0, DATA)


async def test_the_same_after_the_machine_was_suspended_while_a_raise_was_under_way(
    suspend: Suspend, autojump_clock: MockClock
) -> None:
    async with opened(LOST) as it:
        by_operation(it, **{"raise": Fate(before_s=0.2), "properties": Fate(after_s=0.4)})
        await fails(it.fence, Kind.UNREACHABLE)
        await trio.sleep(0.05)
        suspend(61)
        await it.fence.write(0, DATA)
        assert it.fence.state == "attached"


async def test_a_look_still_fences_if_the_number_is_below_what_it_was_before(autojump_clock: MockClock) -> None:
    async with opened(lease_s=60.0) as it:
        it.client.down = True
        await trio.sleep(61)
        it.blob.number = 0
        it.client.down = False
        await fails(it.fence, Kind.FENCED)


async def test_after_a_lapse_the_blob_is_changed_before_anything_else(autojump_clock: MockClock) -> None:
    """So what others sent meanwhile, on condition of the ETag, can never be carried out."""
    async with opened() as it:
        etag = it.blob.etag
        it.client.down = True
        await trio.sleep(61)
        it.client.down = False
        await it.fence.write(0, DATA)
        assert it.client.sent[-3:] == ["renew", "properties", "raise"]
        assert it.blob.etag != etag
        with pytest.raises(ServiceError, match="ConditionNotMet"):
            it.blob.break_now(Condition(if_match=etag))


async def test_a_raise_that_was_sent_before_a_lapse_ended_is_not_enough(autojump_clock: MockClock) -> None:
    async with opened(LOST) as it:
        by_operation(it, **{"raise": Fate(after_s=9.0)})
        await fails(it.fence, Kind.UNREACHABLE)
        await trio.sleep(0.5)  # carried out, not acknowledged
        etag = it.blob.etag
        it.fence._doubt(StoreError("refused", Kind.LEASE))
        await it.fence.write(0, DATA)
        assert it.blob.etag != etag
        assert it.client.sent.count("raise") == 2
        assert it.guard.epoch == it.blob.number == 3


async def test_a_flush_right_after_a_write_asks_for_nothing(autojump_clock: MockClock) -> None:
    async with opened() as it:
        await trio.sleep(10)
        for _ in range(10):
            await it.fence.write(0, DATA)
            await trio.sleep(4)
            await it.fence.flush()
            await it.fence.zero(0, 512)
            await trio.sleep(4)
            await it.fence.flush()
        assert it.client.sent == ["renew"] * 4, "three times a term, as ever"


async def test_a_flush_with_nothing_written_for_a_while_has_the_lease_renewed_first(autojump_clock: MockClock) -> None:
    async with opened() as it:
        await it.fence.write(0, DATA)
        await trio.sleep(6)
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(it.fence.flush)
        assert it.client.sent == ["renew", "properties"]
        await it.fence.flush()
        assert it.client.sent == ["renew", "properties"], "that proved it"


@pytest.mark.parametrize("lease_s", [60.0, None])
async def test_a_flush_after_the_lease_was_broken_does_not_succeed(
    lease_s: float | None, autojump_clock: MockClock
) -> None:
    async with opened(lease_s=lease_s) as it:
        await it.fence.write(0, DATA)
        it.blob.break_now()
        it.blob.acquire(60, THEIRS)
        await trio.sleep(5.1)
        await flush_fails(it, Kind.FENCED)


@pytest.mark.parametrize("call", ["write", "zero"])
async def test_how_long_a_call_took_is_no_proof_of_what_came_after_it_was_sent(
    call: str, autojump_clock: MockClock
) -> None:
    async with opened(Fault(kind=None, delay_s=6)) as it:
        await (it.fence.write(0, DATA) if call == "write" else it.fence.zero(0, 512))
        await it.fence.flush()
        assert it.client.sent == ["renew", "properties"]


async def test_nor_is_how_long_a_renewal_took(autojump_clock: MockClock) -> None:
    async with opened() as it:
        by_operation(it, renew=Fate(after_s=6.0))
        await trio.sleep(6)
        await it.fence.flush()
        await it.fence.flush()
        assert it.client.sent == ["renew", "properties"] * 2


async def test_a_write_that_failed_is_no_proof(autojump_clock: MockClock) -> None:
    async with opened(Fault(Kind.THROTTLED), Fault(Kind.THROTTLED)) as it:
        await trio.sleep(6)
        await fails(it.fence, Kind.THROTTLED)
        with pytest.raises(StoreError):
            await it.fence.zero(0, 512)
        await it.fence.flush()
        assert it.client.sent == ["renew", "properties"]


async def test_a_flush_while_the_service_is_away_fails_for_now(autojump_clock: MockClock) -> None:
    async with opened() as it:
        await trio.sleep(6)
        it.client.down = True
        await flush_fails(it, Kind.UNREACHABLE)
        await flush_fails(it, Kind.UNREACHABLE)
        it.client.down = False
        await it.fence.flush()


async def test_a_flush_after_the_machine_was_suspended_has_the_lease_renewed(
    suspend: Suspend, autojump_clock: MockClock
) -> None:
    async with opened() as it:
        await it.fence.write(0, DATA)
        suspend(10)
        await it.fence.flush()
        assert it.client.sent == ["renew", "properties"]


async def test_a_flush_of_a_released_disk_passes(autojump_clock: MockClock) -> None:
    async with opened() as it:
        await trio.sleep(6)
        it.fence.release()
        await it.fence.flush()
        assert it.client.sent == []


async def test_a_lease_that_ran_out_while_its_renewal_was_under_way_lapsed_as_well(
    autojump_clock: MockClock,
) -> None:
    """The service may have carried the renewal out after the end of the lease, and others were free to try then."""
    async with opened() as it:
        it.client.down = True
        await trio.sleep(56)
        etag = it.blob.etag
        it.client.down = False
        it.client.fate = lambda name: Fate(before_s=4.5 if name == "renew" else 0.001)
        await trio.sleep(12)
        assert it.states == ["paused", "attached"]
        await it.fence.write(0, DATA)
        assert it.blob.etag != etag
        assert it.client.sent.count("raise") == 1


async def test_a_write_that_took_long_does_not_make_a_later_proof_older(autojump_clock: MockClock) -> None:
    for call in ("write", "zero"):
        async with opened(Fault(kind=None, delay_s=7)) as it, trio.open_nursery() as nursery:

            async def slow(it: Setting = it, call: str = call) -> None:
                await (it.fence.write(0, DATA) if call == "write" else it.fence.zero(0, 512))

            nursery.start_soon(slow)
            await trio.sleep(6)
            await it.fence.write(4096, DATA)
            await trio.sleep(2)
            await it.fence.flush()
            assert it.client.sent == []


async def test_a_write_that_was_sent_before_a_suspension_proves_nothing_after_it(
    suspend: Suspend, autojump_clock: MockClock
) -> None:
    async with opened(Fault(kind=None, delay_s=1)) as it:
        by_operation(it, renew=Fate(before_s=3.0))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(it.fence.write, 0, DATA)
            await trio.sleep(0.5)
            suspend(10)
            nursery.start_soon(it.fence.flush)
            await trio.sleep(1)
            started = trio.current_time()
            await it.fence.flush()
            assert trio.current_time() - started > 1


async def test_a_flush_of_a_disk_that_another_has_under_the_same_lease_id_does_not_succeed(
    autojump_clock: MockClock,
) -> None:
    """Its renewals do. What was answered above, zeros over free pages, would be lost."""
    async with opened() as it:
        it.blob.raise_number(1 << 40, OURS)
        await trio.sleep(6)
        await flush_fails(it, Kind.FENCED)


async def test_a_renewal_by_itself_is_no_proof_of_the_epoch(autojump_clock: MockClock) -> None:
    async with opened() as it:
        it.blob.raise_number(1 << 40, OURS)
        await trio.sleep(21)
        assert it.client.sent == ["renew"], "another has the disk under the same lease id"
        await flush_fails(it, Kind.FENCED)


async def test_a_flush_that_comes_while_a_renewal_is_under_way_waits_for_the_next_one(
    autojump_clock: MockClock,
) -> None:
    async with opened() as it:
        by_operation(it, renew=Fate(after_s=2.0))
        await trio.sleep(21)
        await it.fence.flush()
        assert it.client.sent == ["renew", "renew", "properties"]
        assert trio.current_time() == pytest.approx(it.guard.proved_at, abs=0.1)


async def test_a_raise_that_is_refused_for_want_of_a_lease_has_the_lease_renewed_at_once(
    autojump_clock: MockClock,
) -> None:
    async with opened(LOST) as it:
        by_operation(it, **{"raise": Fate(error=refuse(412, "LeaseLost"))})
        await fails(it.fence, Kind.UNREACHABLE)
        await it.fence.write(0, DATA)
        assert it.client.sent[:3] == ["raise", "renew", "properties"]


async def test_an_error_of_long_ago_holds_nothing_back_after_a_suspension(
    suspend: Suspend, autojump_clock: MockClock
) -> None:
    async with opened(Fault(Kind.LEASE)) as it:
        it.blob.gone = True
        await fails(it.fence, Kind.LEASE)
        await fails(it.fence, Kind.GONE)
        it.blob.gone = False
        await trio.sleep(5)
        for _ in range(2):
            await it.fence.write(0, DATA)
            suspend(61)
            assert not it.guard.certain
        await it.fence.write(0, DATA)
