"""The dirty ring: what was appended is what a new worker finds, whatever instant the old one died at."""

from __future__ import annotations

import os
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blobfuse_dysk.store.ring import DATA, MIN_CAPACITY, ZERO, Ring, RingError, is_empty


def contents(ring: Ring) -> list[tuple[int, int, int, bytes]]:
    return [
        (r.kind, r.offset, r.length, bytes(ring.memory[r.data : r.data + r.length]) if r.kind == DATA else b"")
        for r in ring.replay()
    ]


@pytest.fixture
def memory():  # type: ignore[no-untyped-def]
    descriptor = os.memfd_create("ring")
    yield descriptor
    os.close(descriptor)


def test_a_new_worker_finds_what_was_accepted_in_order(memory: int) -> None:
    ring = Ring(memory, MIN_CAPACITY)
    ring.append(4096, b"a" * 512)
    ring.append_zero(0, 1 << 40)
    ring.append(512, b"b" * 1024)
    assert contents(Ring(memory)) == [
        (DATA, 4096, 512, b"a" * 512),
        (ZERO, 0, 1 << 40, b""),
        (DATA, 512, 1024, b"b" * 1024),
    ]


def test_released_records_do_not_come_back(memory: int) -> None:
    ring = Ring(memory, MIN_CAPACITY)
    first = ring.append(0, b"a" * 512)
    ring.append(512, b"b" * 512)
    assert first is not None
    ring.release(first.end)
    assert [r[1] for r in contents(Ring(memory))] == [512]


def test_whether_anything_is_left_is_seen_from_outside(memory: int) -> None:
    assert is_empty(memory)
    ring = Ring(memory, MIN_CAPACITY)
    assert is_empty(memory)
    first, second = ring.append(0, b"a" * 512), ring.append_zero(512, 512)
    assert first is not None and second is not None
    ring.release(first.end)
    assert not is_empty(memory)
    ring.release(second.end)
    assert is_empty(memory)


def test_data_that_looks_like_a_record_is_not_one(memory: int) -> None:
    """A write's own bytes lie where a later lap looks for records; they must not be taken for one."""
    ring = Ring(memory, MIN_CAPACITY)
    record = ring.append(0, b"x" * 512)
    assert record is not None
    forged = bytes(ring.memory[record.data - 64 : record.data + 512])
    while (last := ring.append(512, forged * 8 if len(forged) % 512 == 0 else (forged * 8)[:4096])) is not None:
        end = last.end
    ring.release(end)
    assert contents(Ring(memory)) == []


def test_a_torn_record_is_none(memory: int) -> None:
    """Everything of a record but its final word: as if killed one instruction before publishing."""
    ring = Ring(memory, MIN_CAPACITY)
    ring.append(0, b"a" * 512)
    record = ring.append(512, b"b" * 512)
    assert record is not None
    ring.memory[record.data - 64 : record.data - 56] = bytes(8)
    assert [r[1] for r in contents(Ring(memory))] == [0]


def test_full_ring_refuses_and_keeps_everything(memory: int) -> None:
    ring = Ring(memory, MIN_CAPACITY)
    count = 0
    while ring.append(count * 4096, bytes([count % 256]) * 4096) is not None:
        count += 1
    assert not ring.fits(4096)
    assert count == MIN_CAPACITY // (4096 + 64)
    found = contents(Ring(memory))
    assert [(r[1], r[3][0]) for r in found] == [(n * 4096, n % 256) for n in range(count)]


def test_foreign_memory_is_refused(memory: int) -> None:
    os.ftruncate(memory, 1 << 20)
    with pytest.raises(RingError, match="version"):
        Ring(memory)


def test_too_small_is_refused(memory: int) -> None:
    with pytest.raises(RingError):
        Ring(memory, 4096)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4096)), max_size=60), st.randoms())
def test_model(steps: list[tuple[int, int]], random) -> None:  # type: ignore[no-untyped-def]
    """Against a plain queue: appends of any size, releases of any number, a new worker at any point, many laps."""
    memory = os.memfd_create("ring")
    try:
        ring = Ring(memory, MIN_CAPACITY)
        model: deque[tuple[int, int, bytes, int]] = deque()
        for action, pages in steps:
            if action == 3:
                for _ in range(random.randint(0, len(model))):
                    ring.release(model.popleft()[3])
            elif action == 2:
                ring.close()
                ring = Ring(memory)
                list(ring.replay())
            else:
                stamp = bytes([random.randrange(256)]) * 512
                data = stamp * pages
                fits = ring.fits(len(data))
                record = ring.append(pages * 512, data)
                assert (record is not None) == fits
                if record is not None:
                    model.append((pages * 512, len(data), stamp, record.end))
            fresh = Ring(memory)
            assert [(r.offset, r.length, bytes(fresh.memory[r.data : r.data + 512])) for r in fresh.replay()] == [
                (offset, length, stamp) for offset, length, stamp, _ in model
            ]
            fresh.close()
    finally:
        os.close(memory)
