"""A Fence over a store in memory, with a simulated blob for lease and epoch, for the tests of both."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from blobfuse_dysk.errors import Kind, StoreError
from blobfuse_dysk.store.contract import Store
from blobfuse_dysk.store.layers.fence import Fence
from blobfuse_dysk.store.lease.requests import BlobLease
from blobfuse_dysk.store.lease.token import Guard
from blobfuse_dysk.testing import Fault, FaultyStore, MemoryStore, RecordingStore, SimBlob, SimClient, in_turn

__all__ = ["DATA", "OURS", "THEIRS", "Setting", "fails", "opened"]

OURS, THEIRS = "1" * 8 + "-1111-1111-1111-" + "1" * 12, "2" * 8 + "-2222-2222-2222-" + "2" * 12
DATA = b"x" * 512


class Setting:
    """A Fence over a store in memory, with a simulated blob for lease and epoch."""

    def __init__(self, nursery: trio.Nursery, faults: list[Fault | None], lease_s: float | None) -> None:
        self.blob = SimBlob(1 << 20)
        self.client = SimClient(self.blob, nursery, name="a")
        self.blob.acquire(-1 if lease_s is None else int(lease_s), OURS)
        until = float("inf") if lease_s is None else trio.current_time() + lease_s
        self.guard = Guard(OURS, self.blob.raise_number(1, OURS).number, until)
        self.data = RecordingStore(FaultyStore(MemoryStore(1 << 20), in_turn(faults)))
        self.states: list[str] = []
        self.fence = Fence(
            self.data,
            BlobLease(self.client),
            self.guard,
            lease_s=lease_s,
            on_state=self.states.append,
            random=Random(0),
        )


@asynccontextmanager
async def opened(*faults: Fault | None, lease_s: float | None = 60.0) -> AsyncIterator[Setting]:
    async with trio.open_nursery() as nursery:
        setting = Setting(nursery, list(faults), lease_s)
        nursery.start_soon(setting.fence.run)
        await wait_all_tasks_blocked()
        yield setting
        nursery.cancel_scope.cancel()


async def fails(store: Store, kind: Kind, offset: int = 0) -> StoreError:
    with pytest.raises(StoreError) as caught:
        await store.write(offset, DATA)
    assert caught.value.kind is kind, caught.value
    return caught.value
