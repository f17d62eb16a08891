"""Builds the block layer of one attachment: the only file that knows the order of the layers.

Bottom up, and why there:

    PageBlob   one request per call, with the lease and epoch of the Guard
    Throttle   counts and spaces requests; below Fence, so that a call that waits for the lease takes no slot
    Fence      below Retry, so that its waiting is bounded by the budget and every attempt passes its gate
    Retry      below Sparse, so that Sparse hears only of what finally became of a call
    Sparse     knows allocated pages; left out for a read-only attachment that is not a snapshot, where another node
               may be writing: its map would go stale and show zeros for ever
    ReadCache  above Sparse, so that reading ahead of a stream costs nothing where the disk is empty; left out likewise,
               and by cache=none
    Order      above Sparse, whose map must not be raced by overlapping writes, and above ReadCache likewise
    WriteBack  acknowledges writes out of the dirty ring; only cache=readwrite has it
    Front      the latch and the counters; Trace is below it while calls are to be logged

A read-only attachment (or a snapshot) takes no lease and sends none: there is no Guard, so PageBlob refuses to write,
and no Fence.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Literal

import trio

from blobfuse_dysk.azure.wire import BlobProperties
from blobfuse_dysk.errors import StoreError
from blobfuse_dysk.options import AttachOptions, Cache
from blobfuse_dysk.store import snapshot
from blobfuse_dysk.store.blobapi import BlobApi
from blobfuse_dysk.store.contract import Extent, Store
from blobfuse_dysk.store.layers.fence import Fence
from blobfuse_dysk.store.layers.front import Front
from blobfuse_dysk.store.layers.order import Order
from blobfuse_dysk.store.layers.pageblob import ATTEMPT_TIMEOUT_S, PageBlob
from blobfuse_dysk.store.layers.readcache import ReadCache
from blobfuse_dysk.store.layers.retry import Retry
from blobfuse_dysk.store.layers.sparse import REGION as MAP_REGION
from blobfuse_dysk.store.layers.sparse import Sparse
from blobfuse_dysk.store.layers.throttle import Throttle
from blobfuse_dysk.store.layers.trace import Trace
from blobfuse_dysk.store.layers.writeback import WriteBack
from blobfuse_dysk.store.lease.claim import Claim
from blobfuse_dysk.store.lease.keepalive import renewal_period_s
from blobfuse_dysk.store.lease.release import give_up
from blobfuse_dysk.store.lease.requests import BlobLease
from blobfuse_dysk.store.lease.token import Guard, HoldState
from blobfuse_dysk.store.lease.watch import DEFAULT_PERIOD_S, find_holder, watch
from blobfuse_dysk.store.parts.backoff import MOST_RETRY_AFTER_S
from blobfuse_dysk.store.parts.limiter import Limiter
from blobfuse_dysk.store.parts.meter import Meter
from blobfuse_dysk.store.parts.pacer import Pacer
from blobfuse_dysk.store.parts.priority import Priority, priority
from blobfuse_dysk.store.parts.ring import Ring
from blobfuse_dysk.store.preview import Known

__all__ = ["MAP_REGION", "Stack", "StackOptions"]

log = logging.getLogger(__name__)
READ_AHEAD = 8 << 20  # bytes of one stream; 10 ms at 800 MB/s
_AFTER_LOSS = "unmount and detach it, then attach it again and check its file system"
_WHILE_WAITING = "writes wait for it, up to io-timeout; dyskctl doctor looks for the cause"
ATTEMPTS = 3  # within io-timeout, at least: a request that vanishes must leave time for another one
_DEFAULTS = AttachOptions()


@dataclass(frozen=True, slots=True)
class StackOptions:
    """What the stack needs of the attach options. Seconds are floats, None means for ever."""

    read_only: bool = False
    break_lease: bool = False
    lease_s: float | None = _DEFAULTS.lease_s
    lease_id: str | None = None
    io_timeout_s: float | None = _DEFAULTS.io_timeout_s
    node: str = ""
    checksum: Literal["auto", "md5", "none"] = _DEFAULTS.checksum
    attempt_timeout_s: float = ATTEMPT_TIMEOUT_S
    cache: Cache = "none"
    read_cache_size: int = _DEFAULTS.read_cache_size
    write_delay_s: float = _DEFAULTS.write_delay_s
    iops: int | None = None
    mbps: float | None = None

    @property
    def writes_back(self) -> bool:
        """Whether writes are acknowledged out of a ring."""
        return self.cache == "readwrite" and not self.read_only

    @classmethod
    def of(cls, options: AttachOptions, node: str) -> StackOptions:
        """Take over what matters here; `node` is written into the blob's metadata as the holder's name."""
        return cls(
            read_only=options.read_only,
            break_lease=options.break_lease,
            lease_s=options.lease_s,
            lease_id=options.lease_id,
            io_timeout_s=options.io_timeout_s,
            node=node,
            checksum=options.checksum,
            cache=options.cache,
            read_cache_size=options.read_cache_size,
            write_delay_s=options.write_delay_s,
            attempt_timeout_s=min(ATTEMPT_TIMEOUT_S, (options.io_timeout_s or math.inf) / ATTEMPTS),
            iops=options.iops,
            mbps=options.mbps,
        )


class Stack:
    """An open disk. Made by `open.open_stack` only; its parts are named for status, control and release."""

    def __init__(
        self,
        blob: BlobProperties,
        client: BlobApi,
        lease: BlobLease,
        held: Claim | None,
        nursery: trio.Nursery,
        options: StackOptions,
        *,
        snapshot: bool,
        ring: Ring | None,
        on_state: Callable[[HoldState], None],
        random: Random,
        known: Known | None = None,
        first: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.blob = blob
        self.last_page = known.last_page if known else None  # as it was when the disk was opened, if that is known
        self._first = first  # to be over before the first modifying call
        self._client = client
        self._options = options
        self._lease = lease
        self._held = held
        self._on_state = on_state
        self.on_detail: Callable[[], None] = lambda: None
        """Called when `detail` says more of a state that was told already."""
        self._told: HoldState = "attached"
        self._taken: StoreError | None = None  # why it is fenced, in more words
        self._failure: StoreError | None = None
        self._nursery, self.ring = nursery, ring
        self._requests, self._io = Meter(), Meter()
        self._fence: Fence | None = None
        guard = held.guard if held else None
        self.lease_s = held.lease_s if held else None
        """The term of the lease; None for an infinite one, or none."""
        store: Store = PageBlob(
            client, blob.size, guard, attempt_timeout_s=options.attempt_timeout_s, meter=self._requests
        )
        limiter = self._limiter = Limiter(pacer=Pacer())
        self.set_limits(options.iops, options.mbps)
        store = self._throttle = Throttle(store, limiter=limiter)
        if guard is not None:
            store = self._fence = self._fenced(store, guard, random)
        store = self._retry = Retry(
            store,
            io_timeout_s=options.io_timeout_s,
            random=random,
            direct=self._is_clear,
            direct_s=options.attempt_timeout_s + MOST_RETRY_AFTER_S,  # a pause of the service may begin just then
            on_stall=self._changed,
            blocker=lambda: self._fence.blocker if self._fence else None,
        )
        self.beneath_map: Store = store
        """The disk as the service has it: without the page map, the caches, and what is not written yet."""
        self._read_cache: ReadCache | None = None
        self._write_back: WriteBack | None = None
        if guard is not None or snapshot:  # nobody else changes what is read
            store = self._remembering(store, nursery, known)
        store = Order(store)
        if guard is not None and ring is not None:
            store = self._write_back = self._writing_back(store, nursery, ring)
        self.writer: str | None = None
        """Who had the lease when a disk was opened that is only read here: `leased by node X since T`."""
        self.store = Front(store, self._io)
        self._below_front = store
        self._trace: Trace | None = None
        nursery.start_soon(self._watch)

    def _fenced(self, store: Store, guard: Guard, random: Random) -> Fence:
        fence = Fence(
            store,
            self._lease,
            guard,
            lease_s=self.lease_s,
            on_state=lambda state: self._changed(),
            random=random,
            first=self._first,
        )
        self._nursery.start_soon(fence.run)
        return fence

    def _remembering(self, store: Store, nursery: trio.Nursery, known: Known | None) -> Store:
        """The layers that keep what they know of the blob between calls."""
        store = Sparse(store, nursery, known=(known.start, known.extents) if known else None)
        if self._options.cache != "none":
            store = self._read_cache = ReadCache(
                store,
                nursery,
                capacity=self._options.read_cache_size,
                window=READ_AHEAD,
                read_ahead=lambda: priority(Priority.READ_AHEAD),
            )
        return store

    def _writing_back(self, store: Store, nursery: trio.Nursery, ring: Ring) -> WriteBack:
        return WriteBack(
            store,
            ring,
            nursery,
            idle_s=self._options.write_delay_s,
            largest=lambda: self._limiter.pacer.largest_write,
            slots=lambda: int(self._limiter.limit),
            on_failure=self._lost,
        )

    @property
    def state(self) -> HoldState:
        """`attached`, `recovering` (also: calls are stalled), `paused`, `fenced` or `released`; `failed`."""
        state = self._fence.state if self._fence else "attached"
        if state in ("fenced", "released"):
            return state
        if self.failure is not None:
            return "failed"
        return "recovering" if state == "attached" and self._retry.waiting else state

    @property
    def failure(self) -> StoreError | None:
        """Why nothing can ever be written again, other than for the lease: the blob is another, or a write was lost."""
        return self._failure or (self._write_back.failure if self._write_back else None)

    @property
    def detail(self) -> str | None:
        """Why it is in this state, and what to do; None where all is well."""
        state, blocker = self.state, self._fence.blocker if self._fence else None
        if state == "fenced":
            found = self._taken or blocker
            return found.line() if found else None
        if state == "failed":
            return self._failure.line() if self._failure else f"a write was lost: {self.failure}: {_AFTER_LOSS}"
        waiting = self._retry.waiting
        reason = blocker or (waiting and waiting["reason"])
        return None if state in ("attached", "released") or not reason else f"{reason}: {_WHILE_WAITING}"

    @property
    def unwritten(self) -> list[Extent]:
        """What was accepted and the service has not acknowledged."""
        return self._write_back.unwritten if self._write_back else []

    def fail(self, reason: StoreError) -> None:
        """Let nothing be written any more, for good; reads go on."""
        if self._failure is None and self.state not in ("fenced", "released"):
            self._failure = reason
            log.error("nothing can be written any more: %s", reason)
            self.store.refuse_writes(reason)
            self._retry.end_writes(reason)
            self._changed()

    def _lost(self) -> None:
        """What was accepted was not written, and nothing is any more."""
        if reason := self.failure:
            self._retry.end_writes(reason)
        self._changed()

    async def _watch(self) -> None:
        """Look whether the blob still is the disk, for as long as that is not known to be over."""
        period_s = renewal_period_s(self.lease_s) if self._held else DEFAULT_PERIOD_S
        size, number = (lambda: self.store.size), (lambda: self.epoch)
        self.fail(await watch(self._lease, self.blob, period_s=period_s, size=size, number=number))

    def _learn_holder(self, found: StoreError) -> None:
        log.error("fenced: %s", found.line())
        self._taken = found
        self.on_detail()

    @property
    def lease_id(self) -> str | None:
        """None for a read-only attachment."""
        return self._held.guard.lease_id if self._held else None

    @property
    def lease_in_use(self) -> str | None:
        """The lease's id while this node renews it; None without one, once fenced, and once it was given up."""
        return None if self.state in ("fenced", "released") else self.lease_id

    @property
    def epoch(self) -> int | None:
        """The blob's sequence number as this attachment last raised it; None for a read-only attachment."""
        return self._held.guard.epoch if self._held else None

    @property
    def requests(self) -> int:
        """How many came from above, and ended."""
        return sum(self._io.calls.values())

    def status(self) -> dict[str, object]:
        """JSON-able: state, lease, epoch, `io` (what the device asked for), `requests` (what went to the service)."""
        lease: dict[str, object] | None = None
        if self._held is not None:
            lease = {"term_s": self.lease_s, "expires_in_s": self._held.guard.expires_in_s}
        return {
            "state": self.state,
            "lease": lease,
            "epoch": self.epoch,
            "writer": self.writer,
            "epoch_raises": self._fence.raises if self._fence else 0,
            "io_timeout_s": self._retry.io_timeout_s,
            "waiting": self._retry.waiting,
            "limits": self.limits,
            "trace_s": (self._trace and self._trace.left_s) or None,
            "io": self._io.status(),
            "requests": self._requests.status(),
            "retries": self._retry.retries,
            "throttle": self._throttle.status(),
            "cache": {
                "mode": self._options.cache,
                **(self._read_cache.status() if self._read_cache else {}),
                **(self._write_back.status() if self._write_back else {}),
            },
        }

    def set_io_timeout(self, io_timeout_s: float | None) -> None:
        """Change the budget of every call, those in progress included. Seconds, None for ever."""
        self._retry.set_io_timeout(io_timeout_s)
        if io_timeout_s is not None:
            self._client.hurry(io_timeout_s)  # see Retry: not every attempt has a scope of its own

    @property
    def limits(self) -> dict[str, float | None]:
        """The user's: `iops` and `mbps`, requests and 10^6 bytes a second; None is no limit."""
        return dict(self._limits)

    def set_limits(self, iops: float | None, mbps: float | None) -> None:
        """Change them."""
        self._limits = {"iops": iops, "mbps": mbps}
        self._limiter.pacer.allow(iops, None if mbps is None else mbps * 1e6)

    def trace(self, seconds: float) -> None:
        """Log each call of the device for so long from now on; 0 for no longer. See trace.py."""
        if self._trace is not None:
            self._trace.end()
        if seconds > 0:
            self._trace = Trace(self._below_front, seconds, on_end=self._untrace)
            self.store.stand_on(self._trace)

    def _untrace(self) -> None:
        self._trace = None
        self.store.stand_on(self._below_front)

    async def barrier(self) -> str:
        """Have all that was accepted so far at the service; return the ETag that the blob has after that.

        If nobody writes meanwhile, the blob is what the device shows for as long as it has this ETag.
        """
        await self.store.flush()
        return (await self._lease.properties()).etag

    async def snapshot(self, metadata: Mapping[str, str], etag: str | None) -> tuple[str, int]:
        """Make a snapshot, in one request; return its time and the blob's size. See snapshot.take.

        etag: of a barrier; without one this is one itself.
        """
        if etag is None:
            await self.store.flush()
        blob = await self._lease.properties()
        return await snapshot.take(blob, self._lease, metadata, lease_id=self.lease_id, etag=etag), blob.size

    async def release(self) -> None:
        """Clear the holder's name and release the lease, as far as that succeeds within a few seconds.

        Flush before. No modifying call passes afterwards. Of a fenced disk nothing is ours to release.
        """
        if self._fence is None or self._held is None or self.state in ("fenced", "released"):
            return
        self._fence.release()
        await give_up(self._lease, self._held.guard)

    def _is_clear(self, length: int, modifies: bool) -> bool:
        """Whether nothing between Retry and the service would hold a call for so many bytes back now."""
        return self._limiter.is_clear(length) and (not modifies or self._fence is None or self._fence.is_open)

    def _changed(self) -> None:
        state = self.state
        if state == self._told:
            return
        self._told = state
        if state == "fenced" and self._held:
            self.store.latch("this node may no longer write: the disk was taken away")
            self._nursery.start_soon(find_holder, self._lease, self._held.guard.epoch, self._learn_holder)
        try:
            self._on_state(state)
        except Exception:  # a full /run must not end the renewal of the lease
            log.exception("the change of state to %r could not be reported", state)
