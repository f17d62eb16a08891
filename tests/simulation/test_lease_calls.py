"""The calls of lease and epoch: how they end, what is known of them then, and what is left behind."""

from __future__ import annotations

from random import Random

import pytest
import trio
from trio.testing import MockClock

from blobfuse_dysk.azure.wire import Condition
from blobfuse_dysk.errors import DyskError, Kind, LeasedError, StoreError
from blobfuse_dysk.store.lease.attempts import Attempts
from blobfuse_dysk.store.lease.release import GIVE_UP_S
from blobfuse_dysk.store.lease.requests import BlobLease
from blobfuse_dysk.testing import Fate, SimBlob, SimClient
from blobfuse_dysk.testing.fates import refuse
from tests.simulation.stacks import LEASE, Node, attached, held, refused


class Silent(SimClient):
    """Its requests never end, whatever their limit is."""

    async def _ask(self, *args: object) -> object:  # type: ignore[override]
        await trio.sleep_forever()


async def test_a_call_whose_client_keeps_no_limit_ends_and_may_have_been_carried_out(
    blob: SimBlob, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    lease = BlobLease(Silent(blob, nursery), timeout_s=10.0)
    for call, unknown in ((lease.acquire(LEASE, 60.0, Condition()), True), (lease.properties(), False)):
        started = trio.current_time()
        with pytest.raises(StoreError) as caught:
            await call
        assert caught.value.kind is Kind.UNREACHABLE
        assert caught.value.unknown == unknown
        assert trio.current_time() - started < 15


def outcomes(*errors: StoreError | None) -> tuple[list[StoreError | None], Attempts]:
    return list(errors), Attempts(Random(0), 8.0)


async def test_whether_any_attempt_of_the_latest_call_may_land_is_known(autojump_clock: MockClock) -> None:
    lost, refused = StoreError("lost", Kind.UNREACHABLE, unknown=True), StoreError("busy", Kind.THROTTLED)
    left, attempts = outcomes(lost, refused, None, refused, None)

    async def call() -> None:
        await trio.lowlevel.checkpoint()
        error = left.pop(0)
        if error is not None:
            raise error

    await attempts(call)
    assert attempts.unknown
    await attempts(call)
    assert not attempts.unknown
    assert left == []


async def test_an_attempt_that_is_cancelled_may_land(autojump_clock: MockClock) -> None:
    attempts = Attempts(Random(0), 8.0)
    with trio.move_on_after(1):
        await attempts(trio.sleep_forever)
    assert attempts.unknown


async def test_a_request_of_a_short_lease_takes_only_part_of_its_term(node: Node, autojump_clock: MockClock) -> None:
    started = trio.current_time()
    async with attached(node("1", acquire=[Fate(before_s=100.0)]), lease_s=15.0):
        assert trio.current_time() - started < 5


async def test_a_detach_sends_one_release_and_leaves_what_is_the_users(
    blob: SimBlob, node: Node, autojump_clock: MockClock
) -> None:
    blob.metadata = {"mine": "kept"}
    one = node("1")
    async with attached(one, node="knoten-\u00e4\n") as stack:
        assert blob.metadata["dysk_node"] == "knoten-"
        await stack.release()
    assert one.sent.count("release") == 1
    assert blob.metadata == {"mine": "kept"}


async def test_a_holders_name_in_other_letters_is_ours_and_what_is_the_users_keeps_its_case(
    blob: SimBlob, node: Node, autojump_clock: MockClock
) -> None:
    """A tool of a language that writes header names its own way may have written the metadata back."""
    blob.metadata = {"costCenter": "7", "Dysk_Node": "old", "DYSK_SINCE": "2026-01-01T00:00:00Z"}
    async with attached(node("1")) as stack:
        assert blob.metadata.keys() == {"costCenter", "dysk_node", "dysk_since", "dysk_tag"}
        assert blob.metadata["dysk_node"] == "here"
        blob.metadata = {"costCenter": "7", "Dysk_Node": "here", "Dysk_Since": "2026-01-01T00:00:00Z"}
        error = await refused(node("2"), LeasedError)
        assert isinstance(error, LeasedError)
        assert (error.holder, error.since) == ("here", "2026-01-01T00:00:00Z")
        await stack.release()
    assert blob.metadata == {"costCenter": "7"}


async def test_a_new_worker_has_the_lease_of_the_attachment_whatever_is_wanted_now(
    node: Node, autojump_clock: MockClock
) -> None:
    async with attached(node("1")) as stack:
        state = held(stack)
    async with attached(node("w2"), resume=state, lease_id=LEASE, seed=2) as stack:
        assert stack.lease_id == state.lease_id


async def test_a_late_release_of_an_attach_that_failed_takes_nothing_from_the_next(
    blob: SimBlob, node: Node, autojump_clock: MockClock
) -> None:
    denied = Fate(error=refuse(403, "AuthorizationFailure"))
    one = node("1", **{"raise": [denied]}, release=[Fate(before_s=20.0, lost_s=1.0)])
    await refused(one, DyskError, lease_id=LEASE)
    assert blob.lease_state == "available"
    async with attached(node("2"), lease_id=LEASE, seed=2) as stack:
        await trio.sleep(40)
        assert stack.state == "attached"


async def test_giving_up_ends_in_time_though_the_service_is_slow(node: Node, autojump_clock: MockClock) -> None:
    one, two = node("1"), node("2", **{"raise": [Fate(after_s=50.0)]})

    def slow(name: str) -> Fate:
        return Fate(after_s=9.0)

    async with attached(one) as stack:
        one.fate = slow
        started = trio.current_time()
        await stack.release()
        assert trio.current_time() - started <= GIVE_UP_S + 0.1

    async def slow_down() -> None:
        await trio.sleep(0.5)
        two.fate = slow

    await trio.sleep(61)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(slow_down)
        started = trio.current_time()
        with trio.move_on_after(1):
            async with attached(two, seed=2, lease_id=LEASE):
                raise AssertionError("attached")
        assert trio.current_time() - started <= GIVE_UP_S + 1.1
