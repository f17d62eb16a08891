"""One writer, provably: keeps the lease, raises the epoch, and lets no modifying call pass that could do harm.

States (`state`; `on_state` is told of each change):

    attached    the lease is held, no raise is due: modifying calls pass
    recovering  a raise of the epoch is due and its last attempt failed: modifying calls wait
    paused      the lease is not known to be held: modifying calls wait
    fenced      another holder has, or had, the disk: everything fails with Kind.FENCED, for good
    released    we gave the disk up: modifying calls fail

    attached <-> recovering, attached <-> paused <-> recovering;  each of these -> fenced, released;  no way back.
Waiting is bounded by Retry's budget, above. Reads carry no lease and pass in every state but fenced.

**The epoch.** A modifying request whose outcome is unknown may still be applied at any later moment, as long as the
blob's sequence number is the one it was sent with. Invariants:

E1. `guard.epoch` is a number whose raise was acknowledged; `_tried`, the highest ever asked for, is it or the next.
E2. If a request of the current epoch may still land, `_raise_due` is true. It becomes true in the same step in which
    the call ends (`_judge` has no await), so before Order can let an overlapping call start.
E3. No modifying call passes while `_raise_due`. `_raise_due` becomes false only in the step in which the raise is
    acknowledged and guard.epoch grows; requests sent in older epochs are dead from then on.
E4. Between the last check in `_gate` and the call of the layer below there is no await. The layer below may wait (for a
    slot); a raise may become due meanwhile, but only for requests that do not overlap this one, by Order.
E5. A grow's request is void once the blob changed since a look that showed guard.epoch (pageblob.py): E2, E3 hold.

How a call ends decides: success, or StoreError with unknown=False: nothing of it is left in flight. StoreError with
unknown=True, cancellation, any other exception: something may be. The request's epoch, where the error names it, spares
a raise when that epoch is over. One raise serves all calls that are ambiguous then; a background task makes it, so no
caller's cancellation takes it away from the others. A lost answer is asked for again with the same number.
412 SequenceNumberConditionNotMet: if we asked for a higher number than the request carried, our own raise overtook it,
and it is sent again in the new epoch. If not, somebody else raised the number: doubt.

**The lease.** L1. guard.valid_until counts from before the request that last took or renewed the lease was sent, by a
clock that does not stand still while the machine is suspended. The first call held back after that has it renewed.
L2. A doubt (the service refused our lease id on a data request, or the epoch is not ours) makes valid_until -inf at
once and asks for a renewal; only a renewal sent after the last doubt ends it, and it also looks at the sequence number.
L3. A renewal refused with a lease error fences. The service renews even an expired lease unless somebody leased or
changed the blob since ("Lease Blob", remarks). There is no second acquire: the caches above know the disk as it was.
L4. The number after a lapse or a doubt must lie between the epoch from before that renewal was sent (the answer to the
look may be older than that to a raise) and `_tried`, and the answer to a raise must be what was asked for. Else another
attachment raised it, under its own tag, and this one is fenced.
L5. After a lapse or a doubt a raise is due: with another ETag, no acquire or break sent meanwhile can land (claim.py).
L6. A flush returns when a call, or a renewal and a look, proved lease and epoch a few seconds ago (token.py). Else
flushes, and zeros over free pages, would succeed; under a lease id that another has, too, for ever.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from random import Random

import trio

from blobfuse_dysk.clock import bound_clock
from blobfuse_dysk.detached import attach
from blobfuse_dysk.errors import Kind, StoreError
from blobfuse_dysk.invariant import broken
from blobfuse_dysk.store.contract import Buffer, Extent, Store
from blobfuse_dysk.store.lease.epoch import next_number
from blobfuse_dysk.store.lease.requests import BlobLease
from blobfuse_dysk.store.lease.token import Guard, HoldState, lease_time
from blobfuse_dysk.store.parts.backoff import Backoff
from blobfuse_dysk.store.passage import NO, Passage, Rest, begin_of

__all__ = ["Fence"]

log = logging.getLogger(__name__)
INFINITE_CHECK_S = 60.0  # how often an infinite lease is renewed, to notice that it was broken
RENEW_AGAIN_S = 3.0  # most time between attempts of a renewal that fails


class Fence(Store):
    """Passes modifying calls while this node is provably the only writer. `run` must be running beside it.

    guard: lease and epoch as `claim` took them. lease_s: the lease's term, None for infinite. first: see telling.py.
    """

    def __init__(
        self,
        inner: Store,
        lease: BlobLease,
        guard: Guard,
        *,
        lease_s: float | None,
        on_state: Callable[[HoldState], None] = lambda state: None,
        random: Random | None = None,
        first: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.raises, self._first = 0, first
        self._inner, self._lease, self._guard = inner, lease, guard
        self._lease_s = math.inf if lease_s is None else lease_s
        self._period_s = INFINITE_CHECK_S if lease_s is None else lease_s / 3
        self._renew_at = trio.current_time() + self._period_s - guard.age_s(lease_s)
        self._on_state = on_state
        self._random = random or Random()
        self._tried = guard.epoch
        self._raise_due = False
        self._lapses = 0  # and doubts, that ended well
        self._raise_error: StoreError | None = None
        self._renew_error: StoreError | None = None
        self._doubts = 0
        self._fenced: StoreError | None = None
        self._released = False
        self._changed = trio.Event()
        self._renew_wanted = trio.Event()
        self._now = bound_clock()
        self._failures = 0  # of renewals
        self._look_wanted = False  # by a flush, after the next renewal
        self._told = self.state
        read, write = inner.plain_read, inner.plain_write
        self.plain_read = read and read.under(self._begin_read)
        self.plain_write = write and write.under(self._begin_write, self._end_write, self._rest_of_write)
        self._begin_read_below, self._begin_write_below = begin_of(read), begin_of(write)

    @property
    def size(self) -> int:
        return self._inner.size

    @property
    def state(self) -> HoldState:
        """One of the words at the top of this file."""
        if self._fenced is not None:
            return "fenced"
        if self._released:
            return "released"
        if not self._guard.certain:
            return "paused"
        return "recovering" if self._raise_due and self._raise_error is not None else "attached"

    @property
    def blocker(self) -> StoreError | None:
        """Why modifying calls fail, or wait: what the last attempt failed for. None if they pass, or none did yet."""
        return self._fenced or (self._raise_error if self._guard.certain else self._renew_error)

    async def read(self, offset: int, length: int) -> Buffer:
        """Pass, unless fenced."""
        if self._fenced is not None:
            raise self._fenced.afresh()
        return await self._inner.read(offset, length)

    async def write(self, offset: int, data: Buffer) -> None:
        """Pass when the lease is held and no raise is due, else wait for that."""
        if not self.is_open:
            await self._gate()
        await self._sent(self._now(), self._inner.write(offset, data))

    async def zero(self, offset: int, length: int) -> None:
        """As write."""
        if not self.is_open:
            await self._gate()
        await self._sent(self._now(), self._inner.zero(offset, length))

    async def _sent(self, sent_at: float, call: Awaitable[None]) -> None:
        try:
            await call
        except BaseException as error:
            self._judge(error)
            raise
        if sent_at > self._guard.proved_at:
            self._guard.proved_at = sent_at

    async def flush(self) -> None:
        """Pass when the lease was proved a moment ago, else have it renewed first (L6)."""
        if self._fenced is not None:
            raise self._fenced.afresh()
        if not self._guard.is_proved:
            await self._prove()
        await self._inner.flush()

    async def extents(self, offset: int, length: int) -> list[Extent]:
        """Pass, unless fenced."""
        if self._fenced is not None:
            raise self._fenced.afresh()
        return await self._inner.extents(offset, length)

    async def grow(self, size: int) -> None:
        if not self.is_open:
            await self._gate()
        try:
            await self._inner.grow(size)
        except BaseException as error:
            self._judge(error)
            raise

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def run(self) -> None:
        """Renew the lease and raise the epoch when due, until fenced, released or cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_lease)
            nursery.start_soon(self._keep_epoch)
            nursery.start_soon(self._watch_clock)
            if self._first is not None:
                await self._first()
                self._first = None
                self._announce()

    def release(self) -> None:
        """Let no modifying call pass any more and stop renewing; whoever calls this gives the lease up next."""
        self._released = True
        self._guard.valid_until = -math.inf
        self._renew_wanted.set()
        self._announce()

    # -- the plain lane (passage.py); PageBlob looks at the lease's time, in the step of E4 --

    def _begin_read(self, passage: Passage) -> int:
        return NO if self._fenced is not None else self._begin_read_below(passage)

    def _begin_write(self, passage: Passage) -> int:
        return NO if self._raise_due or self._first is not None else self._begin_write_below(passage)

    def _end_write(self, passage: Passage) -> None:
        if passage.started > self._guard.proved_at:
            self._guard.proved_at = passage.started

    def _rest_of_write(self, passage: Passage, rest: Rest) -> Rest:
        return self._sent(passage.started, rest)

    # -- the gate: no await in is_open, _judge, _suspect, _doubt, _fence, _announce --

    @property
    def is_open(self) -> bool:
        """Whether modifying calls pass now."""
        return not self._raise_due and self._guard.certain and self._first is None

    async def _prove(self) -> None:
        """Return when a renewal that was sent after this call began has succeeded, and a look; raise if one fails."""
        await attach()
        asked_at, failures = self._now(), self._failures
        self._look_wanted = True
        self._renew_wanted.set()
        while self._guard.proved_at < asked_at:
            if self._fenced is not None:
                raise self._fenced.afresh()
            if self._released:
                return  # nothing is changed any more, and what is flushed here was acknowledged
            if self._failures != failures and self._renew_error is not None:
                raise self._renew_error.afresh()
            await self._changed.wait()

    async def _gate(self) -> None:
        """Return when a modifying call may pass; nothing awaits between the last check and the return."""
        await attach()
        while not self.is_open:
            if self._fenced is not None:
                raise self._fenced.afresh()
            if self._released:
                raise StoreError("the disk was detached", Kind.REJECTED)
            if not self._guard.certain and self._renew_error is None:
                self._renew_wanted.set()  # it ran out before the next renewal was due: this machine was suspended
            blocker = self.blocker
            if blocker is not None and not blocker.kind.retryable:
                raise blocker.afresh()
            await self._changed.wait()

    def _judge(self, error: BaseException) -> None:
        """Draw the conclusions from how a modifying call ended (E2)."""
        if not isinstance(error, StoreError):
            self._suspect(None)
            return
        if error.unknown:
            self._suspect(error.epoch)
        overtaken = error.epoch is not None and error.epoch < self._tried
        if error.kind is Kind.LEASE or (error.kind is Kind.EPOCH and not overtaken):
            self._doubt(error)

    def _suspect(self, epoch: int | None) -> None:
        """A request sent in this epoch (None: in the current one, at the latest) may still land."""
        if epoch is not None and epoch < self._guard.epoch:
            return
        if not self._raise_due:
            self._raise_due = True
            self._announce()

    def _doubt(self, error: StoreError) -> None:
        if self._fenced is not None or self._released:
            return
        if self._guard.valid_until > -math.inf:
            log.warning("the lease is in doubt: %s", error)
        self._doubts += 1
        self._guard.valid_until = -math.inf
        self._renew_wanted.set()
        self._announce()

    def _fence(self, reason: str) -> None:
        if self._fenced is not None or self._released:
            return
        log.error("fenced: %s", reason)
        self._guard.valid_until = -math.inf
        self._fenced = StoreError(
            f"this node may no longer write: {reason}",
            Kind.FENCED,
            remedy="unmount and detach it here, then attach it where it is needed",
        )
        self._renew_wanted.set()
        self._announce()

    def _announce(self) -> None:
        """Wake everybody who waits for a change, and report the state if it is another one."""
        self._changed.set()
        self._changed = trio.Event()
        if self.state != self._told:
            self._told = self.state
            self._on_state(self._told)

    @property
    def _ended(self) -> bool:
        return self._fenced is not None or self._released

    # -- background --

    async def _keep_lease(self) -> None:
        while not self._ended:
            with trio.move_on_at(self._renew_at):
                await self._renew_wanted.wait()
            if self._ended:
                return
            self._renew_wanted = trio.Event()
            try:
                await self._renew()
            except StoreError as error:
                if self._renew_error is None:
                    log.warning("the lease could not be renewed, trying on: %s", error)
                self._renew_error = error
                self._failures += 1
                self._renew_at = trio.current_time() + self._random.uniform(RENEW_AGAIN_S / 3, RENEW_AGAIN_S)
                self._announce()

    async def _renew(self) -> None:
        """One renewal and, after a lapse or a doubt or for a flush, a look at the sequence number (L2 to L4, L6)."""
        doubts, least = self._doubts, self._guard.epoch
        look, self._look_wanted = self._look_wanted, False
        sent_at, valid_from = trio.current_time(), lease_time()
        try:
            await self._lease.renew(self._guard.lease_id)
        except StoreError as error:
            if error.kind is not Kind.LEASE:
                raise
            self._fence(f"the lease is lost ({error})")
            return
        lapsed = not self._guard.certain  # perhaps before the service carried the renewal out
        if (look or lapsed) and not self._ended:
            number = (await self._lease.properties()).sequence_number or 0
            if not least <= number <= self._tried:
                self._fence(f"the epoch is {number} where {self._guard.epoch} is ours: another attachment raised it")
                return
        if self._ended:
            return
        if lapsed:
            self._raise_due = True
            self._lapses += 1
        if self._doubts != doubts:
            self._renew_wanted.set()  # a doubt arose after this renewal was sent: it proves nothing
            return
        if self._renew_error is not None:
            log.info("the lease is renewed again")
            self._renew_error = None
        self._renew_at = sent_at + self._period_s
        self._guard.valid_until = valid_from + self._lease_s
        if look or lapsed:
            self._guard.proved_at = max(self._guard.proved_at, sent_at)
        self._announce()

    async def _keep_epoch(self) -> None:
        while not self._ended:
            await self._wait_for(lambda: self._raise_due)
            backoff = Backoff(self._random, first_s=0.05, most_s=2.0)
            while self._raise_due and not self._ended:
                await self._wait_for(lambda: self._guard.certain)
                if self._ended:
                    return
                try:
                    await self._raise()
                except StoreError as error:
                    if self._raise_error is None:
                        log.warning("the epoch could not be raised, trying on: %s", error)
                    self._raise_error = error
                    if error.kind is Kind.LEASE:
                        self._doubt(error)
                    self._announce()
                    await trio.sleep(backoff.next_s(error))

    async def _raise(self) -> None:
        """One attempt. On success guard.epoch grows and the raise is no longer due, in one step (E3)."""
        lapses = self._lapses
        self._tried = max(self._tried, next_number(self._guard.epoch))
        if self._tried != next_number(self._guard.epoch):
            broken(f"E1: the epoch is {self._guard.epoch}, but {self._tried} is the highest number asked for")
        number = (await self._lease.raise_epoch(self._tried, self._guard.lease_id)).number
        if number != self._tried:
            self._fence(f"the epoch is {number} where {self._tried} was set: another attachment raised it")
            return
        self._guard.epoch = number
        self._raise_due = self._lapses != lapses  # one that was sent before a lapse ended is not enough (L5)
        self._raise_error = None
        self.raises += 1
        self._announce()

    async def _watch_clock(self) -> None:
        """Report `paused` when the lease runs out while nothing else happens."""
        while not self._ended:
            changed = self._changed
            left_s = self._guard.valid_until - lease_time()
            with trio.move_on_after(left_s if left_s > 0 else math.inf):
                await changed.wait()
            if self.state != self._told:
                self._announce()

    async def _wait_for(self, condition: Callable[[], bool]) -> None:
        while not condition() and not self._ended:
            await self._changed.wait()
