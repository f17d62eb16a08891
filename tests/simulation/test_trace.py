"""What a trace says of each call, how much it says at most, when it ends, and that nothing is in the way else."""

from __future__ import annotations

import logging

import pytest
import trio
from trio.testing import MockClock

from blobfuse_dysk.errors import Kind, StoreError
from blobfuse_dysk.store.layers.trace import MOST_LINES, Trace
from blobfuse_dysk.testing import Fault, FaultyStore, MemoryStore, SimBlob
from tests.simulation.stacks import DATA, SIZE, Node, attached

PAGE = 512


@pytest.fixture(autouse=True)
def every_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="blobfuse_dysk.store.layers.trace")


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was said since the last time."""
    said = [record.getMessage() for record in caplog.records if record.name.endswith(".trace")]
    caplog.clear()
    return said


async def test_a_line_has_what_where_how_long_and_what_became_of_it(
    caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    delays = {"write": 0.25, "flush": 1.5}
    store = FaultyStore(
        MemoryStore(SIZE),
        lambda name, offset, length: (
            Fault(Kind.TIMEOUT) if offset == 1024 else Fault(kind=None, delay_s=delays.get(name, 0.0))
        ),
    )
    trace = Trace(store, 60, on_end=lambda: None)
    await trace.write(0, DATA)
    assert await trace.read(0, PAGE) == DATA
    await trace.flush()
    await trace.zero(0, 4096)
    assert await trace.extents(0, 8192) == []
    await trace.grow(SIZE + PAGE)
    with pytest.raises(StoreError):
        await trace.read(1024, PAGE)
    with trio.move_on_after(0.1):
        await trace.write(2048, DATA)
    assert lines(caplog) == [
        "trace: calls are logged for 60 s",
        "trace: write of 512 at 0: 250.000 ms, done",
        "trace: read of 512 at 0: 0.000 ms, done",
        "trace: flush: 1500.000 ms, done",
        "trace: zero of 4096 at 0: 0.000 ms, done",
        "trace: extents of 8192 at 0: 0.000 ms, done",
        f"trace: grow to {SIZE + PAGE}: 0.000 ms, done",
        "trace: read of 512 at 1024: 0.000 ms, timeout: reading 512 bytes at 1024: injected timeout",
        "trace: write of 512 at 2048: 100.000 ms, cancelled",
    ]


async def test_lines_are_bounded_and_what_is_left_out_is_counted(
    caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    trace = Trace(MemoryStore(SIZE), 60, on_end=lambda: None)
    lines(caplog)
    for number in range(MOST_LINES + 7):
        await trace.read(number * PAGE, PAGE)
    said = lines(caplog)
    assert len(said) == MOST_LINES and "not shown" not in "".join(said)
    await trio.sleep(1)
    await trace.read(0, PAGE)
    assert lines(caplog) == ["trace: 7 calls not shown", "trace: read of 512 at 0: 0.000 ms, done"]
    for _ in range(MOST_LINES + 2):
        await trace.read(0, PAGE)
    lines(caplog)
    trace.end()
    assert lines(caplog) == ["trace: 3 calls not shown", "trace: ended"]


async def test_it_ends_by_itself_and_is_not_in_the_way_of_the_next_call(
    blob: SimBlob, node: Node, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    async with attached(node("1")) as stack:
        below = stack.store._inner
        assert stack.status()["trace_s"] is None
        stack.trace(30)
        assert stack.store._inner is not below
        await trio.sleep(20)
        assert stack.status()["trace_s"] == pytest.approx(10)
        await stack.store.write(0, DATA)
        assert sum("write of 512 at 0" in line for line in lines(caplog)) == 1
        await trio.sleep(11)
        assert stack.status()["trace_s"] is None
        assert await stack.store.read(0, PAGE) == DATA
        assert stack.store._inner is below
        assert await stack.store.read(0, PAGE) == DATA
        assert lines(caplog) == ["trace: ended"]


async def test_it_is_ended_or_begun_again_by_hand_while_calls_are_under_way(
    blob: SimBlob, node: Node, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    async with attached(node("1")) as stack:
        below = stack.store._inner
        stack.trace(30)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stack.store.write, 0, DATA)
            await trio.sleep(0.0005)
            stack.trace(600)
            assert stack.status()["trace_s"] == pytest.approx(600)
            nursery.start_soon(stack.store.write, 4096, DATA)
        said = lines(caplog)
        assert sum("write of 512 at 4096" in line for line in said) == 1
        assert not any("write of 512 at 0" in line for line in said), "its trace had ended"
        stack.trace(0)
        assert stack.store._inner is below
        assert stack.status()["trace_s"] is None
        assert await stack.store.read(4096, PAGE) == DATA
        assert lines(caplog) == ["trace: ended"]
