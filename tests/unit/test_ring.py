"""The dirty ring: what was appended is what a new worker finds, whatever instant the old one died at."""

from __future__ import annotations

import os
import sys

import pytest

from blobfuse_dysk.store.parts.ring import DATA, MIN_CAPACITY, ZERO, Ring, RingError, is_empty


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


def test_memory_of_an_empty_ring_is_given_back_and_of_no_other(memory: int) -> None:
    ring = Ring(memory, MIN_CAPACITY)
    last = None
    while (record := ring.append(0, b"a" * 65536)) is not None:
        last = record
    assert last is not None
    full = os.fstat(memory).st_blocks
    ring.give_back(memory)
    assert os.fstat(memory).st_blocks == full and len(contents(Ring(memory))) > 100
    ring.release(last.end)
    ring.give_back(memory)
    assert os.fstat(memory).st_blocks * 512 == 4096, "the header stays"
    assert os.fstat(memory).st_size == 4096 + MIN_CAPACITY
    assert is_empty(memory)
    ring.append(512, b"b" * 512)
    assert contents(Ring(memory)) == [(DATA, 512, 512, b"b" * 512)]


def test_what_a_worker_before_had_touched_is_given_back_by_the_next(memory: int) -> None:
    ring = Ring(memory, MIN_CAPACITY)
    for _ in range(40):
        record = ring.append(0, b"a" * 65536)
        assert record is not None
        ring.release(record.end)
    ring.close()
    ring = Ring(memory)
    assert list(ring.replay()) == []
    ring.give_back(memory)
    assert os.fstat(memory).st_blocks * 512 == 4096


def test_little_is_not_given_back(memory: int) -> None:
    """It would be taken again by the next write."""
    ring = Ring(memory, MIN_CAPACITY)
    record = ring.append(0, b"a" * 65536)
    assert record is not None
    ring.release(record.end)
    before = os.fstat(memory).st_blocks
    ring.give_back(memory)
    assert os.fstat(memory).st_blocks == before


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
    os.ftruncate(memory, 16 << 20)
    with pytest.raises(RingError, match="version"):
        Ring(memory)


@pytest.mark.parametrize("capacity", [4096, MIN_CAPACITY - 64, MIN_CAPACITY + 8, None])
def test_a_size_that_is_too_small_or_no_whole_number_of_records_is_refused(memory: int, capacity: int | None) -> None:
    with pytest.raises(RingError, match="a dirty ring of"):
        Ring(memory, capacity)
    assert is_empty(memory)


@pytest.mark.parametrize("word", [0, 1, 2])
def test_a_ring_of_another_version_or_size_is_refused(memory: int, word: int) -> None:
    Ring(memory, MIN_CAPACITY).append(0, b"a" * 512)
    there = int.from_bytes(os.pread(memory, 8, 8 * word), sys.byteorder)
    os.pwrite(memory, (there + 64).to_bytes(8, sys.byteorder), 8 * word)
    with pytest.raises(RingError, match="version"):
        Ring(memory, MIN_CAPACITY)


def test_a_ring_whose_memory_has_grown_is_refused(memory: int) -> None:
    Ring(memory, MIN_CAPACITY)
    os.ftruncate(memory, os.fstat(memory).st_size + 4096)
    with pytest.raises(RingError, match="version"):
        Ring(memory, MIN_CAPACITY)


@pytest.mark.parametrize("size", [1, 8, 40, 4096, 4096 + 64, 4096 + MIN_CAPACITY - 64, 4096 + MIN_CAPACITY + 8])
def test_memory_of_a_size_that_no_ring_has_is_refused(memory: int, size: int) -> None:
    """Whatever its header says: replay goes round in what the size gives it."""
    Ring(memory, MIN_CAPACITY).append(0, b"a" * 512)
    os.ftruncate(memory, size)
    if size >= 4096:
        os.pwrite(memory, (size - 4096).to_bytes(8, sys.byteorder), 16)
    with pytest.raises(RingError, match="a dirty ring of"):
        Ring(memory)
    assert not is_empty(memory), "who cannot read it does not say that nothing is lost"


@pytest.mark.parametrize("tail", [1, 8, 63, 4096 + 32, (1 << 64) - 1])
def test_a_tail_at_which_no_record_can_begin_is_refused(memory: int, tail: int) -> None:
    Ring(memory, MIN_CAPACITY).append(0, b"a" * 512)
    os.pwrite(memory, tail.to_bytes(8, sys.byteorder), 32)
    with pytest.raises(RingError, match="the dirty ring is damaged"):
        Ring(memory)
    assert not is_empty(memory)


def test_a_ring_of_another_version_does_not_count_as_empty(memory: int) -> None:
    Ring(memory, MIN_CAPACITY).append(0, b"a" * 512)
    os.pwrite(memory, (2).to_bytes(8, sys.byteorder), 8)
    assert not is_empty(memory)


def test_a_ring_that_is_there_is_taken_as_it_is_whatever_size_is_asked_for(memory: int) -> None:
    """Each worker opens it as the first one does."""
    Ring(memory, MIN_CAPACITY).append(0, b"a" * 512)
    for capacity in (MIN_CAPACITY, 2 * MIN_CAPACITY, None):
        ring = Ring(memory, capacity)
        assert ring.capacity == MIN_CAPACITY
        assert [r[1] for r in contents(ring)] == [0]
