"""Attaching: taking the disk, being refused, taking it over, resuming, giving it up."""

from __future__ import annotations

from random import Random

import pytest
import trio
from trio.testing import MockClock

from blobfuse_dysk.azure.properties import CopyState
from blobfuse_dysk.errors import (
    CredentialError,
    DyskError,
    Kind,
    LeasedError,
    ServiceError,
    StoreError,
)
from blobfuse_dysk.store.lease import epoch
from blobfuse_dysk.store.open import ResumeState
from blobfuse_dysk.testing import Fate, SimBlob, SimClient
from blobfuse_dysk.testing.fates import refuse
from tests.simulation.stacks import DATA, LEASE, SIZE, attached, refused


async def test_attach_leases_raises_signs_and_release_undoes(
    blob: SimBlob, client: SimClient, autojump_clock: MockClock
) -> None:
    blob.metadata = {"mine": "kept"}
    blob.number = 7
    async with attached(client) as stack:
        assert blob.lease_state == "leased"
        assert stack.state == "attached"
        assert stack.epoch == blob.number > 7
        assert blob.metadata["dysk_node"] == "here"
        assert blob.metadata["dysk_since"].endswith("Z")
        assert blob.metadata["mine"] == "kept"
        assert stack.store.size == stack.blob.size == SIZE
        await stack.store.write(0, DATA)
        await stack.store.flush()
        await stack.release()
        assert str(stack.state) == "released"
        with pytest.raises(StoreError):
            await stack.store.write(0, DATA)
    assert blob.lease_state == "available"
    assert blob.metadata == {"mine": "kept"}
    assert bytes(blob.store.peek(0, 512)) == DATA


async def test_the_end_without_release_keeps_the_lease(
    blob: SimBlob, client: SimClient, autojump_clock: MockClock
) -> None:
    async with attached(client):
        pass
    assert blob.lease_state == "leased"


@pytest.mark.parametrize("outcome", [Fate(), Fate(before_s=30.0), Fate(lost_s=0.0), Fate(error=refuse(403, "No"))])
async def test_a_checksum_of_the_content_is_taken_off_and_the_other_headers_stay(
    outcome: Fate, blob: SimBlob, client: SimClient, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """Page writes do not renew it. The request's end may be unknown: the attach goes on, and a late copy is void."""
    kept = {"content-type": "application/x-raw", "cache-control": "no-cache", "content-language": "de"}
    blob.content = {**kept, "content-md5": "1B2M2Y8AsgTpgAmY7PhCfg=="}
    client.fate = lambda name: outcome if name == "content" else Fate()
    async with attached(client, lease_id=LEASE) as stack:
        await stack.store.write(0, DATA)
        await stack.store.flush()
        if outcome == Fate():
            assert blob.content == kept
            assert blob.metadata["dysk_node"] == "here"
        await stack.release()
    theirs = {"content-type": "theirs"}
    blob.content = dict(theirs)
    async with attached(SimClient(blob, nursery), lease_id=LEASE, seed=2) as stack:
        await trio.sleep(60)
        assert blob.content == theirs
        assert stack.state == "attached"


async def test_without_a_checksum_the_headers_are_not_touched(
    blob: SimBlob, client: SimClient, autojump_clock: MockClock
) -> None:
    blob.content = {"content-type": "application/x-raw"}
    async with attached(client):
        assert "content" not in client.sent
        assert client.sent.count("properties") == 1


async def test_headers_that_changed_since_are_left_to_who_changed_them(
    blob: SimBlob, client: SimClient, autojump_clock: MockClock
) -> None:
    blob.content = {"content-md5": "old"}

    def change(name: str) -> Fate:
        if name == "properties" and blob.lease_id:
            blob.set_content({"content-md5": "new", "content-type": "theirs"}, blob.lease_id)
        return Fate()

    client.fate = change
    async with attached(client):
        assert blob.content == {"content-md5": "new", "content-type": "theirs"}


@pytest.mark.parametrize("before", ["acquire", "raise"])
async def test_a_copy_that_begins_during_the_attach_refuses_it(
    before: str, blob: SimBlob, client: SimClient, autojump_clock: MockClock
) -> None:
    """Such as one under the user's own lease id: what was looked at is not what there is any more."""

    def copy(name: str) -> Fate:
        if name == before and blob.copy is None:
            blob.copy = CopyState("pending", 1 << 19, SIZE, "")
            blob.set_metadata({}, blob.lease_id if blob.lease_state == "leased" else None)
        return Fate()

    client.fate = copy
    assert "is still being copied to: 512KiB of 1MiB" in str(await refused(client, DyskError))
    assert blob.lease_state == "available"


@pytest.mark.parametrize("before", ["acquire", "raise"])
async def test_a_number_that_changes_after_it_was_read_is_read_again(
    before: str, blob: SimBlob, client: SimClient, autojump_clock: MockClock
) -> None:
    """A raise of the last holder may land just before we have the lease, or, under the user's lease id, after that."""
    blob.number = epoch.claim_number(0, 5, Random(0))
    theirs = epoch.next_number(blob.number)
    seen: list[str] = []

    def raise_late(name: str) -> Fate:
        if name == before and before not in seen:
            blob.raise_number(theirs, LEASE if blob.lease_state == "leased" else None)
        seen.append(name)
        return Fate()

    client.fate = raise_late
    blob.acquire(60, LEASE)
    async with attached(client, lease_id=LEASE) as stack:
        assert stack.epoch == blob.number
        assert epoch.generation(blob.number) == epoch.generation(theirs) + 1


async def test_the_second_attacher_learns_who_has_it(
    blob: SimBlob, client: SimClient, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    async with attached(client) as stack:
        error = await refused(SimClient(blob, nursery), LeasedError, node="there")
        assert f"leased by node here since {blob.metadata['dysk_since']}" in str(error)
        assert "--break-lease" in (error.remedy or "")
        assert stack.state == "attached"
        await stack.store.write(0, DATA)


async def test_a_holder_without_a_name(blob: SimBlob, client: SimClient, autojump_clock: MockClock) -> None:
    blob.acquire(-1, LEASE)
    assert "an unknown holder" in str(await refused(client, LeasedError))


async def test_a_lease_that_is_broken_fences_the_former_holder(
    blob: SimBlob, client: SimClient, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    states: list[str] = []
    async with (
        attached(client, states=states, node="old") as old,
        attached(SimClient(blob, nursery), node="new", break_lease=True) as new,
    ):
        assert blob.metadata["dysk_node"] == "new"
        with pytest.raises(StoreError) as caught:
            await old.store.write(0, DATA)
        assert caught.value.kind is Kind.FENCED
        assert states == ["paused", "fenced"]
        await new.store.write(512, DATA)
        for call in (old.store.read(512, 512), old.store.zero(0, 512), old.store.extents(0, 512), old.store.flush()):
            with pytest.raises(StoreError) as caught:
                await call
            assert caught.value.kind is Kind.FENCED
        await old.release()
        assert blob.lease_state == "leased", "nothing of a fenced disk is ours to release"


async def test_breaking_where_there_is_nothing_to_break(
    blob: SimBlob, client: SimClient, autojump_clock: MockClock
) -> None:
    async with attached(client, break_lease=True):
        assert blob.lease_state == "leased"
    assert "break" not in client.sent


async def test_a_lease_id_of_the_users(blob: SimBlob, client: SimClient, autojump_clock: MockClock) -> None:
    blob.acquire(60, LEASE)
    async with attached(client, lease_id=LEASE) as stack:
        assert stack.lease_id == LEASE
        await stack.store.write(0, DATA)


async def test_two_attachments_with_one_lease_id(
    blob: SimBlob, client: SimClient, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """The lease cannot tell them apart, the epoch can: the newer one has the disk."""
    async with (
        attached(client, lease_id=LEASE) as old,
        attached(SimClient(blob, nursery), lease_id=LEASE) as new,
    ):
        with pytest.raises(StoreError) as caught:
            await old.store.write(0, DATA)
        assert caught.value.kind is Kind.FENCED
        await new.store.write(0, DATA)


async def test_two_attachments_with_one_lease_id_and_a_lost_answer(
    blob: SimBlob, client: SimClient, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """The older one raises its epoch because of the lost answer; what it then has must not be the newer one's."""
    async with (
        attached(client, lease_id=LEASE) as old,
        attached(SimClient(blob, nursery), lease_id=LEASE) as new,
    ):
        puts = 0

        def lose_the_first_answer(name: str) -> Fate:
            nonlocal puts
            puts += name == "put"
            return Fate(lost_s=0.0015) if name == "put" and puts == 1 else Fate()

        client.fate = lose_the_first_answer
        with pytest.raises(StoreError) as caught:
            await old.store.write(0, b"o" * 512)
        assert caught.value.kind is Kind.FENCED
        await new.store.write(0, DATA)
        assert bytes(await new.store.read(0, 512)) == DATA


@pytest.mark.parametrize("seeds", [(1, 2), (2, 1)])
async def test_two_attaches_with_one_lease_id_at_once(
    seeds: tuple[int, int], blob: SimBlob, client: SimClient, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """Both read the same number before either raised it; one of the two has the disk in the end."""
    written: list[str] = []
    kinds: list[Kind] = []

    async def attach(client: SimClient, node: str, seed: int) -> None:
        client.fate = lambda name: Fate(before_s=1.0)
        try:
            async with attached(client, lease_id=LEASE, node=node, seed=seed) as stack:
                await trio.sleep(10)
                await stack.store.write(0, DATA)
                written.append(node)
                await trio.sleep(60)
        except StoreError as error:
            kinds.append(error.kind)

    async with trio.open_nursery() as both:
        both.start_soon(attach, client, "a", seeds[0])
        both.start_soon(attach, SimClient(blob, nursery), "b", seeds[1])
    assert len(written) == 1
    assert kinds == [Kind.FENCED]


async def test_a_new_worker_resumes_and_stragglers_of_the_old_one_are_refused(
    blob: SimBlob, client: SimClient, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    async with attached(client) as old:
        state = ResumeState(old.lease_id or "", old.epoch or 0, old.lease_s)
        client.fate = lambda name: Fate(before_s=30) if name == "put" else Fate()
        with trio.move_on_after(1):
            await old.store.write(0, b"o" * 512)
    async with attached(SimClient(blob, nursery), resume=state) as new:
        assert new.lease_id == state.lease_id
        assert new.epoch == blob.number > state.epoch
        await trio.sleep(60)
        assert blob.writes[-1].code == "SequenceNumberConditionNotMet"
        assert bytes(await new.store.read(0, 512)) == bytes(512)
        await new.store.write(0, DATA)


async def test_resuming_after_the_lease_lapsed_unclaimed(
    blob: SimBlob, client: SimClient, autojump_clock: MockClock
) -> None:
    async with attached(client) as old:
        state = ResumeState(old.lease_id or "", old.epoch or 0, old.lease_s)
    await trio.sleep(1000)
    with trio.fail_after(60):
        async with attached(client, resume=state) as new:
            await new.store.write(0, DATA)


async def test_resuming_what_somebody_had_meanwhile_is_fenced(
    blob: SimBlob, client: SimClient, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    async with attached(client) as old:
        state = ResumeState(old.lease_id or "", old.epoch or 0, old.lease_s)
    await trio.sleep(100)
    async with attached(SimClient(blob, nursery), node="there") as other:
        await other.release()
    error = await refused(client, StoreError, resume=state)
    assert isinstance(error, StoreError)
    assert error.kind is Kind.FENCED


async def test_resuming_another_blob_of_the_same_name_is_fenced(
    blob: SimBlob, client: SimClient, autojump_clock: MockClock
) -> None:
    blob.acquire(60, LEASE)
    error = await refused(client, StoreError, resume=ResumeState(LEASE, 5, 60.0))
    assert isinstance(error, StoreError)
    assert error.kind is Kind.FENCED


async def test_resuming_waits_for_the_service(blob: SimBlob, client: SimClient, autojump_clock: MockClock) -> None:
    async with attached(client) as old:
        state = ResumeState(old.lease_id or "", old.epoch or 0, old.lease_s)
    client.down = True

    async def restore(task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        await trio.sleep(120)
        client.down = False

    async with trio.open_nursery() as nursery:
        await nursery.start(restore)
        async with attached(client, resume=state) as new:
            await new.store.write(0, DATA)


@pytest.mark.parametrize("refused_call", ["properties", "acquire", "raise"])
async def test_missing_rights_are_a_credential_error_and_leave_no_lease(
    refused_call: str, blob: SimBlob, client: SimClient, autojump_clock: MockClock
) -> None:
    denied = ServiceError("no", status=403, code="AuthorizationPermissionMismatch")
    client.fate = lambda name: Fate(error=denied) if name == refused_call else Fate()
    await refused(client, CredentialError)
    assert blob.lease_state == "available"


async def test_a_name_that_cannot_be_written_is_no_obstacle(
    blob: SimBlob, client: SimClient, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    denied = ServiceError("no", status=403, code="AuthorizationPermissionMismatch")
    client.fate = lambda name: Fate(error=denied) if name == "metadata" else Fate()
    async with attached(client) as stack:
        await stack.store.write(0, DATA)
        await stack.release()
    assert blob.lease_state == "available"
    assert "holder's name" in caplog.text


async def test_a_hiccup_does_not_fail_an_attach(blob: SimBlob, client: SimClient, autojump_clock: MockClock) -> None:
    seen: dict[str, int] = {}

    def once(name: str) -> Fate:
        seen[name] = seen.get(name, 0) + 1
        return Fate(lost_s=0.0015) if seen[name] == 1 else Fate()

    client.fate = once
    async with attached(client) as stack:
        assert stack.epoch == blob.number
        await stack.store.write(0, DATA)


async def test_an_attach_that_is_cancelled_leaves_no_lease(
    blob: SimBlob, client: SimClient, autojump_clock: MockClock
) -> None:
    client.fate = lambda name: Fate(after_s=5) if name == "raise" else Fate()
    with trio.move_on_after(1):
        async with attached(client):
            raise AssertionError("attached")
    assert blob.lease_state == "available"
