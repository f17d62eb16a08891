"""Attaches that fail, are slow, or leave requests under way: what they take from others, and leave behind."""

from __future__ import annotations

import itertools
import math

import pytest
import trio
from trio.testing import MockClock

from blobfuse_dysk.errors import DyskError, Kind, LeasedError, StoreError
from blobfuse_dysk.testing import Fate, SimBlob, SimClient
from blobfuse_dysk.testing.fates import refuse
from tests.simulation.stacks import DATA, LEASE, Node, attached, refused

OLD, NEW = b"o" * 512, b"n" * 512
LATE = Fate(before_s=30.0, lost_s=1.0)  # arrives half a minute after its sender stopped waiting


async def test_an_attach_that_was_refused_takes_nothing_from_the_holder_later(
    node: Node, autojump_clock: MockClock
) -> None:
    one, two = node("1"), node("2", acquire=[Fate(before_s=75.0, lost_s=1.0)])
    async with attached(one) as stack:
        await refused(two, LeasedError, seed=2)
        one.down = True
        await trio.sleep(80)
        one.down = False
        await trio.sleep(70)
        assert stack.state == "attached"
        await stack.store.write(0, DATA)


async def test_what_was_sent_during_one_lapse_takes_nothing_from_the_holder_during_the_next(
    blob: SimBlob, node: Node, autojump_clock: MockClock
) -> None:
    """A holder that comes back changes the blob, so an acquire that was sent while it was out is void."""
    one, two = node("1"), node("2", acquire=[Fate(before_s=100.0, lost_s=1.0)] * 20)
    async with attached(one) as stack:
        one.down = True
        await trio.sleep(61)
        await refused(two, DyskError, seed=2)
        one.down = False
        await trio.sleep(20)
        assert stack.state == "attached"
        one.down = True
        await trio.sleep(100)
        assert blob.lease_state == "expired"
        one.down = False
        await trio.sleep(30)
        assert stack.state == "attached"


@pytest.mark.parametrize("fails_at", ["raise", "look"])
async def test_an_attach_that_fails_elsewhere_under_the_same_lease_id_leaves_the_holder_its_lease(
    fails_at: str, node: Node, autojump_clock: MockClock
) -> None:
    denied = Fate(error=refuse(403, "AuthorizationFailure"))
    changed = Fate(error=refuse(412, "ConditionNotMet"))
    fates = {"raise": [denied]} if fails_at == "raise" else {"raise": [changed], "properties": [Fate(), denied]}
    async with attached(node("1"), lease_id=LEASE) as stack:
        await stack.store.write(0, DATA)
        await refused(node("2", **fates), DyskError, lease_id=LEASE, seed=2)
        await trio.sleep(30)
        assert stack.state == "attached"
        await stack.store.write(0, DATA)


async def test_an_attach_that_fails_gives_its_lease_back_under_an_id_of_the_users_too(
    blob: SimBlob, node: Node, autojump_clock: MockClock
) -> None:
    await refused(node("1", **{"raise": [Fate(error=refuse(403, "AuthorizationFailure"))]}), DyskError, lease_id=LEASE)
    assert blob.lease_state == "available"


async def test_the_end_of_an_attachment_leaves_a_lease_alone_that_another_has_under_the_same_id(
    blob: SimBlob, node: Node, autojump_clock: MockClock
) -> None:
    async with attached(node("1"), lease_id=LEASE) as old, attached(node("2"), lease_id=LEASE, seed=2) as new:
        await old.release()
        assert blob.lease_state == "leased"
        assert blob.metadata["dysk_node"] == "here"
        await new.store.write(0, DATA)


async def test_a_late_acquire_leaves_no_lease_for_ever_behind(
    blob: SimBlob, node: Node, autojump_clock: MockClock
) -> None:
    for fates in ([LATE], [Fate(), LATE], [LATE, LATE, LATE]):
        async with attached(node("1", acquire=fates), lease_s=None) as stack:
            assert blob.lease_duration == "infinite"
            assert stack._held is not None
            assert stack._held.guard.expires_in_s is None
            await stack.store.write(0, DATA)
            await stack.release()
        await trio.sleep(3600)
        assert blob.lease_state == "available"


async def test_an_infinite_attach_that_fails_leaves_no_lease_for_ever(
    blob: SimBlob, node: Node, autojump_clock: MockClock
) -> None:
    await refused(node("1", acquire=[LATE] * 20), DyskError, lease_s=None)
    await trio.sleep(3600)
    assert blob.lease_state in ("available", "expired")


@pytest.mark.parametrize("lease_id", [None, LEASE])
async def test_an_attach_that_is_cancelled_while_its_lease_is_made_infinite_leaves_none(
    lease_id: str | None, blob: SimBlob, node: Node, autojump_clock: MockClock
) -> None:
    with trio.move_on_after(5):
        async with attached(node("1", acquire=[Fate(), Fate(before_s=60.0)]), lease_s=None, lease_id=lease_id):
            raise AssertionError("attached")
    assert blob.lease_state == "available"
    await trio.sleep(3600)
    assert blob.lease_state == "available"


async def test_an_attach_that_fails_leaves_a_lease_that_only_expired_to_whom_it_may_belong(
    node: Node, autojump_clock: MockClock
) -> None:
    """The holder, cut off for a while, renews it; under the user's lease id a release elsewhere would end it."""
    one = node("1")
    async with attached(one, lease_id=LEASE) as stack:
        one.down = True
        await trio.sleep(61)
        denied = Fate(error=refuse(403, "AuthorizationFailure"))
        await refused(node("2", **{"raise": [denied]}), DyskError, lease_id=LEASE, seed=2)
        one.down = False
        await trio.sleep(30)
        assert stack.state == "attached"


def slow_attach(node: Node) -> SimClient:
    """A node to which the answers take so long that a lease of 15 s is over when the last of them comes."""
    lost, slow = Fate(after_s=10.0, lost_s=2.4), Fate(after_s=2.4)
    return node("slow", acquire=[slow], properties=[Fate(), lost, lost, lost, slow], **{"raise": [lost, slow]})


@pytest.mark.parametrize("lease_id", [None, LEASE])
async def test_success_is_said_only_while_the_lease_is_held(
    lease_id: str | None, blob: SimBlob, node: Node, autojump_clock: MockClock
) -> None:
    kinds: list[Kind] = []

    async def attach() -> None:
        with pytest.raises(StoreError) as caught:
            async with attached(slow_attach(node), lease_s=15.0, lease_id=lease_id):
                raise AssertionError("attached")
        kinds.append(caught.value.kind)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(attach)
        await trio.sleep(15.1)
        async with attached(node("2"), seed=2, lease_id=lease_id) as stack:
            await stack.store.write(0, NEW)
            await trio.sleep(30)
            assert stack.state == "attached"
    assert kinds == [Kind.FENCED]
    assert blob.get(0, 512) == NEW


async def test_slow_answers_alone_do_not_fail_an_attach(blob: SimBlob, node: Node, autojump_clock: MockClock) -> None:
    slow = slow_attach(node)
    async with attached(slow, lease_s=15.0) as stack:
        assert "renew" in slow.sent, "it took longer than the lease"
        assert blob.lease_state == "leased"
        assert stack.epoch == blob.number
        assert stack._held is not None
        assert 0 < (stack._held.guard.expires_in_s or math.inf) <= 15
        await stack.store.write(0, DATA)


async def test_a_lease_that_is_always_over_before_the_answer_comes_is_an_error(
    blob: SimBlob, node: Node, autojump_clock: MockClock
) -> None:
    slow = slow_attach(node)
    before, lost = slow.fate, Fate(after_s=10.0, lost_s=2.4)
    answers = itertools.cycle([lost, lost, lost, Fate(after_s=2.4)])

    def always_late(name: str) -> Fate:
        if "renew" in slow.sent and name in ("properties", "raise"):
            return next(answers)
        return before(name)

    slow.fate = always_late
    error = await refused(slow, DyskError, lease_s=15.0)
    assert "lease of 15 s" in str(error)
    assert "a longer lease" in (error.remedy or "")
    assert blob.lease_state == "available"


@pytest.mark.parametrize("lease_s", [15.0, None])
async def test_an_attach_that_fails_under_a_shared_lease_id_leaves_the_holder_its_term(
    lease_s: float | None, blob: SimBlob, node: Node, autojump_clock: MockClock
) -> None:
    one = node("1")
    async with attached(one, lease_id=LEASE, lease_s=60.0) as stack:
        denied = Fate(error=refuse(403, "AuthorizationFailure"))
        await refused(node("2", **{"raise": [denied]}), DyskError, lease_id=LEASE, lease_s=lease_s, seed=2)
        assert blob.lease_duration == "fixed"
        await trio.sleep(15.5)
        assert stack.state == "attached"
        assert blob.lease_state == "leased"


@pytest.mark.parametrize("lease_s", [15.0, None])
async def test_an_attach_under_a_shared_lease_id_gets_the_term_it_asks_for(
    lease_s: float | None, blob: SimBlob, node: Node, autojump_clock: MockClock
) -> None:
    blob.acquire(60, LEASE)
    two = node("2")
    async with attached(two, lease_id=LEASE, lease_s=lease_s, seed=2) as stack:
        await stack.store.write(0, DATA)
        two.down = True
        await trio.sleep(16)
        assert (blob.lease_state == "leased") == (stack.state == "attached") == (lease_s is None)


async def test_a_lease_under_another_id_that_expired_is_taken_under_the_users(
    blob: SimBlob, node: Node, autojump_clock: MockClock
) -> None:
    blob.acquire(15, LEASE.replace("1", "9"))
    await trio.sleep(16)
    async with attached(node("1"), lease_id=LEASE) as stack:
        await stack.store.write(0, DATA)
        assert blob.lease_id == LEASE


async def test_the_term_that_a_shared_lease_gets_counts_from_before_it_was_asked_for(
    blob: SimBlob, node: Node, autojump_clock: MockClock
) -> None:
    blob.acquire(60, LEASE)
    slow = node("2", acquire=[Fate(after_s=2.0)])
    async with attached(slow, lease_id=LEASE, lease_s=15.0, seed=2) as stack:
        lease = stack.status()["lease"]
        assert isinstance(lease, dict)
        assert 12.0 < lease["expires_in_s"] < 13.1


async def test_a_raise_that_was_carried_out_before_another_lapse_is_our_own(
    blob: SimBlob, node: Node, autojump_clock: MockClock
) -> None:
    slow = slow_attach(node)
    before, raises = slow.fate, 0

    def lapse_again(name: str) -> Fate:
        nonlocal raises
        if name == "raise" and "renew" in slow.sent:
            raises += 1
            if raises == 1:
                return Fate(after_s=10.0, lost_s=2.4)
            if raises == 2:  # a service may look at the lease before the condition
                return Fate(error=refuse(412, "LeaseLost"))
        return before(name)

    slow.fate = lapse_again
    async with attached(slow, lease_s=15.0) as stack:
        assert raises > 2
        assert stack.epoch == blob.number
        await stack.store.write(0, DATA)
