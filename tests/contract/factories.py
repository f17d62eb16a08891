"""How to build each layer over a MemoryStore, and the whole stack over a simulated page blob."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from random import Random
from typing import Any, cast

import trio

from blobfuse_dysk.azure.credential.credential import Credential
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.errors import Kind
from blobfuse_dysk.store.contract import Store
from blobfuse_dysk.store.layers.fence import Fence
from blobfuse_dysk.store.layers.front import Front
from blobfuse_dysk.store.layers.order import Order
from blobfuse_dysk.store.layers.pageblob import PageBlob
from blobfuse_dysk.store.layers.readcache import ReadCache
from blobfuse_dysk.store.layers.retry import Retry
from blobfuse_dysk.store.layers.sparse import Sparse
from blobfuse_dysk.store.layers.throttle import Throttle
from blobfuse_dysk.store.layers.trace import Trace
from blobfuse_dysk.store.layers.writeback import WriteBack
from blobfuse_dysk.store.lease.requests import BlobLease
from blobfuse_dysk.store.lease.token import Guard
from blobfuse_dysk.store.open import open_stack
from blobfuse_dysk.store.parts.limiter import Limiter
from blobfuse_dysk.store.parts.meter import Meter
from blobfuse_dysk.store.parts.ring import MIN_CAPACITY, Ring
from blobfuse_dysk.store.stack import Stack, StackOptions
from blobfuse_dysk.testing import (
    CheckedStore,
    DetachedStore,
    Fate,
    Fault,
    FaultyStore,
    LaneStore,
    MemoryStore,
    RecordingStore,
    SimBlob,
    SimClient,
    at_random,
    weather,
)

SIZE = 16 << 20
ADDRESS = DiskAddress.parse("account/container/disk.img")
NOBODY = cast(Credential, None)  # simulated clients sign nothing
LEASE_ID = "11111111-1111-1111-1111-111111111111"
TRANSIENT = (
    Fault(Kind.UNREACHABLE, "before"),
    Fault(Kind.UNREACHABLE, "lost"),
    Fault(Kind.UNREACHABLE, "dropped"),
    Fault(Kind.UNREACHABLE, "late"),
    Fault(Kind.THROTTLED, "before", retry_after_s=0.2),
    Fault(Kind.THROTTLED, "late", delay_s=0.3),
    Fault(Kind.CORRUPT),
    Fault(Kind.INTERNAL, "lost"),
    Fault(Kind.EPOCH, immediate=True),
    Fault(kind=None, delay_s=0.1),
)

Wrap = Callable[[Store, trio.Nursery], Store]


def layer(wrap: Wrap) -> Callable[[], AbstractAsyncContextManager[Store]]:
    """A factory for one layer over a checked MemoryStore."""

    @asynccontextmanager
    async def factory() -> AsyncIterator[Store]:
        async with trio.open_nursery() as nursery:
            yield wrap(CheckedStore(MemoryStore(SIZE)), nursery)
            nursery.cancel_scope.cancel()

    return factory


@asynccontextmanager
async def fenced() -> AsyncIterator[Store]:
    """Fence over a MemoryStore, its lease kept at a simulated blob."""
    async with trio.open_nursery() as nursery:
        blob = SimBlob(SIZE)
        blob.acquire(60, LEASE_ID)
        guard = Guard(LEASE_ID, blob.raise_number(1, LEASE_ID).number, trio.current_time() + 60)
        fence = Fence(CheckedStore(MemoryStore(SIZE)), BlobLease(SimClient(blob, nursery)), guard, lease_s=60)
        nursery.start_soon(fence.run)
        yield fence
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def page_blob() -> AsyncIterator[Store]:
    """PageBlob over a simulated blob."""
    async with trio.open_nursery() as nursery:
        blob = SimBlob(SIZE)
        blob.acquire(-1, LEASE_ID)
        guard = Guard(LEASE_ID, blob.raise_number(1, LEASE_ID).number, float("inf"))
        page_blob = PageBlob(SimClient(blob, nursery), SIZE, guard)
        # A write that was cancelled lives on and nothing here fences it off: that is Fence's part of the contract.
        yield page_blob
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def ring_for(options: StackOptions) -> AsyncIterator[Ring | None]:
    """The dirty ring that a holder would provide, if these options need one."""
    if not options.writes_back:
        yield None
        return
    memory = os.memfd_create("ring")
    try:
        ring = Ring(memory, MIN_CAPACITY)
        yield ring
        ring.close()
    finally:
        os.close(memory)


@asynccontextmanager
async def sim_stack(
    blob: SimBlob | None = None,
    *,
    fate: Callable[[str], Fate] | None = None,
    options: StackOptions | None = None,
) -> AsyncIterator[tuple[Stack, SimClient]]:
    """The whole stack, attached to a simulated blob. The network dies with the block."""
    options = options or StackOptions(node="a")
    async with trio.open_nursery() as network:
        client = SimClient(blob or SimBlob(SIZE), network, name="a")
        async with (
            ring_for(options) as ring,
            open_stack(
                ADDRESS,
                NOBODY,
                options,
                client=client,
                ring=ring,
                random=Random(1),
            ) as stack,
        ):
            if fate is not None:
                client.fate = fate
            yield stack, client
        network.cancel_scope.cancel()


@asynccontextmanager
async def calm_stack() -> AsyncIterator[Store]:
    """The whole stack in good weather."""
    async with sim_stack() as (stack, _):
        yield stack.store


@asynccontextmanager
async def stormy_stack() -> AsyncIterator[Store]:
    """The whole stack while one request in five has trouble, without a limit to the retries."""
    options = StackOptions(node="a", io_timeout_s=None)
    async with sim_stack(fate=weather(Random(2), bad=0.2), options=options) as (stack, _):
        yield stack.store


@asynccontextmanager
async def cached_stack() -> AsyncIterator[Store]:
    """The whole stack with all caches in good weather."""
    async with sim_stack(options=StackOptions(node="a", cache="readwrite")) as (stack, _):
        yield stack.store


@asynccontextmanager
async def stormy_cached_stack() -> AsyncIterator[Store]:
    """The same while one request in five has trouble."""
    options = StackOptions(node="a", io_timeout_s=None, cache="readwrite")
    async with sim_stack(fate=weather(Random(2), bad=0.2), options=options) as (stack, _):
        yield stack.store


def detached(factory: Callable[[], AbstractAsyncContextManager[Store]]) -> Callable[..., Any]:
    """The same, called by tasks that are detached from trio's scheduler, as the worker's are."""

    @asynccontextmanager
    async def around() -> AsyncIterator[Store]:
        async with factory() as store, trio.open_nursery() as nursery:
            yield DetachedStore(store, nursery)
            nursery.cancel_scope.cancel()

    return around


def in_lanes(factory: Callable[[], AbstractAsyncContextManager[Store]]) -> Callable[..., Any]:
    """The same, called in the plain lane where it can be, as the worker does."""

    @asynccontextmanager
    async def around() -> AsyncIterator[Store]:
        async with factory() as store:
            yield LaneStore(store)

    return around


@asynccontextmanager
async def write_back() -> AsyncIterator[Store]:
    """WriteBack over a checked MemoryStore, below which no two modifying calls may overlap."""
    async with ring_for(StackOptions(cache="readwrite")) as ring, trio.open_nursery() as nursery:
        assert ring
        yield WriteBack(CheckedStore(MemoryStore(SIZE)), ring, nursery)
        nursery.cancel_scope.cancel()


def faulty(inner: Store, nursery: trio.Nursery) -> Store:
    """Retry over a store that fails often."""
    random = Random(3)
    return Retry(FaultyStore(inner, at_random(random, 0.3, TRANSIENT), random=random), io_timeout_s=None, random=random)


FACTORIES: dict[str, Callable[[], AbstractAsyncContextManager[Store]]] = {
    "memory": layer(lambda inner, nursery: inner),
    "recording": layer(lambda inner, nursery: RecordingStore(inner)),
    "faulty-retry": layer(faulty),
    "throttle": layer(lambda inner, nursery: Throttle(inner, limiter=Limiter(first=3))),
    "retry": layer(lambda inner, nursery: Retry(inner, io_timeout_s=30, random=Random(0))),
    "sparse": layer(lambda inner, nursery: Sparse(inner, nursery)),
    "sparse-regions": layer(lambda inner, nursery: Sparse(inner, nursery, region=1 << 20)),
    "order": layer(lambda inner, nursery: Order(inner)),
    "trace": layer(lambda inner, nursery: Trace(inner, 3600, on_end=lambda: None)),
    "faulty-trace": layer(lambda inner, nursery: Trace(faulty(inner, nursery), 3600, on_end=lambda: None)),
    "front": layer(lambda inner, nursery: Front(inner, Meter())),
    "fence": fenced,
    "pageblob": page_blob,
    "stack": calm_stack,
    "stack-storm": stormy_stack,
    "readcache": layer(lambda inner, nursery: ReadCache(inner, nursery, capacity=4 << 20, window=2 << 20)),
    "writeback": write_back,
    "stack-cached": cached_stack,
    "stack-cached-storm": stormy_cached_stack,
}
LANES = ("pageblob", "stack", "stack-storm", "writeback", "stack-cached", "stack-cached-storm")
FACTORIES |= {
    **{f"{name}-detached": detached(factory) for name, factory in FACTORIES.items()},
    **{f"{name}-lanes": in_lanes(FACTORIES[name]) for name in LANES},
}
