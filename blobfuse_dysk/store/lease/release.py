"""Giving a disk up: what an attachment holds when it ends, and what one that failed may hold.

Theory. A release, too, may arrive late, when the disk is attached again under the same lease id (the user's). So it is
sent on condition that the blob is as it was looked at, and only if the number then is one of ours, or is the one from
before we came and nobody had the lease then: else the lease is somebody else's. Any attachment that follows raises the
number, which makes our release void. An id that we drew ourselves is nobody else's, so its release needs no condition.
The acquire of an attach that sets the term, after the raise, is made void first if it may still be carried out, by
another raise: a release changes no ETag, and such a lease may be infinite. That takes a lease, and the one with a term
may be over by then: so it is taken once more, likewise on condition.

All this is tried again while there is time: a lease without a term that is left behind stays.
"""

from __future__ import annotations

import logging
from random import Random

import trio

from blobfuse_dysk.azure.wire import Condition
from blobfuse_dysk.errors import Kind, StoreError
from blobfuse_dysk.store.lease import epoch
from blobfuse_dysk.store.lease.attempts import Attempts
from blobfuse_dysk.store.lease.claim import FIRST_TERM_S, Claiming
from blobfuse_dysk.store.lease.holdername import unsign
from blobfuse_dysk.store.lease.requests import BlobLease
from blobfuse_dysk.store.lease.token import Guard

__all__ = ["give_up", "take_back"]

log = logging.getLogger(__name__)
GIVE_UP_S = 10.0
TRIES = 3  # if something of ours still changes the blob


async def give_up(lease: BlobLease, guard: Guard) -> None:
    """Take our name off and release the lease. Best effort, within GIVE_UP_S; the lease would expire anyway.

    Everything is flushed; nothing of ours is under way but, perhaps, a raise.
    """
    with trio.move_on_after(GIVE_UP_S) as scope:
        try:
            await _give_up(lease, guard)
        except StoreError as error:
            log.warning("releasing the lease failed: %s", error)
    if scope.cancelled_caught:
        log.warning("the lease was not released within %g s; it ends by itself unless it is infinite", GIVE_UP_S)


async def _give_up(lease: BlobLease, guard: Guard) -> None:
    again = Attempts(Random(), GIVE_UP_S)
    for left in reversed(range(TRIES)):
        blob = await again(lease.properties)
        number = blob.sequence_number or 0
        if epoch.tag(number) != epoch.tag(guard.epoch):
            log.warning("the lease is not released: the epoch is %d, of another attachment", number)
            return
        etag = await unsign(lease, guard.lease_id, blob.metadata, blob.etag)
        try:
            await _release(lease, guard.lease_id, Condition(if_match=etag), again)
            return
        except StoreError as error:
            if error.kind is not Kind.CHANGED or not left:
                raise


async def take_back(lease: BlobLease, claiming: Claiming) -> None:
    """Release what an attach that failed holds, or may come to hold, unless it is somebody else's as well."""
    if not claiming.may_hold:
        return
    with trio.CancelScope(deadline=trio.current_time() + GIVE_UP_S, shield=True):
        try:
            await _take_back(lease, claiming)
        except StoreError as error:
            log.warning("releasing the lease of a failed attach failed: %s", error)


async def _take_back(lease: BlobLease, claiming: Claiming) -> None:
    again = Attempts(Random(), GIVE_UP_S)
    if claiming.is_own_id and not claiming.term_may_land:
        await _release(lease, claiming.lease_id, None, again)
        return
    for left in reversed(range(TRIES)):
        blob = await again(lease.properties)
        number, etag = blob.sequence_number or 0, blob.etag
        is_ours = epoch.tag(number) == claiming.own_tag
        if not (is_ours or claiming.is_own_id or number == claiming.found_before):
            return
        try:
            if is_ours and claiming.term_may_land:
                etag = await _end_acquires(lease, claiming.lease_id, number, etag, again)
            await _release(lease, claiming.lease_id, Condition(if_match=etag), again)
            return
        except StoreError as error:
            if error.kind is not Kind.CHANGED or not left:
                raise


async def _end_acquires(lease: BlobLease, lease_id: str, number: int, etag: str, again: Attempts) -> str:
    """Let no acquire that sets the term be carried out any more. Returns the blob's ETag then."""
    condition = Condition(if_match=etag)
    try:
        await again(lambda: lease.acquire(lease_id, FIRST_TERM_S, condition))
        return (await again(lambda: lease.raise_epoch(epoch.next_number(number), lease_id, condition))).etag
    except StoreError as error:
        if error.kind is Kind.CHANGED:
            raise
        log.warning("a lease may still be taken by an attach that failed: %s", error)
        return etag


async def _release(lease: BlobLease, lease_id: str, condition: Condition | None, again: Attempts) -> None:
    try:
        await again(lambda: lease.release(lease_id, condition))
    except StoreError as error:
        if error.kind is not Kind.LEASE or not again.unknown:
            raise  # else it was done, and the answer lost
