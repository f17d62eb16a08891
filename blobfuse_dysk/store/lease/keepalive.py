"""Keeps what makes this node the only writer: renews the lease, raises the epoch, says how the disk is held.

States (`state`; `on_state` is told of each change):

    attached    the lease is held, no raise is due: modifying calls pass
    recovering  a raise of the epoch is due and its last attempt failed: modifying calls wait
    paused      the lease is not known to be held: modifying calls wait
    fenced      another holder has, or had, the disk: everything fails with Kind.FENCED, for good
    released    we gave the disk up: modifying calls fail

    attached <-> recovering, attached <-> paused <-> recovering;  each of these -> fenced, released;  no way back.

What passes in which state is Fence's (store/layers/fence.py), which extends this and has the other invariants.

**The epoch.**
E1. `guard.epoch` is a number whose raise was acknowledged; `_tried`, the highest ever asked for, is it or the next.
E3. No modifying call passes while `_raise_due`. `_raise_due` becomes false only in the step in which the raise is
    acknowledged and guard.epoch grows; requests sent in older epochs are dead from then on.

One raise serves all calls that are ambiguous then; a background task makes it, so no caller's cancellation takes it
away from the others. A lost answer is asked for again with the same number.

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
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from random import Random

import trio

from blobfuse_dysk.errors import Kind, StoreError
from blobfuse_dysk.invariant import broken
from blobfuse_dysk.store.lease.epoch import next_number
from blobfuse_dysk.store.lease.requests import BlobLease
from blobfuse_dysk.store.lease.token import Guard, HoldState, lease_time
from blobfuse_dysk.store.parts.backoff import Backoff

__all__ = ["KeepAlive", "renewal_period_s"]

log = logging.getLogger(__name__)
INFINITE_CHECK_S = 60.0  # how often an infinite lease is renewed, to notice that it was broken
RENEW_AGAIN_S = 3.0  # most time between attempts of a renewal that fails


def renewal_period_s(lease_s: float | None) -> float:
    """Seconds between two renewals of a lease of this term, None for infinite."""
    return INFINITE_CHECK_S if lease_s is None else lease_s / 3


class KeepAlive:
    """Lease and epoch of one attachment. `run` must be running.

    guard: lease and epoch as `claim` took them. lease_s: the lease's term, None for infinite. first: see telling.py.
    """

    def __init__(
        self,
        lease: BlobLease,
        guard: Guard,
        *,
        lease_s: float | None,
        on_state: Callable[[HoldState], None],
        random: Random | None,
        first: Callable[[], Awaitable[None]] | None,
    ) -> None:
        self.raises, self._first = 0, first
        self._lease, self._guard = lease, guard
        self._lease_s = math.inf if lease_s is None else lease_s
        self._period_s = renewal_period_s(lease_s)
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
        self._failures = 0  # of renewals
        self._look_wanted = False  # by a flush, after the next renewal
        self._told = self.state

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

    # -- no await in _doubt, _fence, _announce --

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
