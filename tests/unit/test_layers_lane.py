"""The plain lane of single layers: what they let begin, and what they make of how a call ends."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from random import Random

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from blobfuse_dysk.errors import Kind, StoreError
from blobfuse_dysk.invariant import InvariantError
from blobfuse_dysk.store.layers.fence import Fence
from blobfuse_dysk.store.layers.front import Front
from blobfuse_dysk.store.layers.order import Order
from blobfuse_dysk.store.layers.pageblob import PageBlob
from blobfuse_dysk.store.layers.readcache import ReadCache
from blobfuse_dysk.store.layers.retry import Retry
from blobfuse_dysk.store.layers.sparse import Sparse
from blobfuse_dysk.store.layers.throttle import Throttle
from blobfuse_dysk.store.lease.requests import BlobLease
from blobfuse_dysk.store.lease.token import Guard
from blobfuse_dysk.store.parts.limiter import SLOT, Limiter
from blobfuse_dysk.store.parts.meter import Meter
from blobfuse_dysk.store.parts.readahead import FAR_S, LARGE, SURE, UNIT
from blobfuse_dysk.store.passage import DONE, NO, UNDER_WAY
from blobfuse_dysk.testing import SimBlob, SimClient
from tests.unit.below import DATA, SIZE, Below, Caller, gives, raises
from tests.unit.fenced import OURS


@pytest.fixture
def below() -> Below:
    return Below()


@pytest.mark.parametrize("data", [None, DATA])
async def test_front_counts_what_is_in_flight_and_what_has_succeeded(data: bytes | None, below: Below) -> None:
    meter = Meter()
    front, name = Front(below, meter), "read" if data is None else "write"
    for result in (DATA, StoreError("a test", Kind.GONE)):
        call = Caller(front, data)
        assert (call.began, meter.in_flight) == (UNDER_WAY, 1)
        if isinstance(result, bytes):
            below.under_way.pop().succeed(result, 2.0)
            assert call.has_ended
        else:
            below.under_way.pop().hand_over(raises(result))
            assert meter.in_flight == 1
            with pytest.raises(StoreError, match="a test"):
                await call.left()
        assert meter.in_flight == 0
    call = Caller(front, data)
    below.under_way.pop().hand_over(gives(DATA))
    below.begins = NO
    assert (Caller(front, data).began, meter.in_flight) == (NO, 1)
    await call.left()
    assert (meter.in_flight, meter.calls[name]) == (0, 3)


async def test_front_counts_what_is_done_at_once(below: Below) -> None:
    meter = Meter()
    below.begins = DONE
    assert Caller(Front(below, meter), DATA).began == DONE
    assert (meter.in_flight, meter.calls["write"]) == (0, 1)


@pytest.mark.parametrize("length", [0, 511, 513])
async def test_front_gives_no_data_of_another_length(length: int, below: Below) -> None:
    front = Front(below, Meter())
    calls = [Caller(front), Caller(front)]
    with pytest.raises(InvariantError):
        below.under_way[0].succeed(bytes(length), 2.0)
    below.under_way[1].hand_over(gives(bytes(length)))
    with pytest.raises(InvariantError):
        await calls[1].left()
    assert not calls[0].has_ended


async def test_front_lets_nothing_begin_on_a_fenced_disk_and_no_write_on_one_that_failed(below: Below) -> None:
    front = Front(below, Meter())
    front.refuse_writes(StoreError("a test", Kind.GONE))
    assert (Caller(front).began, Caller(front, DATA).began) == (UNDER_WAY, NO)
    front = Front(below, Meter())
    call = Caller(front, DATA)
    below.under_way.pop().hand_over(raises(StoreError("a test", Kind.FENCED)))
    with pytest.raises(StoreError):
        await call.left()
    assert (Caller(front).began, Caller(front, DATA).began) == (NO, NO)
    front = Front(below, Meter())
    front.latch("a test")
    assert (Caller(front).began, Caller(front, DATA).began) == (NO, NO)


@pytest.fixture
async def fence(below: Below, autojump_clock: MockClock, nursery: trio.Nursery) -> AsyncIterator[Fence]:
    """Without what it does in the background."""
    blob = SimBlob(SIZE)
    blob.acquire(60, OURS)
    guard = Guard(OURS, blob.raise_number(1, OURS).number, trio.current_time() + 60)
    guard.proved_at = 0.0
    yield Fence(below, BlobLease(SimClient(blob, nursery)), guard, lease_s=60, random=Random(0))


async def test_a_fenced_disk_is_not_read(fence: Fence) -> None:
    assert Caller(fence).began == UNDER_WAY
    fence._fenced = StoreError("a test", Kind.FENCED)
    assert Caller(fence).began == NO


async def test_no_write_begins_before_the_name_is_written_or_while_a_raise_is_due(fence: Fence) -> None:
    async def name() -> None: ...

    assert Caller(fence, DATA).began == UNDER_WAY
    fence._first = name
    assert (Caller(fence).began, Caller(fence, DATA).began) == (UNDER_WAY, NO)
    fence._first = None
    assert Caller(fence, DATA).began == UNDER_WAY
    fence._suspect(None)
    assert (Caller(fence).began, Caller(fence, DATA).began) == (UNDER_WAY, NO)


async def test_a_write_proves_the_lease_as_of_when_it_was_sent(fence: Fence, below: Below) -> None:
    for started in (5.0, 7.0, 6.0):
        assert Caller(fence, DATA, started).began == UNDER_WAY
    proofs = []
    for passage, ended in zip(below.under_way, (8.0, 9.0, 10.0), strict=True):
        passage.succeed(b"", ended)
        proofs.append(fence._guard.proved_at)
    assert proofs == [5.0, 7.0, 7.0]


async def test_what_is_left_of_a_write_that_may_still_land_has_a_raise_due(fence: Fence, below: Below) -> None:
    call = Caller(fence, DATA)
    below.under_way.pop().hand_over(raises(StoreError("a test", Kind.UNREACHABLE, unknown=True)))
    with pytest.raises(StoreError):
        await call.left()
    assert fence._raise_due
    assert Caller(fence, DATA).began == NO


@pytest.mark.parametrize("error", [None, StoreError("a test", Kind.GONE)])
async def test_order_gives_the_place_up_when_what_was_left_has_ended(error: StoreError | None, below: Below) -> None:
    order = Order(below)
    call = Caller(order, DATA)
    assert (call.began, Caller(order, DATA).began) == (UNDER_WAY, NO)
    below.under_way.pop().hand_over(gives() if error is None else raises(error))
    assert Caller(order, DATA).began == NO
    if error is None:
        await call.left()
    else:
        with pytest.raises(StoreError, match="a test"):
            await call.left()
    assert Caller(order, DATA).began == UNDER_WAY
    below.under_way.pop().succeed(b"", 2.0)
    below.begins = NO
    assert Caller(order, DATA).began == NO
    assert not order._lock._buckets


async def test_page_blob_begins_nothing_that_its_client_does_not(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, meter = SimClient(SimBlob(SIZE), nursery), Meter()
    for name in ("begin_get", "begin_put"):
        monkeypatch.setattr(client, name, lambda *call: False)
    store = PageBlob(client, SIZE, Guard(OURS, 1, float("inf")), meter=meter)
    assert (Caller(store).began, Caller(store, DATA).began, meter.in_flight) == (NO, NO, 0)


@pytest.mark.parametrize("how", ["ended", "left", "failed"])
async def test_read_cache_forgets_what_it_fetched_while_a_write_was_under_way(
    how: str, below: Below, nursery: trio.Nursery
) -> None:
    cache = ReadCache(below, nursery, capacity=4 << 20, window=2 << 20)
    write = Caller(cache, DATA, offset=4 * UNIT + 512)
    passage = below.under_way.pop()
    for number in range(4):
        Caller(cache, offset=number * UNIT, length=UNIT)
        await wait_all_tasks_blocked()
    assert Caller(cache, offset=4 * UNIT).began == DONE
    if how == "ended":
        passage.succeed(b"", 2.0)
    else:
        passage.hand_over(gives() if how == "left" else raises(StoreError("a test", Kind.GONE, unknown=True)))
        assert Caller(cache, offset=4 * UNIT).began == DONE
        with contextlib.suppress(StoreError):
            await write.left()
    assert Caller(cache, offset=4 * UNIT).began == UNDER_WAY


async def test_read_cache_gives_at_once_what_is_there_and_not_what_is_on_its_way(
    below: Below, nursery: trio.Nursery
) -> None:
    await below.write(2 * UNIT, DATA)
    cache = ReadCache(below, nursery, capacity=4 << 20, window=2 << 20)
    for number in range(2):
        assert Caller(cache, offset=number * UNIT, length=UNIT).began == UNDER_WAY
    for began in (NO, DONE):
        assert (read := Caller(cache, offset=2 * UNIT)).began == began
        await wait_all_tasks_blocked()
    assert read.passage.result == DATA
    assert (cache.hits, cache.misses) == (1, 2)
    assert Caller(cache, offset=2 * UNIT + 512, length=UNIT - 512).began == DONE
    assert Caller(cache, offset=2 * UNIT, length=UNIT).began == UNDER_WAY  # all of it was read, so it is gone


async def test_read_cache_goes_on_ahead_of_what_it_gives_at_once(below: Below, nursery: trio.Nursery) -> None:
    cache = ReadCache(below, nursery, capacity=4 << 20, window=1 << 20)
    began = []
    for number in range(SIZE // UNIT):
        began.append(Caller(cache, offset=number * UNIT, length=UNIT).began)
        await wait_all_tasks_blocked()
    assert began == [UNDER_WAY] * 2 + [DONE] * (len(began) - 2)


@pytest.mark.parametrize("how", ["ended", "left", "failed"])
async def test_read_cache_has_a_large_read_among_those_in_progress_until_its_end(
    how: str, below: Below, nursery: trio.Nursery
) -> None:
    cache = ReadCache(below, nursery, capacity=4 << 20, window=2 << 20)
    read = Caller(cache, length=LARGE)
    assert (read.began, cache._large) == (UNDER_WAY, [0])
    passage = below.under_way.pop()
    if how == "ended":
        passage.succeed(b"", 2.0)
    else:
        passage.hand_over(gives(DATA) if how == "left" else raises(StoreError("a test", Kind.GONE)))
        assert cache._large == [0]
        with contextlib.suppress(StoreError):
            assert await read.left() == DATA
    assert cache._large == []
    assert Caller(cache, length=LARGE - 512).began == UNDER_WAY
    assert cache._large == []


async def test_read_cache_sees_by_large_reads_that_the_service_is_far(below: Below, nursery: trio.Nursery) -> None:
    cache = ReadCache(below, nursery, capacity=4 << 20, window=2 << 20)
    for _ in range(SURE):
        assert not cache._quickest.is_far
        Caller(cache, length=LARGE, offset=1 << 20)
        below.under_way.pop().succeed(b"", 1.0 + FAR_S)
    assert cache._quickest.is_far


async def test_read_cache_fetches_ahead_of_a_large_read_from_where_it_ends(below: Below, nursery: trio.Nursery) -> None:
    cache = ReadCache(below, nursery, capacity=4 << 20, window=2 << 20)
    for offset in (0, LARGE):
        assert Caller(cache, offset=offset, length=LARGE).began == UNDER_WAY
    assert [(piece.start, piece.end) for piece in cache._pieces.values()] == [(2 * LARGE, 3 * LARGE)]
    await wait_all_tasks_blocked()
    assert Caller(cache, offset=2 * LARGE, length=LARGE).began == DONE
    assert cache._large == [0, LARGE]


@pytest.mark.parametrize("result", [DATA, DATA[1:], None])
async def test_front_counts_and_checks_what_is_given_at_once(result: bytes | None, below: Below) -> None:
    meter = Meter()
    front = Front(below, meter=meter)
    below.begins, below.gives = DONE, result
    if result == DATA:
        assert Caller(front).began == DONE
    else:
        with pytest.raises(InvariantError):
            Caller(front)
    assert (meter.in_flight, meter.calls) == ((0, {"read": 1}) if result == DATA else (1, {}))


async def test_sparse_lets_begin_what_is_all_allocated_or_gets_data(below: Below, nursery: trio.Nursery) -> None:
    sparse = Sparse(below, nursery, region=1 << 20, known=(0, [(0, 4096), ((1 << 20) - 4096, 4096)]))
    for offset, length, begins in (
        (0, 4096, UNDER_WAY),
        (0, 4608, NO),
        (8192, 512, NO),
        ((1 << 20) - 4096, 4096, UNDER_WAY),
        ((1 << 20) - 4096, 8192, NO),
    ):
        assert Caller(sparse, offset=offset, length=length).began == begins
    assert Caller(sparse, bytes(512), offset=8192).began == NO
    below.begins = NO
    assert Caller(sparse, DATA, offset=8192).began == NO
    below.begins = UNDER_WAY
    assert Caller(sparse, offset=8192).began == NO
    assert Caller(sparse, DATA, offset=8192).began == UNDER_WAY
    assert Caller(sparse, offset=8192).began == UNDER_WAY


@pytest.mark.parametrize("data", [None, DATA])
async def test_retry_lets_nothing_begin_that_may_take_longer_than_the_call(data: bytes | None, below: Below) -> None:
    retry = Retry(below, io_timeout_s=30.0, random=Random(0), direct_s=20.0)
    assert Caller(retry, data).began == UNDER_WAY
    retry.set_io_timeout(10.0)
    assert Caller(retry, data).began == NO
    retry.set_io_timeout(None)
    assert Caller(retry, data).began == UNDER_WAY
    retry.end_writes(StoreError("a test", Kind.GONE))
    assert Caller(retry, data).began == NO
    assert len(retry._calls) == 2
    for passage in below.under_way:
        passage.succeed(DATA, 2.0)
    assert not retry._calls


@pytest.mark.parametrize("data", [None, DATA])
async def test_throttle_lets_begin_what_there_is_a_slot_for(
    data: bytes | None, below: Below, autojump_clock: MockClock
) -> None:
    limiter = Limiter(first=2, most=2)
    throttle = Throttle(below, limiter=limiter)
    below.begins = NO
    assert (Caller(throttle, data).began, limiter.in_flight) == (NO, 0)
    below.begins = UNDER_WAY
    calls = [Caller(throttle, data) for _ in range(3)]
    assert ([call.began for call in calls], limiter.in_flight) == ([UNDER_WAY, UNDER_WAY, NO], 2)
    first, second = below.under_way
    first.succeed(DATA, 2.0)
    assert limiter.in_flight == 1
    second.hand_over(raises(StoreError("a test", Kind.GONE)))
    assert limiter.in_flight == 1
    with pytest.raises(StoreError, match="a test"):
        await calls[1].left()
    assert (Caller(throttle, data).began, limiter.in_flight) == (UNDER_WAY, 1)


async def test_throttle_has_a_large_call_take_its_slots_and_return_them(below: Below) -> None:
    limiter = Limiter(first=8)
    throttle = Throttle(below, limiter=limiter)
    for _ in range(3):
        assert Caller(throttle, length=4 * SLOT).began == UNDER_WAY
        assert limiter.in_flight > 3
        below.under_way.pop().succeed(DATA, 2.0)
        assert limiter.in_flight == 0
