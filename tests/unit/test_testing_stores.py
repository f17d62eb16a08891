"""The stores for tests do what they are relied on for: a check that cannot fail checks nothing."""

from __future__ import annotations

from random import Random

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from blobfuse_dysk.errors import Kind, ServiceError, StoreError, TransportError
from blobfuse_dysk.store.contract import MAX_WRITE, Buffer, Extent
from blobfuse_dysk.testing import (
    CHECKS,
    CheckedStore,
    Fate,
    Fault,
    FaultyStore,
    LaneStore,
    MemoryStore,
    RecordingStore,
    SimBlob,
    SimClient,
    at_random,
    check_store,
    in_turn,
)
from tests.contract.factories import layer
from tests.contract.model import PAGES, SIZE, Run, model_of
from tests.unit.below import Below

A, B = "1" * 8 + "-1111-1111-1111-" + "1" * 12, "2" * 8 + "-2222-2222-2222-" + "2" * 12
DATA = b"x" * 512


class Broken(MemoryStore):
    """A store with one mistake."""

    def __init__(self, size: int, mistake: str) -> None:
        super().__init__(size)
        self.mistake = mistake

    async def read(self, offset: int, length: int) -> Buffer:
        if self.mistake == "short":
            return (await super().read(offset, length))[1:]
        return await super().read(offset, length)

    async def write(self, offset: int, data: Buffer) -> None:
        if self.mistake == "raises":
            raise OSError
        if self.mistake == "scribbles":
            data[0] = 1  # type: ignore[index]
        if self.mistake == "loses" and len(data) > 512:
            data = data[:-512]
        await super().write(offset, data)

    async def zero(self, offset: int, length: int) -> None:
        if self.mistake != "keeps":
            await super().zero(offset, length)

    async def extents(self, offset: int, length: int) -> list[Extent]:
        if self.mistake == "unsorted":
            return [(512, 512), (0, 512)]
        if self.mistake == "beyond":
            return [(offset, length + 512)]
        return [] if self.mistake == "misses" else await super().extents(offset, length)


@pytest.mark.parametrize(
    ("offset", "length"), [(1, 512), (0, 100), (0, 0), (-512, 512), (SIZE, 512), (SIZE - 512, 1024)]
)
async def test_checked_store_checks_ranges(offset: int, length: int) -> None:
    store = CheckedStore(MemoryStore(SIZE))
    for call in (
        store.read(offset, length),
        store.write(offset, bytes(length)),
        store.zero(offset, length),
        store.extents(offset, length),
    ):
        with pytest.raises(AssertionError, match="1: "):
            await call


async def test_checked_store_checks_what_comes_back() -> None:
    for mistake, words in (("short", "returned 511"), ("unsorted", "not sorted"), ("beyond", "extents beyond")):
        store = CheckedStore(Broken(SIZE, mistake))
        with pytest.raises(AssertionError, match=words):
            await (store.read(0, 512) if mistake == "short" else store.extents(0, 1024))
    with pytest.raises(AssertionError, match="4: "):
        await CheckedStore(Broken(SIZE, "raises")).write(0, DATA)
    with pytest.raises(AssertionError, match="6: "):
        await CheckedStore(Broken(SIZE, "scribbles")).write(0, bytearray(512))
    with pytest.raises(AssertionError, match="above"):
        await CheckedStore(MemoryStore(8 << 20)).write(0, bytes(MAX_WRITE + 512))


async def test_checked_store_checks_overlaps(autojump_clock: MockClock) -> None:
    def slow() -> FaultyStore:
        return FaultyStore(MemoryStore(SIZE), in_turn([Fault(kind=None, delay_s=1)]))

    for overlaps in (True, False):
        store = CheckedStore(slow(), overlaps=overlaps)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.write, 0, bytes(1024))
            await wait_all_tasks_blocked()
            await store.write(1024, DATA)
            if overlaps:
                await store.zero(512, 1024)
            else:
                with pytest.raises(AssertionError, match="2: "):
                    await store.zero(512, 1024)
        await store.zero(512, 1024)


async def test_checked_store_knows_that_it_is_closed() -> None:
    store = CheckedStore(MemoryStore(SIZE))
    await store.aclose()
    await store.aclose()
    with pytest.raises(AssertionError, match="7: "):
        await store.flush()


@pytest.mark.parametrize("mistake", ["loses", "keeps", "misses", "short"])
async def test_the_suite_finds_mistakes(mistake: str) -> None:
    with pytest.raises((AssertionError, BaseExceptionGroup)):
        await check_store(layer(lambda inner, nursery: Broken(inner.size, mistake)))


async def test_the_suite_is_run_whole() -> None:
    recording: list[RecordingStore] = []

    def record(inner: object, nursery: trio.Nursery) -> RecordingStore:
        recording.append(RecordingStore(MemoryStore(16 << 20)))
        return recording[-1]

    await check_store(layer(record))
    assert len(recording) == len(CHECKS)


async def test_recording_store_records(autojump_clock: MockClock) -> None:
    store = RecordingStore(FaultyStore(MemoryStore(SIZE), in_turn([None, Fault(kind=None, delay_s=5), Fault()])))
    await store.write(0, DATA)
    await store.zero(0, 512)
    with pytest.raises(StoreError):
        await store.read(512, 512)
    await store.flush()
    assert await store.extents(0, SIZE) == []
    await store.aclose()
    assert [call.name for call in store.calls] == ["write", "zero", "read", "flush", "extents", "aclose"]
    zero, read = store.calls[1:3]
    assert zero.ended == zero.started + 5
    assert isinstance(read.error, StoreError)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["write", "zero", "read"]), st.integers(0, PAGES - 1), st.integers(1, 4)), max_size=40
    ),
    st.integers(0, 2**32),
)
def test_faulty_store_keeps_the_contract(steps: list[tuple[str, int, int]], seed: int) -> None:
    """Late writes land, but never after a later write on their range."""

    async def main() -> None:
        random = Random(seed)
        faults = [Fault(when=when) for when in ("before", "lost", "dropped", "late")]
        store = FaultyStore(MemoryStore(SIZE), at_random(random, 0.5, faults), random=random)
        run = Run(store, model_of(), {Kind.UNREACHABLE})
        await run.task([(name, first, count, None, 0.0) for name, first, count in steps])

    trio.run(main, clock=MockClock(autojump_threshold=0))


async def test_late_writes_do_land(autojump_clock: MockClock) -> None:
    store = FaultyStore(MemoryStore(SIZE), in_turn([Fault(when="late")], ["write"]), random=Random(1))
    with pytest.raises(StoreError):
        await store.write(0, DATA)
    contents = [bytes(await store.read(0, 512)) for _ in range(20)]
    assert contents[-1] == DATA


class TestSimBlob:
    """The lease's table, as the service documents it."""

    def refused(self, code: str, call: object, *args: object) -> None:
        with pytest.raises(ServiceError) as caught:
            call(*args)  # type: ignore[operator]
        assert caught.value.code == code

    async def test_writes_by_lease_state(self, autojump_clock: MockClock) -> None:
        blob = SimBlob(SIZE)
        self.refused("LeaseNotPresentWithBlobOperation", blob.put, "a", 0, DATA, 512, A, None)
        blob.put("a", 0, DATA, 512, None, None)
        blob.acquire(15, A)
        blob.put("a", 0, DATA, 512, A, 0)
        self.refused("LeaseIdMissing", blob.put, "a", 0, DATA, 512, None, None)
        self.refused("LeaseIdMismatchWithBlobOperation", blob.put, "a", 0, DATA, 512, B, None)
        self.refused("SequenceNumberConditionNotMet", blob.put, "a", 0, DATA, 512, A, 1)
        self.refused("InvalidPageRange", blob.put, "a", SIZE, DATA, 512, A, 0)
        await trio.sleep(16)
        self.refused("LeaseLost", blob.put, "a", 0, DATA, 512, A, None)
        assert [write.code for write in blob.writes].count("") == 2

    async def test_renewal_after_expiry(self, autojump_clock: MockClock) -> None:
        blob = SimBlob(SIZE)
        blob.acquire(15, A)
        await trio.sleep(100)
        assert blob.lease_state == "expired"
        blob.renew(A)
        await trio.sleep(100)
        blob.put("x", 0, DATA, 512, None, None)
        self.refused("LeaseIdMismatchWithLeaseOperation", blob.renew, A)
        blob.acquire(15, A)
        self.refused("LeaseAlreadyPresent", blob.acquire, 15, B)
        blob.break_now()
        self.refused("LeaseIsBrokenAndCannotBeRenewed", blob.renew, A)
        blob.acquire(-1, B)
        await trio.sleep(10_000)
        assert blob.lease_duration == "infinite"
        blob.release(B)
        self.refused("LeaseNotPresentWithLeaseOperation", blob.break_now)
        assert blob.raise_number(5, None).number == blob.raise_number(3, None).number == 5

    async def test_a_request_outlives_its_sender(self, autojump_clock: MockClock, nursery: trio.Nursery) -> None:
        blob = SimBlob(SIZE)
        client = SimClient(blob, nursery, lambda name: Fate(before_s=10))
        with trio.move_on_after(1):
            await client.put_pages(0, DATA, lease_id=None, epoch=None, timeout_s=30)
        with pytest.raises(TransportError) as caught:
            await client.put_pages(512, DATA, lease_id=None, epoch=None, timeout_s=2)
        assert caught.value.sent
        assert blob.allocated == set()
        client.fate = lambda name: Fate()
        await client.put_pages(0, b"y" * 512, lease_id=None, epoch=None, timeout_s=2)
        await trio.sleep(20)
        assert blob.allocated == {0, 1}
        assert client.stragglers == [(0, 512)]

    async def test_overlaps_are_noticed(self, autojump_clock: MockClock, nursery: trio.Nursery) -> None:
        client = SimClient(SimBlob(SIZE), nursery)
        async with trio.open_nursery() as inner:
            for offset in (0, 512, 2048):
                inner.start_soon(
                    lambda at: client.clear_pages(at, 1024, lease_id=None, epoch=None, timeout_s=9), offset
                )
        assert len(client.overlaps) == 1


async def test_what_is_left_of_a_call_whose_caller_is_gone_ends_as_if_cancelled() -> None:
    below, ended = Below(), list[type[BaseException]]()

    async def left() -> None:
        try:
            await trio.sleep(1)
        except trio.Cancelled as error:
            ended.append(type(error))
            raise

    async with trio.open_nursery() as nursery:
        nursery.start_soon(LaneStore(below, nursery).write, 0, b"x" * 512)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    below.under_way.pop().hand_over(left())
    await wait_all_tasks_blocked()
    assert ended == [trio.Cancelled]
