"""Taking a disk for this node, and giving it up: lease, epoch, and the holder's name in the blob's metadata.

Theory. The order is what makes it safe:

1. Take the lease. From here on no request with another lease id is accepted.
2. Read the sequence number *under the lease* (a number read before could be raised by the last holder's own late
   raise), and raise it to the next block of EPOCHS numbers. Once that is acknowledged, no request of any earlier
   holder or worker can land, not even one that carries the same lease id.
3. Only then use the disk. The map of allocated pages, too, is read only now: a straggler could otherwise make
   a page allocated that the map calls free.

A take-over (break_lease) breaks the lease without a break period, then does the same. A resumed attachment (a new
worker of the same attachment) renews the lease it finds in its state file. Renewal succeeds even after expiry, as long
as nobody leased or changed the blob since; when it is refused, somebody did, and the attachment is fenced: the file
system's caches above us are about a disk that is not there any more.
Source: https://learn.microsoft.com/rest/api/storageservices/lease-blob, "Remarks" and the two tables of outcomes.

A block of numbers, not just the next number, is what keeps two attachments apart that a user gave the same lease id, or
that an emulator lets renew after another one came and went. While it is attached, each raises its epoch by one, to end
doubts about its writes; with the next number for a new attachment, the old one could raise its own to the very same,
and neither would ever be refused. And a random start within the block keeps two apart that read the same number at
once: `max` lets the higher one win, and the other learns from the answer, or from its first refused write.

Writing who holds the disk is a courtesy to the next node's error message. It may be refused without harm.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random
from typing import TypeVar

import trio

from blobfuse_dysk.azure.explain import HOLDER_NODE, HOLDER_SINCE, leased
from blobfuse_dysk.azure.wire import BlobProperties
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.errors import Kind, LeasedError, StoreError
from blobfuse_dysk.store.backoff import Backoff
from blobfuse_dysk.store.bloblease import BlobLease
from blobfuse_dysk.store.guard import Guard, lease_time

__all__ = ["Claim", "give_up", "patiently", "resume", "take"]

T = TypeVar("T")
log = logging.getLogger(__name__)
_TRANSIENT = frozenset({Kind.THROTTLED, Kind.UNREACHABLE, Kind.CORRUPT, Kind.INTERNAL})
BREAK_ROUNDS = 3  # another node may take the lease between our break and our acquire, but not for ever
GIVE_UP_S = 10.0
EPOCHS = 1 << 24  # numbers of a block; the first is drawn from its lower half, so that 8 million raises have room


@dataclass(frozen=True, slots=True)
class Claim:
    """A disk that is ours: what Fence starts from, and the blob as it was when the lease was held already."""

    guard: Guard
    blob: BlobProperties


async def patiently(call: Callable[[], Awaitable[T]], *, budget_s: float | None, random: Random) -> T:
    """Repeat `call` while its StoreError may pass by itself, for budget_s seconds (None: for ever).

    Refusals (credential, lease, not found) are raised at once: whoever attaches is there to read them.
    """
    deadline = float("inf") if budget_s is None else trio.current_time() + budget_s
    backoff = Backoff(random, most_s=4.0)
    while True:
        try:
            return await call()
        except StoreError as error:
            pause_s = backoff.next_s(error)
            if error.kind not in _TRANSIENT or trio.current_time() + pause_s >= deadline:
                raise
        await trio.sleep(pause_s)


async def take(
    lease: BlobLease,
    *,
    address: DiskAddress,
    node: str,
    lease_s: float | None,
    lease_id: str | None,
    break_lease: bool,
    budget_s: float | None,
    random: Random,
) -> Claim:
    """Take lease and epoch for a new attachment. Raises LeasedError or StoreError, and then holds no lease.

    StoreError(FENCED): another attachment, under the same lease id, was taken at the same time.

    lease_id: an id the user chose (the lease is taken over if it is held under that very id), or None.
    """
    wanted = lease_id or str(uuid.uuid4())
    try:
        sent_at = await _acquire(
            lease, wanted, lease_s, address=address, force=break_lease, budget_s=budget_s, random=random
        )
        guard = Guard(wanted, 0, float("inf") if lease_s is None else sent_at + lease_s)
        claim = await _raise_under_lease(lease, guard, budget_s=budget_s, random=random)
        await _sign(lease, claim, node)
    except LeasedError:
        raise
    except BaseException as error:
        if isinstance(error, StoreError) and error.kind is Kind.FENCED:
            raise  # the lease is another attachment's as well, which has the disk now
        with trio.CancelScope(deadline=trio.current_time() + GIVE_UP_S, shield=True):
            await _quietly(lease.release(wanted), "releasing the lease of a failed attach")
        raise
    return claim


async def resume(
    lease: BlobLease, *, lease_id: str, epoch: int, lease_s: float | None, budget_s: float | None, random: Random
) -> Claim:
    """Take an attachment's own lease up again. StoreError(FENCED) if somebody had the disk in between.

    epoch: the last one that was known; it may have been raised since, by the worker that is gone.
    """
    sent_at = 0.0

    async def renew() -> None:
        nonlocal sent_at
        sent_at = lease_time()
        await lease.renew(lease_id)

    try:
        await patiently(renew, budget_s=budget_s, random=random)
    except StoreError as error:
        if error.kind is Kind.LEASE:
            raise StoreError(
                f"the lease of this attachment is lost: {error}",
                Kind.FENCED,
                remedy="another node had the disk meanwhile; detach it here and attach it anew",
            ) from error
        raise
    guard = Guard(lease_id, 0, float("inf") if lease_s is None else sent_at + lease_s)
    claim = await _raise_under_lease(lease, guard, budget_s=budget_s, random=random)
    found = claim.blob.sequence_number or 0
    if found < epoch:
        raise StoreError(
            f"the epoch is {found} after it had been {epoch}: this is not the blob that was attached",
            Kind.FENCED,
            remedy="the blob was replaced; detach it here and attach it anew",
        )
    return claim


async def give_up(lease: BlobLease, lease_id: str) -> None:
    """Take our name off and release the lease. Best effort, within GIVE_UP_S; the lease would expire anyway."""
    with trio.move_on_after(GIVE_UP_S) as scope:
        await _quietly(_unsign(lease, lease_id), "taking the holder's name off the blob")
        await _quietly(lease.release(lease_id), "releasing the lease")
    if scope.cancelled_caught:
        log.warning("the lease was not released within %g s; it ends by itself unless it is infinite", GIVE_UP_S)


async def _acquire(
    lease: BlobLease,
    lease_id: str,
    lease_s: float | None,
    *,
    address: DiskAddress,
    force: bool,
    budget_s: float | None,
    random: Random,
) -> float:
    """Acquire, breaking another's lease if told to; returns lease_time() before the request that succeeded."""
    sent_at = 0.0

    async def acquire() -> None:
        nonlocal sent_at
        sent_at = lease_time()
        await lease.acquire(lease_id, lease_s)

    for attempt in range(1 + (BREAK_ROUNDS if force else 0)):
        try:
            if attempt:
                await patiently(lease.break_now, budget_s=budget_s, random=random)
        except StoreError as error:
            if error.kind is not Kind.LEASE:  # of that kind: the lease ended by itself
                raise
        try:
            await patiently(acquire, budget_s=budget_s, random=random)
        except StoreError as error:
            if error.kind is not Kind.LEASE:
                raise
        else:
            return sent_at
    blob = await patiently(lease.properties, budget_s=budget_s, random=random)
    raise leased(address, blob.metadata)


async def _raise_under_lease(lease: BlobLease, guard: Guard, *, budget_s: float | None, random: Random) -> Claim:
    blob = await patiently(lease.properties, budget_s=budget_s, random=random)
    block = (blob.sequence_number or 0) // EPOCHS + 1
    wanted = block * EPOCHS + random.randrange(EPOCHS // 2)

    async def raise_epoch() -> int:
        return await lease.raise_epoch(wanted, guard.lease_id)

    number = await patiently(raise_epoch, budget_s=budget_s, random=random)
    if number != wanted:
        raise StoreError(
            f"the epoch is {number} where {wanted} was set under our lease",
            Kind.FENCED,
            remedy="another holder uses the same lease id; find it, or attach with a lease id of its own",
        )
    guard.epoch = number
    return Claim(guard, blob)


async def _sign(lease: BlobLease, claim: Claim, node: str) -> None:
    """Write who we are, beside what metadata there is. Rights for that may be missing: a warning."""
    name = "".join(c for c in node if c.isascii() and c.isprintable()).strip() or "unnamed"
    since = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    metadata = {**claim.blob.metadata, HOLDER_NODE: name, HOLDER_SINCE: since}
    await _quietly(lease.set_metadata(metadata, claim.guard.lease_id), "writing the holder's name")


async def _unsign(lease: BlobLease, lease_id: str) -> None:
    metadata = (await lease.properties()).metadata
    left = {name: value for name, value in metadata.items() if name not in (HOLDER_NODE, HOLDER_SINCE)}
    if left != metadata:
        await lease.set_metadata(left, lease_id)


async def _quietly(call: Awaitable[None], what: str) -> None:
    try:
        await call
    except StoreError as error:
        log.warning("%s failed: %s", what, error)
