"""DirtyMap and Ledger against a plain array of pages: what is where, which records and generations still count."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple, cast

from hypothesis import given, settings
from hypothesis import strategies as st

from blobfuse_dysk.store.parts.dirtymap import DirtyExtent, DirtyMap, Ledger
from blobfuse_dysk.store.parts.ring import DATA, ZERO, Record, Ring

PAGES = 10
PAGE = 512


class Cell(NamedTuple):
    """What a page is in a map: where its data lies in the ring (-1: zeros), its generation and its record."""

    data: int
    generation: int
    record: int


class Tail:
    """The part of a ring that Ledger moves."""

    def __init__(self) -> None:
        self.head = self.tail = 0

    def release(self, position: int) -> None:
        assert self.tail < position <= self.head
        self.tail = position


class Pages:
    """A map, and beside it what each page of it is to be."""

    def __init__(self) -> None:
        self.map = DirtyMap()
        self.cells: list[Cell | None] = [None] * PAGES

    def check(self) -> None:
        found: list[Cell | None] = [None] * PAGES
        extents = [self.map[index] for index in range(len(self.map))]
        assert extents == sorted(extents)
        for extent in extents:
            for page in range(extent.start // PAGE, extent.end // PAGE):
                assert found[page] is None, "two extents overlap"
                data = extent.data + page * PAGE - extent.start if extent.data >= 0 else -1
                found[page] = Cell(data, extent.generation, extent.record)
        assert found == self.cells
        assert self.map.bytes == PAGE * sum(cell is not None and cell.data >= 0 for cell in self.cells)
        for start in range(0, PAGES * PAGE, PAGE):
            assert self.map.index_from(start) == sum(extent.start < start for extent in extents)
            for end in range(start + PAGE, (PAGES + 1) * PAGE, PAGE):
                expected = [extent for extent in extents if extent.start < end and start < extent.end]
                assert self.map.overlap(start, end) == expected
                assert self.map.overlaps(start, end) == bool(expected)


class Cache:
    """Accepts, sends and acknowledges as WriteBack does."""

    def __init__(self) -> None:
        self.tail = Tail()
        self.ledger = Ledger(cast(Ring, self.tail))
        self.dirty, self.flight = Pages(), Pages()
        self.sent: deque[list[DirtyExtent]] = deque()
        self.records: list[Record] = []
        self.generation = 0

    def accept(self, first: int, count: int, *, zeros: bool) -> None:
        at, start, end = self.tail.head, first * PAGE, (first + count) * PAGE
        data = -1 if zeros else at + 64
        record = Record(at, at + 64 + count * PAGE, ZERO if zeros else DATA, start, end - start, data)
        self.tail.head = record.end
        self.records.append(record)
        covered = [cell.generation for cell in self.dirty.cells[first : first + count] if cell]
        oldest = min([self.generation, *covered])
        self.ledger.add_record(record)
        extent = DirtyExtent(start, end, data, self.generation, at)
        assert self.dirty.map.add(extent, self.ledger) == oldest
        self.ledger.settle(record)
        for page in range(count):
            self.dirty.cells[first + page] = Cell(data if zeros else data + page * PAGE, oldest, at)

    def send(self, index: int, count: int) -> None:
        extents = [self.dirty.map[at] for at in range(len(self.dirty.map))][index : index + count]
        if extents and not any(self.flight.map.overlaps(extent.start, extent.end) for extent in extents):
            run = self.dirty.map.take(index, index + len(extents))
            assert run == extents
            for extent in run:  # runs are neighbours; here each extent is one of its own
                self.flight.map.put([extent])
                self.sent.append([extent])
                for page in range(extent.start // PAGE, extent.end // PAGE):
                    self.flight.cells[page], self.dirty.cells[page] = self.dirty.cells[page], None

    def acknowledge(self, which: int, count: int) -> None:
        for _ in range(min(count, len(self.sent))):
            self.sent.rotate(which)
            run = self.sent.popleft()
            self.flight.map.remove(run)
            for extent in run:
                self.ledger.discount(extent)
                for page in range(extent.start // PAGE, extent.end // PAGE):
                    self.flight.cells[page] = None

    def check(self) -> None:
        self.dirty.check()
        self.flight.check()
        cells = [cell for cell in self.dirty.cells + self.flight.cells if cell]
        live = {cell.record for cell in cells}
        kept = next((record.position for record in self.records if record.position in live), self.tail.head)
        assert self.tail.tail == kept, "the ring's tail is not at the oldest record that something lies in"
        for record in self.records:
            assert self.ledger.is_live(record) == (record.position in live)
        generations = {cell.generation for cell in cells}
        assert self.ledger.oldest_generation() == min(generations, default=None)
        assert [self.ledger.has(number) for number in range(self.generation + 1)] == [
            number in generations for number in range(self.generation + 1)
        ]


steps = st.lists(
    st.tuples(
        st.sampled_from(["write", "write", "write", "zero", "flush", "send", "send", "acknowledge"]),
        st.integers(0, PAGES - 1),
        st.integers(1, 6),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(steps)
def test_the_map_and_the_ledger_agree_with_a_page_by_page_account(program: list[tuple[str, int, int]]) -> None:
    cache = Cache()
    for name, first, count in program:
        if name == "flush":
            cache.generation += 1
        elif name == "send":
            cache.send(first % max(len(cache.dirty.map), 1), count)
        elif name == "acknowledge":
            cache.acknowledge(first, count)
        else:
            cache.accept(first, min(count, PAGES - first), zeros=name == "zero")
    cache.check()


def test_a_run_goes_and_comes_back_whole() -> None:
    """Several neighbours at once, before, between and behind others."""
    ledger = Ledger(cast(Ring, Tail()))
    runs = [[DirtyExtent(at + n * PAGE, at + (n + 1) * PAGE, at, 0, 0) for n in range(3)] for at in (0, 4096, 8192)]
    for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0), (2, 0, 1)):
        flight = DirtyMap()
        for index in order:
            flight.put(runs[index])
        assert [flight[index] for index in range(len(flight))] == [extent for run in runs for extent in run]
        assert flight.overlap(4096 + PAGE, 4096 + 2 * PAGE) == [runs[1][1]]
        for index in order:
            flight.remove(runs[index])
            assert not flight.overlaps(runs[index][0].start, runs[index][-1].end)
        assert len(flight) == flight.bytes == 0
    assert ledger.oldest_generation() is None


def test_what_covers_several_is_as_old_as_the_oldest_of_them() -> None:
    """The oldest lies behind a younger one: a flush that waits for it must wait for what takes its place."""
    cache = Cache()
    for first, count in ((3, 1), (1, 1), (0, 5)):
        cache.accept(first, count, zeros=False)
        cache.check()
        cache.generation += 1
    assert cache.ledger.has(0)
    assert cache.ledger.oldest_generation() == 0
