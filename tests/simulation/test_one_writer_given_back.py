"""Attaches that are cut short, or whose answers are lost, and ends of attachments: leases are given back."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from blobfuse_dysk.errors import DyskError, Kind, LeasedError, StoreError
from blobfuse_dysk.store.lease import epoch
from blobfuse_dysk.testing import Fate, SimBlob
from blobfuse_dysk.testing.fates import refuse
from tests.simulation.stacks import DATA, LEASE, Node, attached, refused
from tests.suspension import Suspend

OLD, NEW = b"o" * 512, b"n" * 512
LATE = Fate(before_s=30.0, lost_s=1.0)  # arrives half a minute after its sender stopped waiting
DENIED = Fate(error=refuse(403, "AuthorizationFailure"))


@pytest.mark.parametrize("lease_id", [None, LEASE])
async def test_an_attach_that_is_cancelled_gives_an_infinite_lease_back_though_an_answer_is_lost(
    lease_id: str | None, blob: SimBlob, node: Node, autojump_clock: MockClock
) -> None:
    """There is no term to end it."""
    looks, releases = [Fate(), Fate(unsent=True)], [Fate(unsent=True), Fate(lost_s=0.0015)]
    one = node("1", acquire=[Fate(), Fate(after_s=60.0)], properties=looks, release=releases)
    with trio.move_on_after(1):
        async with attached(one, lease_s=None, lease_id=lease_id):
            raise AssertionError("attached")
    assert blob.lease_state == "available"
    assert one.sent.count("release") > 1


async def test_a_disk_is_given_back_though_the_holders_name_comes_late(
    blob: SimBlob, node: Node, autojump_clock: MockClock
) -> None:
    """It changes the blob between the look and the release."""
    one = node("1", metadata=[Fate(before_s=5.0)], release=[Fate(before_s=6.0), Fate()])
    async with attached(one, named=False, lease_s=None, lease_id=LEASE) as stack:
        await trio.sleep(1)
        await stack.release()
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


async def test_a_holders_name_that_comes_late_does_not_end_an_attachment_that_lapsed(
    blob: SimBlob, node: Node, suspend: Suspend, autojump_clock: MockClock
) -> None:
    one = node("1", metadata=[Fate(before_s=2.0, lost_s=1.0)], **{"raise": [Fate(), Fate(before_s=3.0)]})

    async def sleep() -> None:
        await trio.sleep(0.5)
        suspend(61)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(sleep)
        async with attached(one, named=False) as stack:
            await stack.store.write(0, DATA)
            assert one.sent.count("raise") == 2
            assert stack.epoch == blob.number
            await trio.sleep(3)
            assert stack.state == "attached"
            await stack.store.write(0, DATA)
