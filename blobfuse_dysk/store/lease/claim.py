"""Taking a disk for this node: the lease, then the epoch.

Theory. A request that takes, breaks or gives up a lease, or raises the number, may arrive late: after we gave up
waiting for its answer, after the attach failed, after others had the disk. So each of them carries a condition, the
ETag of the blob as it was looked at when the request was thought of; whatever changes the blob makes it void. In this
order:

1. **Look** at the blob: ETag, sequence number, state of the lease. A disk that another has is refused here, unasked.
2. **Break** the lease, if told to and if there is one.
3. **Acquire** it. From here on no request with another lease id is accepted.
4. **Raise** the number to one of the next generation (epoch.py), still on condition that nothing changed since the
   look: so the number looked at is the one raised, although it was read before there was a lease. Once this is
   acknowledged, no request of any earlier holder or worker can land, not even one that carries the same lease id; and
   no copy of an acquire or a break that was sent up to now, by us or by anybody, since the ETag is another one.
5. Only then use the disk.

Look, acquire and raise wait for each other: no condition without the look, no raise without the lease, no use without
the raise. Reading need not: the raise is carried out only while the blob has the ETag of the look, so nothing changed
it in between, stragglers included, and after it nobody else can. What is read after the look is what the claimed disk
has, if `Claim.rests_on` is that look's ETag (preview.py). Else the map of allocated pages is read only now: a straggler
could have made a page allocated that an earlier map calls free. Telling the blob whose it is comes last (telling.py).

Where the condition does not hold, something changed the blob meanwhile: look again. If the number is the one we asked
for, it was our own raise whose answer was lost; if it is somebody else's of our generation or a later one, another
attachment has the disk, under the same lease id; else it was a straggler of a former holder.

A holder that goes on writing changes the ETag between each look and what follows. So after some looks the condition
becomes that the blob was not changed after a moment in the near future (`If-Unmodified-Since`): a request with a last
moment. If the end of such a one is not known, the claim ends with one more raise after that moment, which makes it
void.

An infinite lease is taken for a minute first, and made infinite under the raised number: else a late copy of the
acquire of an attach that failed could leave a lease for ever with nobody to release it. A lease under the user's id
that there is already is renewed first, which keeps its term, and gets ours under the raised number: its holder counts
on it.

**Resuming** (a new worker of the same attachment, or an attach of a disk whose attachment died here): the number must
have our tag and be no lower than the one known; then renew, then raise, likewise. That the lease can be renewed proves
nothing by itself (epoch.py). The lease keeps the term it was acquired with, whatever the options say now. Whoever had
the disk in between, the attachment is fenced: the caches above us are about a disk that is not there any more.

At the end the lease must still be held for certain. Answers that took longer than its term are followed by a renewal, a
look and another raise, as after any lapse (keepalive.py).
Source: https://learn.microsoft.com/rest/api/storageservices/lease-blob, "Remarks" and the two tables of outcomes.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import TypeVar

import trio

from blobfuse_dysk.azure.explain import leased
from blobfuse_dysk.azure.signing import http_date, parse_http_date
from blobfuse_dysk.azure.wire import BlobProperties, Condition, SequenceNumber
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.errors import Kind, LeasedError, StoreError
from blobfuse_dysk.store.lease import epoch
from blobfuse_dysk.store.lease.attempts import Attempts
from blobfuse_dysk.store.lease.holdername import is_signed
from blobfuse_dysk.store.lease.ownership import check_own, lost, not_as_set, taken
from blobfuse_dysk.store.lease.requests import BlobLease
from blobfuse_dysk.store.lease.token import Guard, lease_time
from blobfuse_dysk.store.parts.backoff import Backoff

__all__ = ["Claim", "Claiming"]

T = TypeVar("T")
ETAG_LOOKS = 4  # looks of a new attachment after which the ETag is the condition; after later ones it is a last moment
LAST_MOMENT_S = 3  # from the blob's last change on; whole seconds, as HTTP dates have
MOST_LOOKS = 10  # of a new attachment
MOST_PAUSE_S = 1.0  # between looks of a resumed one, which has no limit of them
CERTAIN_TRIES = 3
FIRST_TERM_S = 60.0  # of a lease that is to be infinite


@dataclass(frozen=True, slots=True)
class Claim:
    """A disk that is ours: what Fence starts from, and the blob as it was when its number was raised.

    etag: the blob's, after the raise. lease_s: the lease's term, None for infinite. rests_on: the ETag that the blob
    had from the look to the raise, if the lease was never in doubt since; None if that is not certain.
    """

    guard: Guard
    blob: BlobProperties
    etag: str
    lease_s: float | None
    rests_on: str | None = None


class Claiming:
    """One try to take a disk: `take` or `resume`, once. What it did is there to be taken back (release.py).

    address: for messages. blob: as it was looked at just now. lease_id: one that the user chose, or that is held
    (resume), or None for a new one. lease_s: the term that is wanted, or held; None for infinite.
    """

    def __init__(
        self,
        lease: BlobLease,
        blob: BlobProperties,
        *,
        address: DiskAddress,
        lease_id: str | None,
        lease_s: float | None,
        budget_s: float | None,
        random: Random,
    ) -> None:
        self.lease_id = lease_id or str(uuid.uuid4())
        self.is_own_id = lease_id is None
        """Whether nobody else can have a lease under this id."""
        self.own_tag: int | None = None
        """Of the numbers that we set; None until `take` draws it."""
        self.may_hold = False
        """Whether an acquire of ours was carried out, or may be."""
        self.found_before: int | None = None
        """The blob's number when the first acquire was sent that may have been carried out.

        None if the lease may have been somebody else's then: one that expired can still be renewed.
        """
        self.term_may_land = False
        """Whether the acquire that gives the lease its own term, after the raise, may still be carried out."""
        self._lease = lease
        self._blob = blob
        self._found = blob.sequence_number or 0
        self._looks = 1
        self._address = address
        self._lease_s = lease_s
        self._attempts = Attempts(random, budget_s)
        self._random = random
        self._sent_at = -math.inf  # lease_time() before the request that last took or renewed the lease
        self._may_land = False  # a request with a last moment whose end is not known
        self._resuming = False
        self._raised_to: int | None = None  # the number last asked for
        self._raise_sent_at = -math.inf

    async def take(self, *, break_lease: bool, only_from: str | None = None) -> Claim:
        """Take lease and epoch for a new attachment. Raises LeasedError or StoreError; see release.take_back then.

        StoreError(FENCED): another attachment was taken at the same time. only_from: the one node that may lose the
        disk by this. Nothing is written but the number.
        """
        own_tag = self.own_tag = epoch.draw_tag(self._found, self._random)
        while True:
            if only_from is not None and not is_signed(self._blob, only_from):
                raise self._leased()
            if await self._acquire(break_lease):
                term_s = FIRST_TERM_S if self._lease_s is None else self._lease_s
                claim = await self._raise(own_tag, term_s)
                if claim is not None and self._may_land:
                    claim = await self._outlast(claim)
                if claim is not None:
                    break
            await self._look()
        if self._lease_s is None or claim.guard.valid_until == -math.inf:
            claim = await self._set_term(claim)
        return await self._make_certain(claim)

    async def resume(self, held_epoch: int) -> Claim:
        """Take an attachment's own lease up again. StoreError(FENCED) if somebody had the disk in between.

        held_epoch: the last one that was known; it may have been raised since, by the worker that is gone.
        """
        self._resuming = True
        term_s = math.inf if self._lease_s is None else self._lease_s
        backoff = Backoff(self._random, first_s=0.01, most_s=MOST_PAUSE_S)
        while True:
            check_own(self._found, held_epoch)
            await self._renew()
            claim = await self._raise(epoch.tag(held_epoch), term_s, held_epoch)
            if claim is not None:
                return await self._make_certain(claim)
            await trio.sleep(backoff.next_s())
            await self._look()  # the lease lapsed meanwhile, or it is lost

    # -- steps --

    async def _look(self) -> None:
        self._blob = await self._attempts(self._lease.properties)
        self._found = self._blob.sequence_number or 0
        self._looks += 1
        if self._looks > MOST_LOOKS and not self._resuming:
            raise StoreError(
                f"{self._address} was changed again and again while it was being attached",
                Kind.REJECTED,
                remedy="find out who writes to it, then attach it again",
            )

    def _condition(self) -> Condition:
        """What what follows a look rests on."""
        changed_at = parse_http_date(self._blob.last_modified)
        if self._resuming or self._looks <= ETAG_LOOKS or changed_at is None:
            return Condition(if_match=self._blob.etag)
        return Condition(if_unmodified_since=http_date(changed_at + LAST_MOMENT_S))

    async def _conditional(self, call: Callable[[Condition], Awaitable[T]]) -> T:
        condition = self._condition()
        try:
            return await self._attempts(partial(call, condition))
        finally:
            if condition.if_unmodified_since and self._attempts.unknown:
                self._may_land = True

    async def _acquire(self, break_lease: bool) -> bool:
        """Whether the lease is ours; if not, look and try again. LeasedError if it is another's for good."""
        held = self._blob.lease_state in ("leased", "breaking")
        if held and self.is_own_id and not self.may_hold:  # so it is another's
            if not break_lease:
                raise self._leased()
            if not await self._break():
                return False
        free = self._blob.lease_state in ("available", "broken")
        if not self.may_hold:
            self.found_before = self._found if free else None
        try:
            if self.is_own_id or free or not await self._renew_shared():
                await self._conditional(self._acquire_once)
        except StoreError as error:
            self.may_hold = self.may_hold or self._attempts.unknown
            if error.kind is Kind.CHANGED:
                return False
            if error.kind is not Kind.LEASE:
                raise
        except BaseException:
            self.may_hold = True
            raise
        else:
            self.may_hold = True
            return True
        if not break_lease:
            await self._look()
            raise self._leased()
        await self._break()
        return False

    def _leased(self) -> LeasedError:
        blob = self._blob
        return leased(self._address, blob.metadata, blob.lease_state, endless=blob.lease_duration == "infinite")

    async def _acquire_once(self, condition: Condition) -> None:
        self._sent_at = lease_time()
        await self._lease.acquire(self.lease_id, FIRST_TERM_S if self._lease_s is None else self._lease_s, condition)

    async def _renew_shared(self) -> bool:
        """Whether there is a lease under the user's id already; its term is not known."""
        try:
            await self._attempts(partial(self._lease.renew, self.lease_id))
        except StoreError as error:
            if error.kind is not Kind.LEASE:
                raise
            return False
        self._sent_at = -math.inf
        return True

    async def _break(self) -> bool:
        """Whether there is no lease any more; if not, look and try again."""
        try:
            await self._conditional(self._lease.break_now)
        except StoreError as error:
            if error.kind not in (Kind.CHANGED, Kind.LEASE):
                raise
            return error.kind is Kind.LEASE  # it ended by itself
        return True

    async def _raise(self, own_tag: int, term_s: float, held_epoch: int | None = None) -> Claim | None:
        """The disk with its number raised to one of ours; None if there is no lease (any more).

        held_epoch: of a resumed attachment.
        """
        backoff = Backoff(self._random, first_s=0.01, most_s=MOST_PAUSE_S)
        while True:
            blob, basis = self._blob, self._condition().if_match
            wanted = self._raised_to = epoch.claim_number(self._found, own_tag, self._random)
            try:
                raised = await self._conditional(self._raise_once)
                number, etag, proved_at = raised.number, raised.etag, self._raise_sent_at
            except StoreError as error:
                if error.kind is Kind.LEASE:
                    return None
                if error.kind is not Kind.CHANGED:
                    raise
                await self._look()
                number, etag, proved_at = self._found, self._blob.etag, -math.inf
                if held_epoch is not None:
                    check_own(self._found, held_epoch)
                    await trio.sleep(backoff.next_s())
                straggles = epoch.tag(number) == own_tag or epoch.generation(number) < epoch.generation(wanted)
                if number != wanted and straggles:
                    continue  # what changed it is of somebody who had the disk before, or of our own, from before
            if number != wanted:
                raise not_as_set(number, wanted)
            guard = Guard(self.lease_id, number, self._sent_at + term_s, proved_at)
            return Claim(guard, blob, etag, self._lease_s, basis)

    async def _outlast(self, claim: Claim) -> Claim | None:
        """Wait until the last moment of what was sent is over, and make it void; None if it ended our own lease."""
        await trio.sleep(LAST_MOMENT_S + 1)
        self._may_land = False
        return await self._raise_on(claim)

    async def _raise_on(self, claim: Claim) -> Claim | None:
        """Raise the number once more: no copy of anything that was sent under the ETag so far can land then.

        None if there is no lease any more.
        """
        wanted = self._raised_to = epoch.next_number(claim.guard.epoch)
        etag = claim.etag
        while True:
            try:
                raised = await self._attempts(partial(self._raise_once, Condition(if_match=etag)))
                number, etag = raised.number, raised.etag
            except StoreError as error:
                if error.kind is Kind.LEASE:
                    return None
                if error.kind is not Kind.CHANGED:
                    raise
                await self._look()
                number, etag = self._found, self._blob.etag
                if number == claim.guard.epoch:
                    continue  # a raise of the last holder's came late
            if number != wanted:
                raise not_as_set(number, wanted)
            claim.guard.epoch = number
            return replace(claim, etag=etag, rests_on=None)

    async def _raise_once(self, condition: Condition) -> SequenceNumber:
        assert self._raised_to is not None
        self._raise_sent_at = trio.current_time()
        return await self._lease.raise_epoch(self._raised_to, self.lease_id, condition)

    async def _set_term(self, claim: Claim) -> Claim:
        """Acquire the lease that is ours again, for the term that is wanted."""
        self.term_may_land = True
        unknown = False
        while True:
            condition = Condition(if_match=claim.etag)
            self._sent_at = lease_time()
            try:
                await self._attempts(partial(self._lease.acquire, self.lease_id, self._lease_s, condition))
                break
            except StoreError as error:
                unknown = unknown or self._attempts.unknown
                if error.kind is Kind.LEASE:
                    raise taken(str(error)) from error
                if error.kind is not Kind.CHANGED:
                    raise
            await self._look()
            if self._found != claim.guard.epoch:
                raise taken(f"the epoch is {self._found} where {claim.guard.epoch} is ours")
            claim = replace(claim, etag=self._blob.etag, rests_on=None)
        claim.guard.valid_until = self._sent_at + (math.inf if self._lease_s is None else self._lease_s)
        if unknown or self._attempts.unknown:
            raised = await self._raise_on(claim)
            if raised is None:
                raise taken("the lease was lost again")
            claim = raised
        self.term_may_land = False
        return claim

    async def _make_certain(self, claim: Claim) -> Claim:
        """The claim, while its lease is held for sure; nothing awaits between the check and the return."""
        tries = 0
        while not claim.guard.certain:
            tries += 1
            if tries > CERTAIN_TRIES:
                raise StoreError(
                    f"the service takes too long to answer for a lease of {self._lease_s:g} s",
                    Kind.UNREACHABLE,
                    remedy="attach with a longer lease",
                )
            await self._renew()
            await self._look()
            if self._found not in (claim.guard.epoch, self._raised_to):
                raise taken(f"the epoch is {self._found} where {claim.guard.epoch} is ours")
            claim.guard.epoch = self._found  # the last raise may have been carried out before the lease ended
            raised = await self._raise_on(replace(claim, etag=self._blob.etag))
            if raised is None:
                continue
            claim = raised
            claim.guard.valid_until = self._sent_at + (math.inf if claim.lease_s is None else claim.lease_s)
        return claim

    async def _renew(self) -> None:
        async def renew() -> None:
            self._sent_at = lease_time()
            await self._lease.renew(self.lease_id)

        try:
            await self._attempts(renew)
        except StoreError as error:
            if error.kind is not Kind.LEASE:
                raise
            raise (lost if self._resuming else taken)(str(error)) from error
