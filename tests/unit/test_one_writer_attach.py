"""Attaches that fail, are slow, or leave requests under way: what they take from others, and leave behind."""

from __future__ import annotations

import itertools
import math

import pytest
import trio
from trio.testing import MockClock

from blobfuse_dysk.errors import DyskError, Kind, LeasedError, StoreError
from blobfuse_dysk.store import epoch
from blobfuse_dysk.testing import Fate, SimBlob, SimClient
from blobfuse_dysk.testing.fates import refuse
from tests.unit.fenced import Suspend
from tests.unit.stacks import DATA, LEASE, Node, attached, refused

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
            assert blob.properties().lease_duration == "infinite"
            assert stack._fence is not None
            assert stack._fence.expires_in_s is None
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
    return node(
        "slow", acquire=[slow], properties=[Fate(), lost, lost, lost, slow], metadata=[slow], **{"raise": [lost]}
    )


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
        assert stack._fence is not None
        assert 0 < (stack._fence.expires_in_s or math.inf) <= 15
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
    assert "--lease" in (error.remedy or "")
    assert blob.lease_state == "available"


@pytest.mark.parametrize("lease_s", [15.0, None])
async def test_an_attach_that_fails_under_a_shared_lease_id_leaves_the_holder_its_term(
    lease_s: float | None, blob: SimBlob, node: Node, autojump_clock: MockClock
) -> None:
    one = node("1")
    async with attached(one, lease_id=LEASE, lease_s=60.0) as stack:
        denied = Fate(error=refuse(403, "AuthorizationFailure"))
        await refused(node("2", **{"raise": [denied]}), DyskError, lease_id=LEASE, lease_s=lease_s, seed=2)
        assert blob.properties().lease_duration == "fixed"
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


DENIED = Fate(error=refuse(403, "AuthorizationFailure"))


@pytest.mark.parametrize("lease_id", [None, LEASE])
async def test_an_attach_that_is_cancelled_gives_an_infinite_lease_back_though_an_answer_is_lost(
    lease_id: str | None, blob: SimBlob, node: Node, autojump_clock: MockClock
) -> None:
    """There is no term to end it."""
    looks, releases = [Fate(), Fate(unsent=True)], [Fate(unsent=True), Fate(lost_s=0.0015)]
    one = node("1", metadata=[Fate(before_s=60.0)], properties=looks, release=releases)
    with trio.move_on_after(1):
        async with attached(one, lease_s=None, lease_id=lease_id):
            raise AssertionError("attached")
    assert blob.lease_state == "available"
    assert one.sent.count("release") > 1


async def test_an_attach_that_is_cancelled_gives_its_lease_back_though_the_holders_name_comes_late(
    blob: SimBlob, node: Node, autojump_clock: MockClock
) -> None:
    """It changes the blob between the look and the release."""
    one = node("1", metadata=[Fate(before_s=5.0)], release=[Fate(before_s=6.0), Fate()])
    with trio.move_on_after(1):
        async with attached(one, lease_s=None, lease_id=LEASE):
            raise AssertionError("attached")
    assert blob.lease_state == "available"


async def test_an_attach_that_fails_at_its_last_raise_gives_a_lease_of_the_users_id_back(
    blob: SimBlob, node: Node, autojump_clock: MockClock
) -> None:
    """The number is the one of the raise before."""
    fates = {"acquire": [Fate(), Fate(lost_s=0.0015), Fate()], "raise": [Fate(), DENIED, DENIED]}
    await refused(node("1", **fates), DyskError, lease_s=None, lease_id=LEASE)
    assert blob.lease_state == "available"


async def test_an_attach_that_took_longer_than_its_first_lease_leaves_none_for_ever(
    blob: SimBlob, node: Node, autojump_clock: MockClock
) -> None:
    """The copy of its request for a lease without a term comes when the lease with a term is over."""
    one = node("1", acquire=[Fate(), Fate(before_s=90.0, lost_s=90.0)])
    blob_ends = 0.0

    def end_the_lease(name: str) -> Fate:
        nonlocal blob_ends
        fate = first(name)
        if one.sent.count("acquire") == 2 and not blob_ends:
            blob_ends = blob._lease_ends = trio.current_time() + 0.5
        return fate

    first, one.fate = one.fate, end_the_lease
    with trio.move_on_after(1):
        async with attached(one, lease_s=None):
            raise AssertionError("attached")
    await trio.sleep(3600)
    assert blob.lease_state in ("available", "expired")


async def test_a_late_raise_of_its_own_does_not_fail_an_attach(
    blob: SimBlob, node: Node, autojump_clock: MockClock
) -> None:
    """A late break ended the lease, so it was taken again; the number was drawn anew, and the one of before came."""
    lost_lease = Fate(error=refuse(412, "LeaseLost"))
    raises = [Fate(before_s=1.0, lost_s=0.1), lost_lease, Fate(before_s=3.0), Fate()]
    async with attached(node("1", **{"raise": raises})) as stack:
        assert stack.epoch == blob.number
        await stack.store.write(0, DATA)
        assert epoch.generation(blob.number) == 2


async def test_a_release_that_is_lost_is_sent_again(blob: SimBlob, node: Node, autojump_clock: MockClock) -> None:
    for lost in (Fate(unsent=True), Fate(lost_s=0.0015), Fate(error=refuse(503, "ServerBusy"))):
        one = node("1", release=[lost], properties=[Fate(), lost])
        async with attached(one, lease_s=None) as stack:
            await stack.release()
        assert blob.lease_state == "available"


async def test_a_release_that_was_done_though_its_answer_was_lost_is_no_reason_for_a_warning(
    blob: SimBlob, node: Node, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with attached(node("1", release=[Fate(lost_s=0.0015)])) as stack:
        await stack.release()
    assert blob.lease_state == "available"
    assert "release" not in caplog.text


@pytest.mark.parametrize("ignored", [True, False])
async def test_of_two_attaches_with_one_lease_id_the_one_whose_number_is_not_the_blobs_fails(
    ignored: bool, blob: SimBlob, node: Node, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """ignored: a service that ignores conditions, as an old emulator does: the answer to the raise still tells."""
    if ignored:
        monkeypatch.setattr(blob, "_check", lambda condition: None)
    kinds: list[Kind] = []

    async def late() -> None:
        error = await refused(node("1", **{"raise": [Fate(before_s=2.0)]}), StoreError, lease_id=LEASE, seed=1)
        assert isinstance(error, StoreError)
        kinds.append(error.kind)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(late)
        await trio.sleep(1)
        async with attached(node("2"), lease_id=LEASE, seed=2) as stack:
            await trio.sleep(30)
            await stack.store.write(0, DATA)
            assert stack.state == "attached"
    assert kinds == [Kind.FENCED]


async def test_a_holders_name_that_comes_late_does_not_replace_the_next_ones(
    blob: SimBlob, node: Node, autojump_clock: MockClock
) -> None:
    async with attached(node("1", metadata=[LATE]), lease_id=LEASE, node="one") as stack:
        await stack.release()
    async with attached(node("2"), lease_id=LEASE, seed=2, node="two"):
        await trio.sleep(40)
        assert blob.metadata["dysk_node"] == "two"


async def test_a_lease_id_of_the_users_takes_no_disk_that_another_has(
    blob: SimBlob, node: Node, autojump_clock: MockClock
) -> None:
    two = node("2")
    async with attached(node("1")) as stack:
        await refused(two, LeasedError, lease_id=LEASE, seed=2)
        assert two.sent.count("acquire") == 1
        await stack.store.write(0, DATA)
        assert stack.state == "attached"


@pytest.mark.parametrize("lease_id", [None, LEASE])
@pytest.mark.parametrize("then", [DENIED, Fate(before_s=5.0)])
async def test_an_acquire_whose_end_is_not_known_is_given_back(
    then: Fate, lease_id: str | None, blob: SimBlob, node: Node, autojump_clock: MockClock
) -> None:
    acquires = [Fate(lost_s=0.0015), then] if then is DENIED else [Fate(after_s=10.0)]
    with trio.move_on_after(1), pytest.raises(DyskError):
        async with attached(node("1", acquire=acquires), lease_id=lease_id):
            raise AssertionError("attached")
    assert blob.lease_state == "available"


async def test_a_lease_that_may_be_ours_is_given_back_though_it_was_looked_at_again(
    blob: SimBlob, node: Node, autojump_clock: MockClock
) -> None:
    changed = Fate(error=refuse(412, "ConditionNotMet"))
    fates = {"acquire": [Fate(lost_s=0.0015), changed], "raise": [DENIED]}
    await refused(node("1", **fates), DyskError, lease_id=LEASE)
    assert blob.lease_state == "available"


async def test_a_raise_whose_answer_is_lost_counts(blob: SimBlob, node: Node, autojump_clock: MockClock) -> None:
    async with attached(node("1", **{"raise": [Fate(lost_s=0.0015)]})) as stack:
        assert epoch.generation(blob.number) == 1
        assert stack.epoch == blob.number


async def test_an_attach_ends_though_others_change_the_blob_without_end(node: Node, autojump_clock: MockClock) -> None:
    changed = Fate(error=refuse(412, "ConditionNotMet"))
    error = await refused(node("1", acquire=[changed] * 100), StoreError)
    assert "changed again and again" in str(error)
    assert "who writes" in (error.remedy or "")


async def test_a_break_that_is_refused_is_not_asked_for_again(
    blob: SimBlob, node: Node, autojump_clock: MockClock
) -> None:
    blob.acquire(-1, LEASE)
    two = node("2", **{"break": [DENIED] * 3})
    await refused(two, DyskError, break_lease=True)
    assert two.sent.count("break") == 1
    assert blob.lease_state == "leased"


@pytest.mark.parametrize("how", ["raised", "broken"])
async def test_a_disk_that_is_lost_while_its_lease_is_made_infinite_is_not_attached(
    how: str, blob: SimBlob, node: Node, autojump_clock: MockClock
) -> None:
    one = node("1", acquire=[Fate(), Fate(lost_s=0.0015)])
    first = one.fate

    def lose(name: str) -> Fate:
        if name == "raise" and one.sent.count("raise") == 2:
            if how == "raised":
                blob.raise_number(9 << 40, LEASE)
            else:
                blob.break_now()
        return first(name)

    one.fate = lose
    error = await refused(one, StoreError, lease_s=None, lease_id=LEASE)
    assert isinstance(error, StoreError)
    assert error.kind is Kind.FENCED


async def test_a_holders_name_that_comes_late_does_not_fail_an_attach_that_lapsed(
    blob: SimBlob, node: Node, suspend: Suspend, autojump_clock: MockClock
) -> None:
    one = node("1", metadata=[Fate(before_s=2.0, lost_s=1.0)], **{"raise": [Fate(), Fate(before_s=3.0)]})

    async def sleep() -> None:
        await trio.sleep(0.5)
        suspend(61)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(sleep)
        async with attached(one) as stack:
            assert one.sent.count("raise") == 3
            assert stack.epoch == blob.number
            await stack.store.write(0, DATA)
