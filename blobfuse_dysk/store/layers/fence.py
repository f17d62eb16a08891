"""One writer, provably: lets no modifying call pass that could do harm.

In which states modifying calls pass, wait or fail: store/lease/keepalive.py, which keeps lease and epoch, and has the
invariants that are not here. Waiting is bounded by Retry's budget, above. Reads carry no lease and pass in every state
but fenced.

**The epoch.** A modifying request whose outcome is unknown may still be applied at any later moment, as long as the
blob's sequence number is the one it was sent with. Invariants:

E2. If a request of the current epoch may still land, `_raise_due` is true. It becomes true in the same step in which
    the call ends (`_judge` has no await), so before Order can let an overlapping call start.
E4. Between the last check in `_gate` and the call of the layer below there is no await. The layer below may wait (for a
    slot); a raise may become due meanwhile, but only for requests that do not overlap this one, by Order.
E5. A grow's request is void once the blob changed since a look that showed guard.epoch (pageblob.py): E2, E3 hold.

How a call ends decides: success, or StoreError with unknown=False: nothing of it is left in flight. StoreError with
unknown=True, cancellation, any other exception: something may be. The request's epoch, where the error names it, spares
a raise when that epoch is over.
412 SequenceNumberConditionNotMet: if we asked for a higher number than the request carried, our own raise overtook it,
and it is sent again in the new epoch. If not, somebody else raised the number: doubt.

**The lease.**
L6. A flush returns when a call, or a renewal and a look, proved lease and epoch a few seconds ago (token.py). Else
flushes, and zeros over free pages, would succeed; under a lease id that another has, too, for ever.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from random import Random

from blobfuse_dysk.clock import bound_clock
from blobfuse_dysk.detached import attach
from blobfuse_dysk.errors import Kind, StoreError
from blobfuse_dysk.store.contract import Buffer, Extent, Store
from blobfuse_dysk.store.lease.keepalive import KeepAlive
from blobfuse_dysk.store.lease.requests import BlobLease
from blobfuse_dysk.store.lease.token import Guard, HoldState
from blobfuse_dysk.store.passage import NO, Passage, Rest, begin_of

__all__ = ["Fence"]


class Fence(KeepAlive, Store):
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
        super().__init__(lease, guard, lease_s=lease_s, on_state=on_state, random=random, first=first)
        self._inner = inner
        self._now = bound_clock()
        read, write = inner.plain_read, inner.plain_write
        self.plain_read = read and read.under(self._begin_read)
        self.plain_write = write and write.under(self._begin_write, self._end_write, self._rest_of_write)
        self._begin_read_below, self._begin_write_below = begin_of(read), begin_of(write)

    @property
    def size(self) -> int:
        return self._inner.size

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
        await self._sent(-math.inf, self._inner.grow(size))  # it proves nothing to a flush

    async def aclose(self) -> None:
        await self._inner.aclose()

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

    # -- the gate: no await in is_open, _judge, _suspect --

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
