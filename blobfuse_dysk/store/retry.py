"""The only layer that tries a data request again.

Theory. Whether an error may pass by itself is part of the error (`Kind.retryable`); this layer only decides how long to
go on. Every call has a budget, `io_timeout_s` from its start (None: for ever). The budget bounds an attempt in progress
as well: its scope is cancelled, which Fence below sees as a write that may still land. Fence's own waiting (paused,
recovering) happens inside an attempt, so it is bounded too: nothing hangs for longer than the budget, and what Order
lets it wait for older calls on the same range.

A cancel scope around a call costs 16 microseconds where the rest of a 4 KiB read costs 50. So a first attempt has none
when it is known to end by itself, and soon enough: `direct()` is true (nothing holds it back now, so it ends within
`direct_s`) and the budget is not shorter than `direct_s`. When the budget becomes shorter while such attempts are on
their way, whoever shortens it hurries the client, too (BlobApi.hurry).

Sending a modifying request again is safe here and only here, above Fence: the new attempt passes Fence's gate, so it
is sent in an epoch in which no copy of the earlier attempt can land. Order, above, keeps overlapping calls away
until the last attempt ended.

When the budget is used up: StoreError(TIMEOUT), which names the last error.

A call that has been failing for STALL_S is *stalled*; what is known of those is in `waiting`, for people.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from math import inf
from random import Random
from typing import TypeVar

import trio

from blobfuse_dysk.errors import Kind, StoreError
from blobfuse_dysk.store.backoff import Backoff
from blobfuse_dysk.store.base import Buffer, Extent, Store

__all__ = ["Retry"]

STALL_S = 3.0
T = TypeVar("T")


class Retry(Store):
    """io_timeout_s: seconds a call may take in all, or None. on_error: told of each attempt that failed.

    on_stall: told when the first call stalls, and when none does any more.
    direct: whether an attempt made now would end within direct_s seconds by itself; must be cheap.
    """

    def __init__(
        self,
        inner: Store,
        *,
        io_timeout_s: float | None,
        random: Random | None = None,
        on_error: Callable[[StoreError], None] = lambda error: None,
        on_stall: Callable[[], None] = lambda: None,
        direct: Callable[[], bool] = lambda: False,
        direct_s: float = inf,
    ) -> None:
        self.size = inner.size
        self.retries = 0
        self._inner = inner
        self._io_timeout_s = io_timeout_s
        self._random = random or Random()
        self._on_error = on_error
        self._on_stall = on_stall
        self._direct = direct
        self._direct_s = direct_s
        self._may_be_direct = self._budget_s >= direct_s
        self._active: dict[trio.CancelScope, float] = {}
        self._stalled: dict[trio.CancelScope, float] = {}
        self._last: StoreError | None = None

    @property
    def io_timeout_s(self) -> float | None:
        """Seconds, or None for ever."""
        return self._io_timeout_s

    @property
    def waiting(self) -> dict[str, object] | None:
        """JSON-able: how many calls are stalled, since when, when the first of them fails, why; None if none is."""
        if not self._stalled:
            return None
        now, started = trio.current_time(), min(self._stalled.values())
        return {
            "calls": len(self._stalled),
            "since_s": now - started,
            "fails_in_s": None if self._io_timeout_s is None else max(0.0, self._deadline(started) - now),
            "reason": str(self._last),
        }

    def set_io_timeout(self, io_timeout_s: float | None) -> None:
        """Change the budget of all calls, those in progress included (measured from their start)."""
        self._io_timeout_s = io_timeout_s
        self._may_be_direct = self._budget_s >= self._direct_s
        for scope, started in self._active.items():
            scope.deadline = self._deadline(started)

    async def read(self, offset: int, length: int) -> Buffer:
        """Read, until it succeeds, fails for good, or the budget is used up."""
        started = trio.current_time()
        error = None
        if self._may_be_direct and self._direct():
            try:
                return await self._inner.read(offset, length)
            except StoreError as failed:
                error = failed
        return await self._run("read", False, self._inner.read, offset, length, started=started, error=error)

    async def write(self, offset: int, data: Buffer) -> None:
        """Write, likewise."""
        started = trio.current_time()
        error = None
        if self._may_be_direct and self._direct():
            try:
                await self._inner.write(offset, data)
                return
            except StoreError as failed:
                error = failed
        await self._run("write", True, self._inner.write, offset, data, started=started, error=error)

    async def zero(self, offset: int, length: int) -> None:
        """Zero, likewise."""
        await self._run("zero", True, self._inner.zero, offset, length)

    async def flush(self) -> None:
        """Flush, likewise."""
        await self._run("flush", True, self._inner.flush)

    async def extents(self, offset: int, length: int) -> list[Extent]:
        """Ask for extents, likewise."""
        return await self._run("page list", False, self._inner.extents, offset, length)

    async def aclose(self) -> None:
        """Close the layer below."""
        await self._inner.aclose()

    async def _run(
        self,
        what: str,
        modifies: bool,
        call: Callable[..., Awaitable[T]],
        *args: object,
        started: float | None = None,
        error: StoreError | None = None,
    ) -> T:
        """Attempt it until the budget, counted from `started`, ends. error: how a first attempt ended already."""
        started = trio.current_time() if started is None else started
        scope = trio.CancelScope(deadline=self._deadline(started))
        backoff: Backoff | None = None
        unknown = False
        last: StoreError | None = None
        self._active[scope] = started
        try:
            with scope:
                while True:
                    if error is None:
                        try:
                            return await call(*args)
                        except StoreError as failed:
                            error = failed
                    self._on_error(error)
                    unknown = unknown or error.unknown
                    if not error.kind.retryable:
                        error.unknown = unknown
                        raise error
                    last, error = error, None
                    self._note(scope, started, last)
                    if backoff is None:
                        backoff = Backoff(self._random)
                    await trio.sleep(backoff.next_s(last))
                    self.retries += 1
        finally:
            del self._active[scope]
            if self._stalled.pop(scope, None) is not None and not self._stalled:
                self._on_stall()
        place = f" at {args[0]}" if args else ""
        reason = f"; last: {last}" if last else ""
        raise StoreError(
            f"{what}{place}: gave up after the io-timeout of {trio.current_time() - started:g} s{reason}",
            Kind.TIMEOUT,
            unknown=modifies,
            remedy="dyskctl status shows the disk's state; attach with a longer --io-timeout to wait longer",
        ) from last

    def _note(self, scope: trio.CancelScope, started: float, error: StoreError) -> None:
        self._last = error
        if scope not in self._stalled and trio.current_time() - started >= STALL_S:
            self._stalled[scope] = started
            if len(self._stalled) == 1:
                self._on_stall()

    @property
    def _budget_s(self) -> float:
        return inf if self._io_timeout_s is None else self._io_timeout_s

    def _deadline(self, started: float) -> float:
        return started + self._budget_s
