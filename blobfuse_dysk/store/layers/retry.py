"""The only layer that tries a data request again.

Theory. Whether an error may pass by itself is part of the error (`Kind.retryable`); this layer only decides how long to
go on. Every call has a budget, `io_timeout_s` from its start (None: for ever). The budget bounds an attempt in progress
as well: its scope is cancelled, which Fence below sees as a write that may still land. Fence's own waiting (paused,
recovering) happens inside an attempt, so it is bounded too: nothing hangs for longer than the budget, and what Order
lets it wait for older calls on the same range.

A cancel scope around a call costs 12 to 16 microseconds where the rest of a 4 KiB read costs 50. So a first attempt has
none when it is known to end by itself, and soon enough: `direct` says so of its length (nothing holds it back now, so
it ends within `direct_s`) and the budget is not shorter than `direct_s`. When the budget becomes shorter while such
attempts are on their way, whoever shortens it hurries the client, too (BlobApi.hurry).

Sending a modifying request again is safe here and only here, above Fence: the new attempt passes Fence's gate, so it
is sent in an epoch in which no copy of the earlier attempt can land. Order, above, keeps overlapping calls away
until the last attempt ended.

When the budget is used up: StoreError(TIMEOUT), which names the last error.

Once nothing can be written any more (`end_writes`), a budget is there to have the disk's users told, and no longer to
spare them an error: an umount reads one block after the other, and would wait for each as long as a write may. So while
the service is known to be away, by the budget that was used up last and no answer since, a read has LAST_S; and once
that was in vain, those of the next AGAIN_S fail at once. While it answers, if only to refuse, reads have their whole
budget as before.

A call that has taken STALL_S, whether it fails again and again, hangs in one attempt or is held at Fence's gate, is
*stalled*; what is known of those is in `waiting`, for people. Finding them costs the others an entry in a dict: one
task, which exists while there are calls and none of them is known to be stalled, looks when the oldest will be.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from math import inf
from random import Random
from typing import Literal, TypeVar

import trio

from blobfuse_dysk.clock import bound_clock
from blobfuse_dysk.detached import attach
from blobfuse_dysk.errors import Kind, StoreError
from blobfuse_dysk.store.contract import Buffer, Extent, Store
from blobfuse_dysk.store.parts.backoff import Backoff
from blobfuse_dysk.store.passage import NO, Begin, Passage, Rest

__all__ = ["Retry"]

STALL_S = 3.0
LAST_S = 5.0
AGAIN_S = 10.0
T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Call:
    """One call in progress. scope: of attempts that are not direct."""

    started: float
    scope: trio.CancelScope | None = None
    modifies: bool = False  # known once it has a scope
    last: StoreError | None = None  # how its last attempt ended


class Retry(Store):
    """io_timeout_s: seconds a call may take in all, or None. on_error: told of each attempt that failed.

    on_stall: told when the first call stalls, and when none does any more.
    blocker: what holds modifying calls back below, if anything does.
    direct: whether an attempt for so many bytes, that modifies or not, made now, would end within direct_s seconds by
    itself; must be cheap.
    """

    def __init__(
        self,
        inner: Store,
        *,
        io_timeout_s: float | None,
        random: Random | None = None,
        on_error: Callable[[StoreError], None] = lambda error: None,
        on_stall: Callable[[], None] = lambda: None,
        blocker: Callable[[], StoreError | None] = lambda: None,
        direct: Callable[[int, bool], bool] = lambda length, modifies: False,
        direct_s: float = inf,
    ) -> None:
        self.retries = 0
        self._inner = inner
        self._io_timeout_s = io_timeout_s
        self._random = random or Random()
        self._on_error = on_error
        self._on_stall = on_stall
        self._blocker = blocker
        self._direct = direct
        self._direct_s = direct_s
        self._may_be_direct = self._budget_s >= direct_s
        self._calls: dict[_Call, None] = {}  # in the order of their start
        self._watching = False  # stays true while _told
        self._told = False  # that calls are stalled
        self._ended = False  # nothing is written any more
        self._away = False  # once _ended: the service was, when it was asked last
        self._again_at = -inf  # when it is asked again
        self._now = bound_clock()
        read, write = inner.plain_read, inner.plain_write
        self.plain_read = read and read.under(
            partial(self._begin_passage, read.begin), self._end_passage, self._rest_of_read
        )
        self.plain_write = write and write.under(
            partial(self._begin_passage, write.begin), self._end_passage, self._rest_of_write
        )

    @property
    def size(self) -> int:
        """The inner one's."""
        return self._inner.size

    @property
    def io_timeout_s(self) -> float | None:
        """Seconds, or None for ever."""
        return self._io_timeout_s

    @property
    def waiting(self) -> dict[str, object] | None:
        """JSON-able: how many calls are stalled, since when, when the first of them fails, why; None if none is."""
        now = trio.current_time()
        stalled = [call for call in self._calls if now - call.started >= STALL_S]
        if not stalled:
            return None
        started = stalled[0].started
        last = self._blocker() or next((call.last for call in stalled if call.last is not None), None)
        return {
            "calls": len(stalled),
            "since_s": now - started,
            "fails_in_s": None
            if self._io_timeout_s is None
            else max(0.0, self._deadline(started, stalled[0].modifies) - now),
            "reason": str(last or "the service has not answered yet"),
        }

    def set_io_timeout(self, io_timeout_s: float | None) -> None:
        """Change the budget of all calls, those in progress included (measured from their start)."""
        self._io_timeout_s = io_timeout_s
        self._may_be_direct = not self._ended and self._budget_s >= self._direct_s
        for call in self._calls:
            if call.scope is not None:
                call.scope.deadline = self._deadline(call.started, call.modifies)

    def end_writes(self, reason: StoreError) -> None:
        """Nothing will be written any more, for good, for this reason. Calls in progress that modify go on."""
        self._ended, self._may_be_direct = True, False
        self._away = reason.kind is Kind.TIMEOUT
        latest = trio.current_time() + LAST_S
        for call in self._calls:
            if self._away and call.scope is not None and not call.modifies:
                call.scope.deadline = min(call.scope.deadline, latest)

    async def read(self, offset: int, length: int) -> Buffer:
        """Read, until it succeeds, fails for good, or the budget is used up."""
        direct = self._may_be_direct and self._direct(length, False)
        return await self._read(self._begin(self._now()), offset, length, direct and self._inner.read(offset, length))

    async def write(self, offset: int, data: Buffer) -> None:
        """Write, likewise."""
        direct = self._may_be_direct and self._direct(len(data), True)
        await self._write(self._begin(self._now()), offset, data, direct and self._inner.write(offset, data))

    async def zero(self, offset: int, length: int) -> None:
        """Zero, likewise."""
        await self._call("zero", True, self._inner.zero, offset, length)

    async def flush(self) -> None:
        """Flush, likewise."""
        await self._call("flush", True, self._inner.flush)

    async def extents(self, offset: int, length: int) -> list[Extent]:
        """Ask for extents, likewise."""
        return await self._call("page list", False, self._inner.extents, offset, length)

    async def grow(self, size: int) -> None:
        """Grow, likewise."""
        await self._call(f"growing to {size} bytes", True, partial(self._inner.grow, size))

    async def aclose(self) -> None:
        """Close the layer below."""
        await self._inner.aclose()

    async def _read(self, call: _Call, offset: int, length: int, attempt: Awaitable[Buffer] | Literal[False]) -> Buffer:
        """attempt: the first one, if it is direct."""
        try:
            error = None
            if attempt:
                try:
                    return await attempt
                except StoreError as failed:
                    error = failed
            return await self._run(call, error, "read", False, self._inner.read, offset, length)
        finally:
            self._end(call)

    async def _write(self, call: _Call, offset: int, data: Buffer, attempt: Awaitable[None] | Literal[False]) -> None:
        """attempt: the first one, if it is direct."""
        try:
            error = None
            if attempt:
                try:
                    await attempt
                    return
                except StoreError as failed:
                    error = failed
            await self._run(call, error, "write", True, self._inner.write, offset, data)
        finally:
            self._end(call)

    # -- the plain lane (passage.py): a first attempt that is direct, as the layers below have nothing to wait for --

    def _begin_passage(self, below: Begin, passage: Passage) -> int:
        began = below(passage) if self._may_be_direct else NO
        if began:
            passage.call = self._begin(passage.started)
        return began

    def _end_passage(self, passage: Passage) -> None:
        self._end(passage.call)

    def _rest_of_read(self, passage: Passage, rest: Rest) -> Rest:
        return self._read(passage.call, passage.offset, passage.length, rest)

    def _rest_of_write(self, passage: Passage, rest: Rest) -> Rest:
        assert passage.data is not None
        return self._write(passage.call, passage.offset, passage.data, rest)

    async def _call(self, what: str, modifies: bool, call: Callable[..., Awaitable[T]], *args: object) -> T:
        """A call that is never made directly."""
        of = self._begin(self._now())
        try:
            return await self._run(of, None, what, modifies, call, *args)
        finally:
            self._end(of)

    async def _run(
        self,
        of: _Call,
        error: StoreError | None,
        what: str,
        modifies: bool,
        call: Callable[..., Awaitable[T]],
        *args: object,
    ) -> T:
        """Attempt it until the budget, counted from the start of `of`, ends. error: how a direct attempt ended."""
        await attach()
        if self._away and not modifies and trio.current_time() < self._again_at:
            raise self._gave_up(of, what, modifies, *args)
        of.modifies = modifies
        scope = of.scope = trio.CancelScope(deadline=self._deadline(of.started, modifies))
        backoff: Backoff | None = None
        unknown = False
        with scope:
            while True:
                if error is None:
                    try:
                        found = await call(*args)
                        self._away = False
                        return found
                    except StoreError as failed:
                        error = failed
                self._on_error(error)
                unknown = unknown or error.unknown
                if not error.kind.retryable:
                    error.unknown = unknown
                    raise error
                if error.kind is not Kind.UNREACHABLE:
                    self._away = False  # it refuses, so it is there
                of.last, error = error, None
                if backoff is None:
                    backoff = Backoff(self._random)
                await trio.sleep(backoff.next_s(of.last))
                self.retries += 1
        if self._ended and not modifies and (of.last is None or of.last.kind is Kind.UNREACHABLE):
            self._away, self._again_at = True, trio.current_time() + AGAIN_S
        raise self._gave_up(of, what, modifies, *args) from of.last

    def _gave_up(self, of: _Call, what: str, modifies: bool, *args: object) -> StoreError:
        place = f" at {args[0]}" if args else ""
        reason = f"; last: {of.last}" if of.last else ""
        waited_s = trio.current_time() - of.started
        budget = (
            f"after {waited_s:g} s, as the disk has failed" if self._away else f"after the io-timeout of {waited_s:g} s"
        )
        return StoreError(
            f"{what}{place}: gave up {budget}{reason}",
            Kind.TIMEOUT,
            unknown=modifies,
            remedy="dyskctl doctor looks for the cause; a longer io-timeout waits longer",
        )

    # -- no await in _begin, _end, _start_watch --

    def _begin(self, now: float) -> _Call:
        call = _Call(now)
        self._calls[call] = None
        if not self._watching:
            self._start_watch()
        return call

    def _end(self, call: _Call) -> None:
        del self._calls[call]
        if self._told and self._next_stall_s() > 0:
            self._told = self._watching = False
            self._on_stall()
            if self._calls:
                self._start_watch()

    def _start_watch(self) -> None:
        self._watching = True
        trio.lowlevel.spawn_system_task(self._watch, name="retry watch")

    async def _watch(self) -> None:
        """Tell of the first call that stalls, then end; `_end` starts it again. End when there are no calls, too."""
        while self._calls:
            left_s = self._next_stall_s()
            if left_s <= 0:
                self._told = True
                self._on_stall()
                return
            await trio.sleep(left_s)
        self._watching = False

    def _next_stall_s(self) -> float:
        """Seconds until the oldest call is stalled, at most 0 if it is; infinite if there is none."""
        return next((call.started + STALL_S - trio.current_time() for call in self._calls), inf)

    @property
    def _budget_s(self) -> float:
        return inf if self._io_timeout_s is None else self._io_timeout_s

    def _deadline(self, started: float, modifies: bool) -> float:
        return started + (min(self._budget_s, LAST_S) if self._away and not modifies else self._budget_s)
