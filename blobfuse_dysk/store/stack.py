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
    Front      the latch and the counters

A read-only attachment (or a snapshot) takes no lease and sends none: there is no Guard, so PageBlob refuses to write,
and no Fence.
"""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Literal

import trio

from blobfuse_dysk.azure.blob import BlobClient
from blobfuse_dysk.azure.wire import BlobProperties
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.options import AttachOptions, Cache
from blobfuse_dysk.store import claim
from blobfuse_dysk.store.admit import check_blob, errors_for_people
from blobfuse_dysk.store.backoff import MOST_RETRY_AFTER_S
from blobfuse_dysk.store.base import Store
from blobfuse_dysk.store.blobapi import BlobApi
from blobfuse_dysk.store.bloblease import CALL_TIMEOUT_S, BlobLease
from blobfuse_dysk.store.fence import Fence
from blobfuse_dysk.store.front import Front
from blobfuse_dysk.store.limiter import Limiter
from blobfuse_dysk.store.meter import Meter
from blobfuse_dysk.store.order import Order
from blobfuse_dysk.store.pacer import Pacer
from blobfuse_dysk.store.pageblob import ATTEMPT_TIMEOUT_S, PageBlob
from blobfuse_dysk.store.priority import Priority, priority
from blobfuse_dysk.store.readcache import ReadCache
from blobfuse_dysk.store.retry import Retry
from blobfuse_dysk.store.ring import Ring
from blobfuse_dysk.store.sparse import Sparse
from blobfuse_dysk.store.throttle import Throttle
from blobfuse_dysk.store.writeback import WriteBack

if TYPE_CHECKING:
    from blobfuse_dysk.azure.identity import Credential

__all__ = ["ResumeState", "Stack", "StackOptions", "open_stack"]

log = logging.getLogger(__name__)
CLOSE_S = 5.0
READ_AHEAD = 8 << 20  # bytes of one stream; 10 ms at 800 MB/s
ATTEMPTS = 3  # within io-timeout, at least: a request that vanishes must leave time for another one
ATTACH_BUDGET_S = 8.0  # for each request of an attach: long enough for a hiccup, short enough for a person
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


@dataclass(frozen=True, slots=True)
class ResumeState:
    """What an earlier worker of the same attachment held: its lease id and the last epoch it was known to use."""

    lease_id: str
    epoch: int


class Stack:
    """An open disk. Made by `open_stack` only; its parts are named for status, control and release."""

    def __init__(
        self,
        blob: BlobProperties,
        client: BlobApi,
        lease: BlobLease,
        held: claim.Claim | None,
        nursery: trio.Nursery,
        options: StackOptions,
        *,
        snapshot: bool,
        ring: Ring | None,
        on_state: Callable[[str], None],
        random: Random,
    ) -> None:
        self.blob = blob
        self._client = client
        self._options = options
        self._lease = lease
        self._held = held
        self._on_state = on_state
        self._told = "attached"
        self._requests = Meter()
        self._io = Meter()
        self._fence: Fence | None = None
        guard = held.guard if held else None
        store: Store = PageBlob(
            client, blob.size, guard, attempt_timeout_s=options.attempt_timeout_s, meter=self._requests
        )
        limiter = self._limiter = Limiter(pacer=Pacer())
        self.set_limits(options.iops, options.mbps)
        store = self._throttle = Throttle(store, limiter=limiter)
        if guard is not None:
            fence = Fence(
                store,
                lease,
                guard,
                lease_s=options.lease_s,
                on_state=lambda state: self._changed(),
                random=random,
            )
            nursery.start_soon(fence.run)
            store = self._fence = fence
        store = self._retry = Retry(
            store,
            io_timeout_s=options.io_timeout_s,
            random=random,
            direct=self._is_clear,
            direct_s=options.attempt_timeout_s + MOST_RETRY_AFTER_S,  # a pause of the service may begin just then
            on_stall=self._changed,
            blocker=lambda: self._fence.blocker if self._fence else None,
        )
        alone = guard is not None or snapshot  # nobody else changes what is read
        if alone:
            store = Sparse(store, nursery)
        self._read_cache: ReadCache | None = None
        if alone and options.cache != "none":
            store = self._read_cache = ReadCache(
                store,
                nursery,
                capacity=options.read_cache_size,
                window=READ_AHEAD,
                read_ahead=lambda: priority(Priority.READ_AHEAD),
            )
        store = Order(store)
        self._write_back: WriteBack | None = None
        if guard is not None and ring is not None:
            store = self._write_back = WriteBack(
                store,
                ring,
                nursery,
                idle_s=options.write_delay_s,
                largest=lambda: self._limiter.pacer.largest_write,
                slots=lambda: int(self._limiter.limit),
            )
        self.store = Front(store, self._io)

    @property
    def state(self) -> str:
        """`attached`, `recovering` (also: calls are stalled), `paused`, `fenced` or `released`: see fence.py."""
        state = self._fence.state if self._fence else "attached"
        return "recovering" if state == "attached" and self._retry.waiting else state

    @property
    def lease_id(self) -> str | None:
        """None for a read-only attachment."""
        return self._held.guard.lease_id if self._held else None

    @property
    def epoch(self) -> int | None:
        """The blob's sequence number as this attachment last raised it; None for a read-only attachment."""
        return self._held.guard.epoch if self._held else None

    def status(self) -> dict[str, object]:
        """JSON-able: state, lease, epoch, `io` (what the device asked for), `requests` (what went to the service)."""
        lease: dict[str, object] | None = None
        if self._fence is not None:
            lease = {"term_s": self._options.lease_s, "expires_in_s": self._fence.expires_in_s}
        return {
            "state": self.state,
            "lease": lease,
            "epoch": self.epoch,
            "epoch_raises": self._fence.raises if self._fence else 0,
            "io_timeout_s": self._retry.io_timeout_s,
            "waiting": self._retry.waiting,
            "limits": self.limits,
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

    async def release(self) -> None:
        """Clear the holder's name and release the lease, as far as that succeeds within a few seconds.

        Flush before. No modifying call passes afterwards. Of a fenced disk nothing is ours to release.
        """
        if self._fence is None or self._held is None or self.state in ("fenced", "released"):
            return
        self._fence.release()
        await claim.give_up(self._lease, self._held.guard.lease_id)

    def _is_clear(self, length: int, modifies: bool) -> bool:
        """Whether nothing between Retry and the service would hold a call for so many bytes back now."""
        return self._limiter.is_clear(length) and (not modifies or self._fence is None or self._fence.is_open)

    def _changed(self) -> None:
        state = self.state
        if state == self._told:
            return
        self._told = state
        if state == "fenced":
            self.store.latch("this node may no longer write: the disk was taken by another holder")
        try:
            self._on_state(state)
        except Exception:  # a full /run must not end the renewal of the lease
            log.exception("the change of state to %r could not be reported", state)


@asynccontextmanager
async def open_stack(
    address: DiskAddress,
    credential: Credential,
    options: StackOptions,
    *,
    resume: ResumeState | None = None,
    ring: Ring | None = None,
    on_state: Callable[[str], None] = lambda state: None,
    client: BlobApi | None = None,
    random: Random | None = None,
) -> AsyncIterator[Stack]:
    """Attach to the blob: check it, take the lease, raise the epoch, and yield the stack until the block ends.

    The end of the block closes the stack but keeps the lease (a successor may resume it); call `release` first to
    give it up. ring: needed by cache=readwrite; what an earlier worker left in it is taken up. on_state is called
    (synchronously) at each change of `Stack.state`; the epoch may be another one then.
    Raises NotFoundError, CredentialError, LeasedError, UsageError, TransportError, ServiceError or StoreError (FENCED:
    a resumed attachment that lost its lease). client, random: for tests.
    """
    random = random or Random()
    if client is None:
        client = BlobClient(address, credential, checksum=_wants_checksum(address, options))
    snapshot = address.snapshot is not None
    call_s = CALL_TIMEOUT_S if options.lease_s is None else min(CALL_TIMEOUT_S, options.lease_s / 6)
    lease = BlobLease(client, timeout_s=call_s)
    try:
        with errors_for_people(address, credential, read_only=options.read_only or snapshot):
            blob = await _look(lease, address, resume, options, random)
            held = None
            if not (options.read_only or snapshot):
                held = await _claim(lease, address, resume, options, random)
        async with _open_nursery() as nursery:
            stack = Stack(
                held.blob if held else blob,
                client,
                lease,
                held,
                nursery,
                options,
                snapshot=snapshot,
                ring=ring if options.writes_back else None,
                on_state=on_state,
                random=random,
            )
            try:
                yield stack
            finally:
                await _close(stack.store)
                nursery.cancel_scope.cancel()
    finally:
        await _close(client)


async def _look(
    lease: BlobLease, address: DiskAddress, resume: ResumeState | None, options: StackOptions, random: Random
) -> BlobProperties:
    blob = await claim.patiently(lease.properties, budget_s=_budget_s(resume, options), random=random)
    check_blob(blob, address)
    return blob


async def _claim(
    lease: BlobLease, address: DiskAddress, resume: ResumeState | None, options: StackOptions, random: Random
) -> claim.Claim:
    budget_s = _budget_s(resume, options)
    if resume is not None:
        return await claim.resume(
            lease,
            lease_id=resume.lease_id,
            epoch=resume.epoch,
            lease_s=options.lease_s,
            budget_s=budget_s,
            random=random,
        )
    return await claim.take(
        lease,
        address=address,
        node=options.node,
        lease_s=options.lease_s,
        lease_id=options.lease_id,
        break_lease=options.break_lease,
        budget_s=budget_s,
        random=random,
    )


def _budget_s(resume: ResumeState | None, options: StackOptions) -> float | None:
    """A new attachment has somebody waiting at a terminal; a resumed one has I/O waiting, which has its own limit."""
    return ATTACH_BUDGET_S if resume is None else options.io_timeout_s


def _wants_checksum(address: DiskAddress, options: StackOptions) -> bool:
    """auto: where TLS does not check the content already, loopback aside."""
    if options.checksum == "auto":
        endpoint = address.endpoint
        return endpoint is not None and endpoint.scheme == "http" and not endpoint.is_loopback
    return options.checksum == "md5"


@asynccontextmanager
async def _open_nursery() -> AsyncIterator[trio.Nursery]:
    """A nursery whose lone exception comes out as itself, not in a group: callers match on DyskError."""
    try:
        async with trio.open_nursery() as nursery:
            yield nursery
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        raise error from error.__cause__


async def _close(resource: Store | BlobApi) -> None:
    """Close, even while being cancelled, but not for ever."""
    with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_S):
        await resource.aclose()
