"""Growing: what a request that is lost, late, void or refused does to the size; none ever makes a blob smaller."""

from __future__ import annotations

import os
from functools import partial

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from blobfuse_dysk.errors import Kind, StoreError
from blobfuse_dysk.store.contract import PAGE
from blobfuse_dysk.store.layers.order import Order
from blobfuse_dysk.store.layers.pageblob import PageBlob
from blobfuse_dysk.store.layers.readcache import ReadCache
from blobfuse_dysk.store.layers.sparse import Sparse
from blobfuse_dysk.store.lease.token import Guard
from blobfuse_dysk.store.parts.ring import MIN_CAPACITY, Ring
from blobfuse_dysk.testing import (
    CheckedStore,
    Fate,
    Fault,
    FaultyStore,
    MemoryStore,
    RecordingStore,
    SimBlob,
    SimClient,
)
from blobfuse_dysk.testing.fates import refuse
from tests.simulation.stacks import DATA, LEASE, Node, attached, held
from tests.slowservice import SlowService
from tests.unit.fenced import opened as fence_opened

SIZE = 1 << 20
CHUNK = 256 << 10
LATE = Fate(before_s=100.0, lost_s=1.0)  # arrives long after its sender stopped waiting
LOST = Fate(before_s=0.001, lost_s=0.0005)  # is carried out, and the answer does not come


def pageblob(network: trio.Nursery, blob: SimBlob, **fates: list[Fate]) -> tuple[PageBlob, SimClient, Guard]:
    """A PageBlob by itself, with the lease and the epoch 1."""
    client = SimClient(blob, network)
    left = {name: iter(each) for name, each in fates.items()}
    client.fate = lambda name: next(left.get(name, iter(())), Fate())
    blob.acquire(-1, LEASE)
    guard = Guard(LEASE, blob.raise_number(1, LEASE).number, float("inf"))
    return PageBlob(client, SIZE, guard), client, guard


async def refused(call: object, kind: Kind) -> StoreError:
    with pytest.raises(StoreError) as caught:
        await call  # type: ignore[misc]
    assert caught.value.kind is kind, caught.value
    return caught.value


# -- one request -------------------------------------------------------------------------------------------------------


async def test_the_blob_is_looked_at_and_resized(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    blob = SimBlob(SIZE)
    store, client, _ = pageblob(nursery, blob)
    await store.grow(SIZE + PAGE)
    assert (store.size, blob.size, client.sent) == (SIZE + PAGE, SIZE + PAGE, ["properties", "resize"])
    await store.write(SIZE, DATA)
    assert await store.read(SIZE, PAGE) == DATA


async def test_a_blob_that_has_the_size_is_taken_as_it_is(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    """It is what a grow with a lost answer leaves."""
    blob = SimBlob(SIZE)
    store, client, _ = pageblob(nursery, blob)
    blob.resize(SIZE + PAGE, LEASE)
    await store.grow(SIZE + PAGE)
    assert (store.size, client.sent) == (SIZE + PAGE, ["properties"])


async def test_a_blob_is_never_made_smaller(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    blob = SimBlob(SIZE)
    store, client, _ = pageblob(nursery, blob)
    blob.resize(SIZE + 2 * PAGE, LEASE)
    error = await refused(store.grow(SIZE + PAGE), Kind.REJECTED)
    assert str(SIZE + 2 * PAGE) in str(error) and not error.unknown
    assert (store.size, blob.size, client.sent) == (SIZE, SIZE + 2 * PAGE, ["properties"])


async def test_it_is_looked_at_again_when_it_changed_in_between(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    blob = SimBlob(SIZE)
    store, client, _ = pageblob(nursery, blob, resize=[Fate(before_s=1.0)])
    nursery.start_soon(store.grow, SIZE + PAGE)
    await trio.sleep(0.5)
    await store.write(0, DATA)
    await trio.sleep(5)
    assert (store.size, blob.size) == (SIZE + PAGE, SIZE + PAGE)
    assert client.sent == ["properties", "resize", "put", "properties", "resize"]


async def test_a_blob_that_changes_all_the_time_does_not_grow(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    blob = SimBlob(SIZE)
    store, client, _ = pageblob(nursery, blob, resize=[Fate(error=refuse(412, "ConditionNotMet"))] * 20)
    error = await refused(store.grow(SIZE + PAGE), Kind.CHANGED)
    assert not error.unknown
    assert client.sent.count("resize") == 10
    assert (store.size, blob.size) == (SIZE, SIZE)


async def test_nothing_is_asked_for_in_another_epoch(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    blob = SimBlob(SIZE)
    store, client, _ = pageblob(nursery, blob)
    blob.raise_number(2, LEASE)
    error = await refused(store.grow(SIZE + PAGE), Kind.EPOCH)
    assert error.epoch == 1 and not error.unknown
    assert client.sent == ["properties"]


async def test_nothing_is_asked_for_when_the_lease_ran_out_during_the_look(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    blob = SimBlob(SIZE)
    store, client, guard = pageblob(nursery, blob, properties=[Fate(before_s=5.0)])
    guard.valid_until = trio.current_time() + 2
    await refused(store.grow(SIZE + PAGE), Kind.LEASE)
    assert client.sent == ["properties"]


@pytest.mark.parametrize(("fate", "unknown"), [(LOST, True), (Fate(error=refuse(409, "LeaseLost")), False)])
async def test_whether_it_may_still_be_done_is_said_with_its_epoch(
    fate: Fate, unknown: bool, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    store, _, _ = pageblob(nursery, SimBlob(SIZE), resize=[fate])
    with pytest.raises(StoreError) as caught:
        await store.grow(SIZE + PAGE)
    assert (caught.value.unknown, caught.value.epoch) == (unknown, 1)
    assert store.size == SIZE


async def test_a_look_that_fails_leaves_nothing_in_doubt(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    store, client, _ = pageblob(nursery, SimBlob(SIZE), properties=[LOST])
    error = await refused(store.grow(SIZE + PAGE), Kind.UNREACHABLE)
    assert not error.unknown
    assert client.sent == ["properties"]


async def test_a_disk_that_is_attached_read_only_does_not_grow(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    client = SimClient(SimBlob(SIZE), nursery)
    await refused(PageBlob(client, SIZE, None).grow(SIZE + PAGE), Kind.REJECTED)
    assert client.sent == []


# -- layers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unknown", [True, False])
async def test_a_grow_in_doubt_makes_a_raise_due_before_anything_else_passes(
    unknown: bool, autojump_clock: MockClock
) -> None:
    fault = Fault(Kind.UNREACHABLE, "dropped" if unknown else "before")
    async with fence_opened() as it:
        it.data = RecordingStore(
            FaultyStore(MemoryStore(SIZE), lambda name, offset, length: fault if name == "grow" else None)
        )
        it.fence._inner = it.data
        epoch = it.guard.epoch
        await refused(it.fence.grow(SIZE + PAGE), Kind.UNREACHABLE)
        assert it.fence.is_open is not unknown
        await it.fence.write(0, DATA)
        assert (it.guard.epoch > epoch) is unknown


async def test_a_grow_waits_for_a_raise_that_is_due(autojump_clock: MockClock) -> None:
    async with fence_opened(Fault(Kind.UNREACHABLE, "lost")) as it:
        epoch = it.guard.epoch
        await refused(it.fence.write(0, DATA), Kind.UNREACHABLE)
        it.data.calls.clear()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(it.fence.grow, SIZE + PAGE)
            await trio.lowlevel.checkpoint()
            assert it.data.calls == []
        assert it.guard.epoch > epoch
        assert it.fence.size == SIZE + PAGE


async def test_it_is_alone_among_modifying_calls_below_order(autojump_clock: MockClock) -> None:
    """Older ones end first, younger ones begin later; reads pass."""
    inner = FaultyStore(
        MemoryStore(SIZE),
        lambda name, offset, length: None if name == "read" else Fault(kind=None, delay_s=1),
    )
    recording = RecordingStore(CheckedStore(inner))
    order = Order(recording)
    async with trio.open_nursery() as nursery:
        for call in (
            partial(order.write, 0, DATA),
            partial(order.grow, SIZE + PAGE),
            partial(order.write, 16384, DATA),
            partial(order.read, 0, PAGE),
        ):
            nursery.start_soon(call)
            await wait_all_tasks_blocked()
    times = [(call.name, call.started, call.ended) for call in recording.calls]
    start = times[0][1]
    assert [(name, at - start, (end or 0) - start) for name, at, end in times] == [
        ("write", 0, 1),
        ("read", 0, 0),
        ("grow", 1, 2),
        ("write", 2, 3),
    ]


async def test_a_grow_that_is_cancelled_or_fails_lets_the_others_go_on(autojump_clock: MockClock) -> None:
    inner = FaultyStore(
        MemoryStore(SIZE),
        lambda name, offset, length: Fault(Kind.TIMEOUT, delay_s=5) if name == "grow" else None,
    )
    order = Order(inner)
    with trio.move_on_after(1):
        await order.grow(SIZE + PAGE)
    await order.write(0, DATA)
    await refused(order.grow(SIZE + PAGE), Kind.TIMEOUT)
    await order.write(SIZE - PAGE, DATA)


async def test_new_regions_are_listed_and_what_is_new_of_the_last_one_is_free(autojump_clock: MockClock) -> None:
    memory = MemoryStore(3 * SIZE // 2)
    recording = RecordingStore(CheckedStore(memory))
    async with trio.open_nursery() as nursery:
        sparse = Sparse(recording, nursery, region=SIZE)
        assert bytes(await sparse.read(SIZE, PAGE)) == bytes(PAGE)
        assert recording.named("extents") == [("extents", SIZE, SIZE // 2)]
        await sparse.grow(3 * SIZE + PAGE)
        recording.calls.clear()
        assert bytes(await sparse.read(2 * SIZE - PAGE, PAGE)) == bytes(PAGE)
        assert recording.calls == []
        assert bytes(await sparse.read(3 * SIZE, PAGE)) == bytes(PAGE)
        assert recording.named("extents", "read") == [("extents", 3 * SIZE, PAGE)]
        await sparse.write(3 * SIZE - PAGE, DATA * 2)
        assert await sparse.extents(0, sparse.size) == [(3 * SIZE - PAGE, 2 * PAGE)]
        nursery.cancel_scope.cancel()


async def test_a_list_that_is_under_way_while_the_disk_grows_hides_nothing_written_later(
    autojump_clock: MockClock,
) -> None:
    memory = MemoryStore(SIZE)
    slow = FaultyStore(memory, lambda name, *_: Fault(kind=None, delay_s=1) if name == "extents" else None)
    async with trio.open_nursery() as nursery:
        sparse = Sparse(CheckedStore(slow), nursery, region=4 * SIZE)
        nursery.start_soon(sparse.extents, 0, SIZE)
        await trio.sleep(0.5)
        await sparse.grow(2 * SIZE)
        await sparse.write(2 * SIZE - PAGE, DATA)
        await trio.sleep(2)
        assert bytes(await sparse.read(2 * SIZE - PAGE, PAGE)) == DATA
        assert await sparse.extents(0, 2 * SIZE) == [(2 * SIZE - PAGE, PAGE)]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("when", ["filled before", "being filled", "filled meanwhile"])
async def test_the_piece_at_the_old_end_is_read_again(when: str, autojump_clock: MockClock) -> None:
    size = 3 * CHUNK + 8192
    service = SlowService(size=size, latency_s=0.1)
    async with trio.open_nursery() as nursery:
        slow = FaultyStore(service, lambda name, *_: Fault(kind=None, delay_s=100) if name == "grow" else None)
        cache = ReadCache(slow if when == "filled meanwhile" else service, nursery, capacity=4 << 20, window=2 << 20)
        if when == "filled meanwhile":
            nursery.start_soon(cache.grow, 5 * CHUNK)
        for offset in range(0, 3 * CHUNK, 65536):  # the piece at the end is not all read, so it stays
            await cache.read(offset, 65536)
        if when == "filled before":
            await trio.sleep(10)
        if when == "filled meanwhile":
            await trio.sleep(110)
        else:
            await cache.grow(5 * CHUNK)
        assert service.size == cache.size == 5 * CHUNK
        await cache.write(5 * CHUNK - PAGE, DATA)
        await trio.sleep(1)
        assert (size in [piece.end for piece in cache._pieces.values()]) == (when != "filled meanwhile")
        assert bytes(await cache.read(size - PAGE, 8192)) == bytes(8192)
        assert bytes(await cache.read(3 * CHUNK, 2 * CHUNK)) == bytes(2 * CHUNK - PAGE) + DATA
        nursery.cancel_scope.cancel()


async def test_a_reader_is_ahead_of_its_requests_beyond_the_old_end(autojump_clock: MockClock) -> None:
    service = SlowService(size=8 * CHUNK)
    async with trio.open_nursery() as nursery:
        cache = ReadCache(service, nursery, capacity=4 << 20, window=2 << 20)
        for offset in range(0, 8 * CHUNK, 65536):
            await cache.read(offset, 65536)
        await cache.grow(16 * CHUNK)
        service.reads.clear()
        for offset in range(8 * CHUNK, 16 * CHUNK, 65536):
            await cache.read(offset, 65536)
        assert len(service.reads) <= 8 + 2
        nursery.cancel_scope.cancel()


# -- the whole stack ---------------------------------------------------------------------------------------------------


async def test_a_late_copy_does_not_cut_off_what_was_written_after_a_larger_grow(
    blob: SimBlob, node: Node, autojump_clock: MockClock
) -> None:
    async with attached(node("1", resize=[LATE])) as stack:
        epoch = stack.epoch or 0
        await stack.store.grow(SIZE + 4096)  # the first attempt is on its way for long
        assert (stack.epoch or 0) > epoch, "what may still land is made void"
        await stack.store.grow(SIZE + 8192)
        await stack.store.write(SIZE + 8192 - PAGE, DATA)
        await trio.sleep(200)
        assert blob.size == stack.store.size == SIZE + 8192
        assert bytes(await stack.store.read(SIZE + 8192 - PAGE, PAGE)) == DATA
        assert not blob.shrunk


async def test_a_late_copy_of_a_grow_that_was_given_up_does_nothing_at_another_attachment(
    blob: SimBlob, node: Node, autojump_clock: MockClock
) -> None:
    """Even under the same lease id, which only a user can choose."""
    async with attached(node("1", resize=[LATE]), lease_id=LEASE) as stack:
        with trio.move_on_after(0.5):
            await stack.store.grow(SIZE + 4096)
        assert stack.store.size == SIZE
        await stack.store.write(0, DATA)
        await stack.release()
    async with attached(node("2"), lease_id=LEASE) as stack:
        await stack.store.grow(SIZE + 8192)
        await stack.store.write(SIZE + 4096, DATA)
        await trio.sleep(200)
        assert blob.size == SIZE + 8192
        assert bytes(await stack.store.read(SIZE + 4096, PAGE)) == DATA


async def test_a_worker_that_takes_over_has_the_blobs_size(
    blob: SimBlob, node: Node, autojump_clock: MockClock
) -> None:
    """The one before died after the service had resized it; what it had accepted there is written."""
    memory = os.memfd_create("ring")
    async with attached(node("1"), cache="readwrite", ring=Ring(memory, MIN_CAPACITY)) as stack:
        await stack.store.grow(SIZE + 4096)
        await stack.store.write(SIZE + 4096 - PAGE, DATA)
        state = held(stack)
    async with attached(node("2"), cache="readwrite", ring=Ring(memory), resume=state) as stack:
        assert stack.store.size == SIZE + 4096
        await stack.store.flush()
        assert blob.store.peek(SIZE + 4096 - PAGE, PAGE) == DATA
    os.close(memory)


async def test_a_fenced_disk_does_not_grow(blob: SimBlob, node: Node, autojump_clock: MockClock) -> None:
    async with attached(node("1")) as stack, attached(node("2"), break_lease=True):
        await trio.sleep(61)
        await refused(stack.store.grow(SIZE + 4096), Kind.FENCED)
        assert blob.size == SIZE


async def test_a_snapshot_and_a_disk_attached_read_only_keep_their_size(
    blob: SimBlob, node: Node, autojump_clock: MockClock
) -> None:
    async with attached(node("1"), read_only=True) as stack:
        await refused(stack.store.grow(SIZE + 4096), Kind.REJECTED)
        assert blob.size == stack.store.size == SIZE
