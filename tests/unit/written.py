"""A write cache over a service that is slow, on memory that outlives it: what the tests of WriteBack share."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import pytest
import trio

from blobfuse_dysk.store.contract import MAX_WRITE, Store
from blobfuse_dysk.store.layers.writeback import MAX_IN_FLIGHT, WriteBack
from blobfuse_dysk.store.parts.ring import MIN_CAPACITY, Ring

__all__ = ["memory", "opened"]


@asynccontextmanager
async def opened(
    service: Store,
    memory: int,
    *,
    capacity: int = MIN_CAPACITY,
    idle_s: float = 1.0,
    largest: Callable[[], int] = lambda: MAX_WRITE,
    slots: Callable[[], int] = lambda: MAX_IN_FLIGHT,
) -> AsyncIterator[WriteBack]:
    """A worker's life: the cache over the service, on the holder's memory; leaving it is being killed."""
    ring = Ring(memory, capacity)
    with trio.fail_after(1e9):  # on a clock that jumps to where something happens, what would hang fails at once
        async with trio.open_nursery() as nursery:
            yield WriteBack(service, ring, nursery, idle_s=idle_s, largest=largest, slots=slots)
            nursery.cancel_scope.cancel()


@pytest.fixture
def memory() -> Iterator[int]:
    """What the holder keeps of a worker: the ring's memory, empty at first."""
    descriptor = os.memfd_create("ring")
    yield descriptor
    os.close(descriptor)
