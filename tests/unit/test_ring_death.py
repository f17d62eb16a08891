"""The dirty ring when its worker is killed between any two instructions, and when its memory is damaged."""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

from blobfuse_dysk.store.parts import ring as ring_module
from blobfuse_dysk.store.parts.ring import DATA, MIN_CAPACITY, Record, Ring, RingError, is_empty

CAPACITY = 20 * 64
Contents = list[tuple[int, int, bytes]]


class Fieldwise(struct.Struct):
    """Packs one field after the other, the first one first: a store of 40 bytes is no single instant."""

    def pack_into(self, buffer: Any, offset: int, *values: Any) -> None:
        for number, value in enumerate(values):
            struct.pack_into("@Q", buffer, offset + 8 * number, value)


@pytest.fixture
def ring(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ring]:
    """A small one, so that a look at all of it costs little and a few records go round."""
    monkeypatch.setattr(ring_module, "MIN_CAPACITY", 64)
    monkeypatch.setattr(ring_module, "_RECORD", Fieldwise("@QQQQQ"))
    descriptor = os.memfd_create("ring")
    made = Ring(descriptor, CAPACITY)
    yield made
    made.close()
    os.close(descriptor)


def contents(ring: Ring) -> Contents:
    return [
        (r.offset, r.length, bytes(ring.memory[r.data : r.data + r.length]) if r.kind == DATA else b"")
        for r in ring.replay()
    ]


def next_worker(memory: bytes) -> tuple[Contents, Contents]:
    """What a worker finds in a copy of this memory, and what one finds after it that accepted one more write."""
    descriptor = os.memfd_create("copy")
    try:
        os.pwrite(descriptor, memory, 0)
        ring = Ring(descriptor)
        found = contents(ring)
        ring.append(1 << 30, b"n" * 64)
        ring.close()
        ring = Ring(descriptor)
        later = contents(ring)
        ring.close()
    finally:
        os.close(descriptor)
    return found, later


def at_every_instant(ring: Ring, call: Callable[[], object]) -> list[tuple[Contents, Contents]]:
    """Make the call; what the next worker would find, had this one been killed before each of its instructions."""
    found = []
    last = b""

    def look(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal last
        frame.f_trace_opcodes = True
        memory = bytes(ring.memory)
        if memory != last:
            found.append(next_worker(memory))
            last = memory
        return look

    before = sys.gettrace()
    sys.settrace(look)
    try:
        call()
    finally:
        sys.settrace(before)
    return [*found, next_worker(bytes(ring.memory))]


def data(letter: str, blocks: int) -> bytes:
    return letter.encode() * (64 * blocks)


def lap(ring: Ring) -> None:
    """Fill the ring with records of all sizes and let go of them: an earlier lap is everywhere in it."""
    for blocks in (1, 2, 3, 1):
        record = ring.append(1 << 20, data("o", blocks))
        assert record is not None
        ring.release(record.end)


CALLS: dict[str, Callable[[Ring, Record], object]] = {
    "a write": lambda ring, first: ring.append(512, data("b", 3)),
    "a write to the next lap": lambda ring, first: ring.append(512, data("b", 5)),
    "zeros": lambda ring, first: ring.append_zero(512, 1 << 40),
    "letting go of the oldest": lambda ring, first: ring.release(first.end),
}


@pytest.mark.parametrize("what", CALLS)
@pytest.mark.parametrize("laps", [0, 1, 2])
def test_a_worker_killed_at_any_instant_leaves_a_whole_record_or_none(ring: Ring, laps: int, what: str) -> None:
    for _ in range(laps):
        lap(ring)
    first = ring.append(0, data("a", 2))
    assert first is not None and ring.append(4096, data("c", 1)) is not None
    found = at_every_instant(ring, lambda: CALLS[what](ring, first))
    before, after = found[0][0], found[-1][0]
    assert before != after
    for now, later in found:
        assert now in (before, after)
        assert later == [*now, (1 << 30, 64, b"n" * 64)]


def test_a_ring_is_none_before_it_is_a_whole_one() -> None:
    """Killed while it is made: the next worker is told so, and does not take half a header for a ring."""
    descriptor = os.memfd_create("ring")
    try:
        Ring(descriptor, MIN_CAPACITY).close()
        os.pwrite(descriptor, bytes(8), 0)
        with pytest.raises(RingError):
            Ring(descriptor)
    finally:
        os.close(descriptor)


BEYOND = CAPACITY - 64  # bytes of data that make a record as large as the ring


@pytest.mark.parametrize(
    ("field", "value"),
    [
        pytest.param(1, 64, id="of another position"),
        pytest.param(2, 0, id="of no kind"),
        pytest.param(2, 4, id="of an unknown kind"),
        pytest.param(4, 1 << 63, id="larger than the ring"),
        pytest.param(4, BEYOND, id="beyond the end of the lap"),
        pytest.param((2, 4), (3, 0), id="filling, and does not advance"),
        pytest.param((2, 4), (3, 100), id="filling, and misaligned"),
        pytest.param((2, 4), (3, BEYOND), id="filling more than the lap"),
    ],
)
def test_a_damaged_record_is_not_passed_over(ring: Ring, field: int | tuple[int, ...], value: object) -> None:
    """What lies behind it was accepted, too: who goes on as if the log ended here would lose it in silence."""
    ring.append(0, data("a", 1))
    record = ring.append(512, data("b", 1))
    assert record is not None and ring.append(1024, data("c", 1)) is not None
    fields, values = (field, value) if isinstance(field, tuple) else ((field,), (value,))
    for number, new in zip(fields, values, strict=True):  # type: ignore[call-overload]
        struct.pack_into("@Q", ring.memory, record.data - 64 + 8 * number, new)
    replay = ring.replay()
    assert next(replay).offset == 0
    with pytest.raises(RingError, match="damaged at 128"):
        list(replay)


@pytest.mark.parametrize(
    ("sizes", "length"),
    [
        pytest.param((10, 8, 3), 11, id="over the tail"),
        pytest.param((10, 4, 3), 4, id="over the end of the lap"),
    ],
)
def test_a_record_that_reaches_too_far_is_damaged(ring: Ring, sizes: tuple[int, ...], length: int) -> None:
    """The first record, of 11 blocks, is not needed any more; there is room for more behind the last, but not there."""
    records = [record for blocks in sizes[:2] if (record := ring.append(0, data("a", blocks)))]
    ring.release(records[0].end)
    last = ring.append(0, data("b", sizes[2]))
    assert last is not None and len(records) == 2
    struct.pack_into("@Q", ring.memory, last.data - 64 + 32, length * 64)
    with pytest.raises(RingError, match=f"damaged at {last.position}"):
        list(ring.replay())


def test_a_damaged_ring_is_not_empty() -> None:
    descriptor = os.memfd_create("ring")
    try:
        ring = Ring(descriptor, MIN_CAPACITY)
        record = ring.append(0, data("a", 8))
        assert record is not None
        struct.pack_into("@Q", ring.memory, record.data - 64 + 16, 0)
        ring.close()
        assert not is_empty(descriptor)
    finally:
        os.close(descriptor)
