"""A worker's snapshots of a simulated blob: what is in them, and what a request that comes late makes of it."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from blobfuse_dysk.device.worker.snapshots import barrier, take
from blobfuse_dysk.errors import DyskError, Kind, StoreError, UsageError
from blobfuse_dysk.store.parts.ring import MIN_CAPACITY, Ring
from blobfuse_dysk.testing import Fate, SimBlob
from tests.simulation.stacks import DATA, Node, attached

LATE = Fate(before_s=100.0, lost_s=1.0)  # arrives long after its sender stopped waiting


@pytest.fixture
def ring() -> Ring:
    return Ring(os.memfd_create("ring"), MIN_CAPACITY)


async def test_what_was_accepted_is_at_the_service_by_the_barrier(
    blob: SimBlob, node: Node, ring: Ring, autojump_clock: MockClock
) -> None:
    async with attached(node("1"), cache="readwrite", ring=ring, write_delay_s=1000.0) as stack:
        await stack.store.write(4096, DATA)
        assert blob.get(4096, len(DATA)) != DATA
        etag = await barrier(stack, 10)
        assert blob.get(4096, len(DATA)) == DATA
        assert etag == blob.etag
        await stack.store.write(8192, DATA)
        time, size = await take(stack, {"name": "x"}, None, 10)
        content, metadata = blob.snapshots[time]
        assert content[8192 : 8192 + len(DATA)] == DATA
        assert (size, metadata) == (blob.size, {"name": "x"})  # without the holder's name


async def test_none_is_made_of_what_was_written_after_the_barrier(
    blob: SimBlob, node: Node, autojump_clock: MockClock
) -> None:
    async with attached(node("1")) as stack:
        etag = await barrier(stack, 10)
        assert (await take(stack, {}, etag, 10))[0] in blob.snapshots
        await stack.store.write(0, DATA)
        with pytest.raises(StoreError) as caught:
            await take(stack, {}, etag, 10)
        assert (caught.value.kind, caught.value.unknown) == (Kind.CHANGED, False)
        assert len(blob.snapshots) == 1


async def test_a_request_that_comes_late_makes_none_once_somebody_wrote(
    blob: SimBlob, node: Node, autojump_clock: MockClock
) -> None:
    client = node("1")
    async with attached(client) as stack:
        etag = await barrier(stack, 10)
        client.fate = lambda name: LATE if name == "snapshot" else Fate()
        with pytest.raises(StoreError) as caught:
            await take(stack, {}, etag, 10)
        assert caught.value.unknown
        await stack.store.write(0, DATA)
        await stack.store.flush()
        await trio.sleep(200)
        assert blob.snapshots == {}


async def test_its_outcome_is_unknown_if_its_time_is_over(blob: SimBlob, node: Node, autojump_clock: MockClock) -> None:
    client = node("1")
    async with attached(client) as stack:
        client.fate = lambda name: replace(LATE, lost_s=1000.0) if name == "snapshot" else Fate()
        with trio.fail_after(3), pytest.raises(StoreError) as caught:
            await take(stack, {}, None, 2)
        assert caught.value.unknown
        await trio.sleep(200)
        assert len(blob.snapshots) == 1


async def test_a_barrier_has_an_end(blob: SimBlob, node: Node, autojump_clock: MockClock) -> None:
    client = node("1")
    async with attached(client, io_timeout_s=None) as stack:
        await stack.store.write(0, DATA)
        client.down = True
        with trio.fail_after(20), pytest.raises(DyskError, match="within 5 s"):
            await barrier(stack, 5)
        client.down = False


async def test_a_node_that_lost_the_lease_makes_none(blob: SimBlob, node: Node, autojump_clock: MockClock) -> None:
    async with attached(node("1")) as stack:
        etag = await barrier(stack, 10)
        blob.break_now()
        for each in (etag, None):
            with pytest.raises(StoreError) as caught:
                await take(stack, {}, each, 10)
            assert not caught.value.unknown
        assert blob.snapshots == {}


async def test_none_is_made_of_a_clone_that_is_not_complete(
    blob: SimBlob, node: Node, autojump_clock: MockClock
) -> None:
    async with attached(node("1")) as stack:
        blob.metadata = {**blob.metadata, "Dysk_Incomplete": "1"}
        with pytest.raises(UsageError, match="incomplete clone"):
            await take(stack, {}, None, 10)
        assert blob.snapshots == {}
