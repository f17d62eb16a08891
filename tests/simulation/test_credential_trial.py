"""store/lease/trial.py on a simulated blob: a trial says whether the credential is good, and changes nothing else."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from blobfuse_dysk.azure.credential.credential import Credential, Proof
from blobfuse_dysk.errors import CredentialError, Kind, StoreError
from blobfuse_dysk.store.layers.fence import Fence
from blobfuse_dysk.store.lease.trial import Trial
from blobfuse_dysk.store.stack import Stack
from blobfuse_dysk.testing import Fate, SimBlob, SimClient
from blobfuse_dysk.testing.fates import refuse
from tests.simulation.stacks import ADDRESS, DATA, Node, attached

NEW = Credential("account", Proof("sas", "/etc/dysk/account.conf", sas="sig=SECRET&sp=rw"))
DENIED = Fate(error=refuse(403, "AuthorizationPermissionMismatch"))


def trial(stack: Stack, client: SimClient, *, read_only: bool = False) -> Trial:
    """As open_stack makes it, with the client of the new credential."""
    return Trial(
        lambda credential: client, ADDRESS, lease_id=lambda: stack.lease_in_use, read_only=read_only, timeout_s=10.0
    )


def fence_of(stack: Stack) -> Fence:
    fence = stack._fence
    assert fence
    return fence


async def test_a_trial_asks_for_the_right_to_read_and_for_the_right_to_write(
    blob: SimBlob, node: Node, autojump_clock: MockClock
) -> None:
    async with attached(node("1")) as stack:
        asking = node("new")
        await trial(stack, asking)(NEW)
        assert asking.sent == ["properties", "renew"]
        reading = node("reads only", renew=[DENIED])
        with pytest.raises(CredentialError, match="does not allow this") as caught:
            await trial(stack, reading)(NEW)
        assert "SECRET" not in caught.value.line()
        with pytest.raises(CredentialError, match="does not allow this"):
            await trial(stack, node("nothing", properties=[DENIED]))(NEW)
    async with attached(node("2"), read_only=True) as stack:
        asking = node("new", renew=[DENIED])
        await trial(stack, asking, read_only=True)(NEW)
        assert asking.sent == ["properties"]


@pytest.mark.parametrize(
    "fate",
    [
        Fate(unsent=True),
        Fate(lost_s=0.0),
        Fate(error=refuse(503, "ServerBusy")),
        Fate(done_error=refuse(502, "")),
        Fate(error=refuse(500, "OperationTimedOut")),
        Fate(before_s=60.0),
    ],
)
@pytest.mark.parametrize("request_", ["properties", "renew"])
async def test_a_network_or_a_service_that_fails_meanwhile_is_no_refusal(
    node: Node, request_: str, fate: Fate, autojump_clock: MockClock
) -> None:
    async with attached(node("1")) as stack:
        with pytest.raises(StoreError) as caught:
            await trial(stack, node("new", **{request_: [fate]}))(NEW)
        assert caught.value.kind.retryable


async def test_a_trial_changes_nothing_but_the_end_of_the_lease_at_the_service(
    blob: SimBlob, node: Node, autojump_clock: MockClock
) -> None:
    """No ETag, number or metadata; and this node believes in its lease for no longer than it did."""
    async with attached(node("1")) as stack:
        await trio.sleep(5)
        assert stack._held
        guard, before = stack._held.guard, (blob.etag, blob.number, dict(blob.metadata), stack.epoch)
        until, proved = guard.valid_until, guard.proved_at
        await trial(stack, node("new"))(NEW)
        assert (blob.etag, blob.number, blob.metadata, stack.epoch) == before
        assert (guard.valid_until, guard.proved_at) == (until, proved)


async def test_a_lapse_that_a_trial_ends_at_the_service_is_one_for_the_fence_still(
    blob: SimBlob, node: Node, autojump_clock: MockClock
) -> None:
    """The node was cut off for longer than its lease. The trial gets through first; the fence looks and raises all the
    same, since somebody could have had the disk."""
    one = node("1")
    async with attached(one) as stack:
        one.down = True
        await trio.sleep(100)
        assert (blob.lease_state, stack.state) == ("expired", "paused")
        await trial(stack, node("new"))(NEW)
        assert (blob.lease_state, stack.state) == ("leased", "paused")
        raises = fence_of(stack).raises
        one.down = False
        await stack.store.write(0, DATA)
        assert fence_of(stack).raises == raises + 1


async def test_a_disk_that_was_lost_meanwhile_says_nothing_against_the_credential(
    blob: SimBlob, node: Node, autojump_clock: MockClock
) -> None:
    """That the lease is another's is said behind the proof of identity. The fence finds it out by itself; and of a
    disk that is fenced or given up no lease is renewed."""
    async with attached(node("1")) as stack, attached(node("2"), break_lease=True, seed=2) as other:
        before = blob.lease_id, blob.lease_state
        await trial(stack, node("new"))(NEW)
        assert (blob.lease_id, blob.lease_state) == before
        with pytest.raises(StoreError) as caught:
            await stack.store.write(0, DATA)
        assert caught.value.kind is Kind.FENCED
        asking = node("new")
        await trial(stack, asking)(NEW)
        assert asking.sent == ["properties"]
        await other.store.write(0, DATA)
        assert other.state == "attached"


async def test_a_trials_renewal_that_arrives_late_harms_nobody(
    blob: SimBlob, node: Node, autojump_clock: MockClock
) -> None:
    """The disk is given up, and another node has it, when the request lands."""
    async with attached(node("1")) as stack:
        with pytest.raises(StoreError):
            await trial(stack, node("new", renew=[Fate(before_s=30.0, lost_s=1.0)]))(NEW)
        await stack.release()
    async with attached(node("2"), seed=2) as other:
        await trio.sleep(5)
        before = blob.lease_id
        await trio.sleep(60)
        assert blob.lease_id == before
        await other.store.write(0, DATA)
        assert other.state == "attached"
        asking = node("new")
        await trial(stack, asking)(NEW)
        assert asking.sent == ["properties"]
