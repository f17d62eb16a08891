"""The dirty ring against a plain list: any sizes, any number of laps, new workers and deaths at any point."""

from __future__ import annotations

import os
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blobfuse_dysk.store.contract import MAX_WRITE
from blobfuse_dysk.store.parts import ring as ring_module
from blobfuse_dysk.store.parts.ring import DATA, MIN_CAPACITY, ZERO, Record, Ring

HEADER = 64  # bytes of a record's header, and what records are padded to
Written = tuple[int, int, int, bytes]
"""kind, offset, length, data"""

steps = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["append", "append", "die"]), st.integers(1, 700)),
        st.tuples(st.just("fill"), st.integers(-2, 2)),  # the record that just fits, and some blocks less or more
        st.tuples(st.just("zero"), st.integers(1, 1 << 40)),
        st.tuples(st.sampled_from(["release", "release", "reopen"]), st.integers(1, 6)),
        st.tuples(st.just("give"), st.integers(1, 1)),
    ),
    max_size=80,
)


class Model:
    """A ring, and beside it what it is to hold. Small rings, so that a few writes go all the way round."""

    def __init__(self, descriptor: int, capacity: int) -> None:
        self.descriptor = descriptor
        self.capacity = capacity
        self.ring = Ring(descriptor, capacity)
        self.held: list[tuple[Written, Record]] = []
        self.head = self.tail = 0
        self.stamps = 0

    def data(self, length: int) -> bytes:
        """Other bytes each time, and none twice in a row: a shift by one block shows."""
        self.stamps += 1
        return b"".join((self.stamps << 20 | at).to_bytes(8, "little") for at in range(length // 8 + 1))[:length]

    def left(self) -> tuple[int, int]:
        """Bytes that a record may take at the head, and those at the start of the next lap if it is not enough."""
        to_lap = self.capacity - self.head % self.capacity
        free = self.tail + self.capacity - self.head
        return min(to_lap, free), max(free - to_lap, 0)

    def append(self, length: int) -> Record | None:
        """Append and compare: accepted if there is room, refused if not, and always at the place expected."""
        size = HEADER + -(-length // HEADER) * HEADER
        here, beyond = self.left()
        assert self.ring.fits(length) == (size <= max(here, beyond))
        data = self.data(length)
        record = self.ring.append(self.stamps * 512, data)
        self._check(record, size)
        if record is not None:
            self.held.append(((DATA, self.stamps * 512, length, data), record))
        return record

    def zero(self, length: int) -> None:
        self.stamps += 1
        record = self.ring.append_zero(self.stamps * 512, length)
        self._check(record, HEADER)
        if record is not None:
            self.held.append(((ZERO, self.stamps * 512, length, b""), record))

    def _check(self, record: Record | None, size: int) -> None:
        here, beyond = self.left()
        assert (record is not None) == (size <= max(here, beyond)), "refused with room, or accepted without"
        if record is not None:
            to_lap = self.capacity - self.head % self.capacity
            at = self.head if size <= here else self.head + to_lap
            assert (record.position, record.end) == (at, at + size)
            self.head = at + size

    def die(self, length: int) -> None:
        """The worker is killed one instruction before the record is published: all of it is there but its word."""
        head, before = self.head, bytes(self.ring.memory)
        record = self.append(length)
        if record is not None:
            word = record.data - HEADER
            self.ring.memory[word : word + 8] = before[word : word + 8]
            self.held.pop()
            self.head = record.position if record.position % self.capacity == 0 else head
        self.reopen()

    def release(self, count: int) -> None:
        for _ in range(min(count, len(self.held))):
            self.tail = self.held.pop(0)[1].end
            self.ring.release(self.tail)

    def reopen(self) -> None:
        """A new worker."""
        self.ring.close()
        self.ring = Ring(self.descriptor)
        assert [*self.ring.replay()] == [record for _, record in self.held]
        assert self.ring.head == self.head

    def give(self, count: int) -> None:
        """Give memory back, which is nobody's business but the kernel's."""
        self.ring.give_back(self.descriptor)

    def check(self) -> None:
        """What a worker that was started now would find."""
        assert self.ring.used == self.head - self.tail
        fresh = Ring(self.descriptor)
        found = [
            (r.kind, r.offset, r.length, bytes(fresh.memory[r.data : r.data + r.length]) if r.kind == DATA else b"")
            for r in fresh.replay()
        ]
        fresh.close()
        assert found == [written for written, _ in self.held]


@settings(max_examples=300, deadline=None)
@given(st.integers(4, 40), steps)
def test_the_ring_holds_what_a_list_of_records_holds_after_laps_deaths_and_new_workers(
    blocks: int, program: list[tuple[str, int]]
) -> None:
    descriptor = os.memfd_create("ring")
    try:
        with mock.patch.multiple(ring_module, MIN_CAPACITY=HEADER, _LEAST_GIVEN=1):
            model = Model(descriptor, blocks * HEADER)
            for name, number in program:
                if name == "fill":
                    model.append(max(max(model.left()) - HEADER + number * HEADER, 1))
                elif name == "reopen":
                    model.reopen()
                else:
                    getattr(model, name)(number)
                model.check()
            model.ring.close()
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("corner", [0, MAX_WRITE, MIN_CAPACITY - MAX_WRITE, MIN_CAPACITY])
@pytest.mark.parametrize("near", [-128, -64, 0, 64])
def test_an_empty_ring_of_the_least_size_takes_the_largest_write_wherever_it_stands(corner: int, near: int) -> None:
    """Else a writer would wait for ever for room that nothing can free."""
    descriptor = os.memfd_create("ring")
    try:
        ring = Ring(descriptor, MIN_CAPACITY)
        ring._words[ring_module._TAIL_WORD] = MIN_CAPACITY + corner + near  # where many records would have brought it
        ring.close()
        ring = Ring(descriptor)
        assert [*ring.replay()] == []
        assert ring.append(0, bytes(MAX_WRITE)) is not None
        ring.close()
    finally:
        os.close(descriptor)
