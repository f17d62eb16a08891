"""Front and Meter: what the device sees of a fenced disk, and what status tells."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock

from blobfuse_dysk.errors import Kind, StoreError
from blobfuse_dysk.store.layers.front import Front
from blobfuse_dysk.store.parts.meter import WINDOW_S, Histogram, Meter
from blobfuse_dysk.testing import Fault, FaultyStore, MemoryStore, RecordingStore, in_turn

DATA = b"x" * 512


async def fails(call: object) -> Kind:
    with pytest.raises(StoreError) as caught:
        await call  # type: ignore[misc]
    return caught.value.kind


async def all_fail(front: Front) -> None:
    for call in (front.read(0, 512), front.write(0, DATA), front.zero(0, 512), front.flush(), front.extents(0, 512)):
        assert await fails(call) is Kind.FENCED


async def test_the_first_fenced_call_latches_all(autojump_clock: MockClock) -> None:
    below = RecordingStore(FaultyStore(MemoryStore(1 << 20), in_turn([Fault(Kind.GONE), Fault(Kind.FENCED)])))
    front = Front(below, Meter())
    assert await fails(front.write(0, DATA)) is Kind.GONE
    assert await fails(front.write(0, DATA)) is Kind.FENCED
    calls = len(below.calls)
    await all_fail(front)
    assert len(below.calls) == calls, "nothing was asked of the layers below"


async def test_every_call_reaches_the_layer_below_and_its_failure_the_caller(autojump_clock: MockClock) -> None:
    """A failure that may pass does not latch: the next call is tried."""
    calls: dict[str, Callable[[Front], Awaitable[object]]] = {
        "read": lambda front: front.read(0, 512),
        "write": lambda front: front.write(0, DATA),
        "zero": lambda front: front.zero(0, 512),
        "flush": lambda front: front.flush(),
    }
    for name, call in calls.items():
        below = RecordingStore(FaultyStore(MemoryStore(1 << 20), in_turn([Fault(Kind.UNREACHABLE)], (name,))))
        meter = Meter()
        front = Front(below, meter)
        assert await fails(call(front)) is Kind.UNREACHABLE
        assert meter.in_flight == 0
        await call(front)
        assert [done.name for done in below.calls] == [name, name]
        assert meter.in_flight == 0


async def test_extents_and_closing_are_passed_on(autojump_clock: MockClock) -> None:
    class Closing(MemoryStore):
        closed = 0

        async def aclose(self) -> None:
            self.closed += 1
            await super().aclose()

    below = Closing(1 << 20)
    front = Front(below, Meter())
    await front.write(4096, DATA)
    assert await front.extents(0, 1 << 20) == [(4096, 512)]
    await front.aclose()
    assert below.closed == 1


async def test_it_can_be_latched_from_outside(autojump_clock: MockClock) -> None:
    front = Front(MemoryStore(1 << 20), Meter())
    front.latch("taken")
    front.latch("again")
    await all_fail(front)
    with pytest.raises(StoreError, match="taken"):
        await front.flush()


async def test_calls_are_counted_and_timed(autojump_clock: MockClock) -> None:
    slow = FaultyStore(
        MemoryStore(1 << 20),
        lambda name, offset, length: Fault(Kind.GONE) if offset else Fault(kind=None, delay_s=0.1),
    )
    meter = Meter()
    front = Front(slow, meter)
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(front.read, 0, 512)
        await trio.sleep(0.05)
        assert meter.in_flight == 10
        nursery.start_soon(front.zero, 0, 4096)
    await front.flush()
    assert await fails(front.write(512, DATA)) is Kind.GONE
    with trio.move_on_after(0.01):
        await front.write(0, DATA)
    assert meter.in_flight == 0
    assert meter.calls == {"read": 10, "zero": 1, "flush": 1, "write": 2}
    assert meter.bytes == {"read": 5120, "zero": 4096, "flush": 0}
    assert meter.errors == {"gone": 1, "cancelled": 1}
    status = meter.status()
    assert isinstance(status["latency_ms"], dict)
    assert status["latency_ms"]["read"]["p99"] == pytest.approx(100, rel=0.1)


async def test_percentiles_of_a_rolling_window(autojump_clock: MockClock) -> None:
    histogram = Histogram()
    assert histogram.percentiles(50) == {"p50": None}
    for millis in range(1, 101):
        histogram.add(millis / 1000, trio.current_time())
    found = histogram.percentiles(50, 90, 99)
    for percent in (50, 90, 99):
        assert found[f"p{percent}"] == pytest.approx(percent, rel=0.1)
    await trio.sleep(WINDOW_S + 1)
    histogram.add(0.0, trio.current_time())
    assert histogram.percentiles(99)["p99"] == pytest.approx(99, rel=0.1), "the window before still counts"
    await trio.sleep(WINDOW_S)
    assert histogram.percentiles(99)["p99"] == pytest.approx(0.001, rel=0.1)
    await trio.sleep(10 * WINDOW_S)
    assert histogram.percentiles(99) == {"p99": None}
    histogram.add(1e9, trio.current_time())
    assert histogram.percentiles(50)["p50"] is not None
