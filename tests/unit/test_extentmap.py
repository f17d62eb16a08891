"""ExtentMap: a set of ranges that may name too much when it is full, never too little."""

from __future__ import annotations

import itertools
from random import Random

import pytest

from blobfuse_dysk.store.parts.extentmap import ExtentMap

PAGE = 512


def pages_of(extents: list[tuple[int, int]]) -> set[int]:
    return {at // PAGE for offset, length in extents for at in range(offset, offset + length, PAGE)}


class Pair:
    """A map, and the set of pages that it stands for; every step does the same to both."""

    def __init__(self, seed: int, pages: int, most: int | None = None) -> None:
        self.random = Random(seed)
        self.extents = ExtentMap() if most is None else ExtentMap(most)
        self.pages = set[int]()
        self._pages = pages

    def step(self, adds: float) -> None:
        first, count = self.random.randrange(self._pages), self.random.randint(1, 20)
        if self.random.random() < adds:
            self.extents.add(first * PAGE, (first + count) * PAGE)
            self.pages.update(range(first, first + count))
        else:
            self.extents.remove(first * PAGE, (first + count) * PAGE)
            self.pages.difference_update(range(first, first + count))


@pytest.mark.parametrize("seed", range(20))
def test_the_extent_map_is_a_set(seed: int) -> None:
    """Sparse and dense by turns."""
    pair = Pair(seed, pages=100)
    extents, pages = pair.extents, pair.pages
    for number in range(200):
        pair.step(adds=0.3 + 0.4 * (number // 40 % 2))
        everything = extents.within(0, 200 * PAGE)
        assert pages_of(everything) == pages
        assert all(a + b < c for (a, b), (c, _) in itertools.pairwise(everything)), "sorted, not touching"
        probe, length = pair.random.randrange(100), pair.random.randint(1, 10)
        wanted = set(range(probe, probe + length))
        clipped = extents.within(probe * PAGE, (probe + length) * PAGE)
        assert all(n > 0 for _, n in clipped), "nothing is named that is empty"
        assert pages_of(clipped) == pages & wanted
        assert extents.covers(probe * PAGE, (probe + length) * PAGE) == (wanted <= pages)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("adds", [0.2, 0.5, 0.9])
def test_a_full_extent_map_names_too_much_never_too_little(adds: float, seed: int) -> None:
    pair = Pair(seed, pages=400, most=8)
    for _ in range(100):
        pair.step(adds)
        assert len(pair.extents) <= 8
        everything = pair.extents.within(0, 500 * PAGE)
        assert pair.pages <= pages_of(everything)
        assert all(a + b < c for (a, b), (c, _) in itertools.pairwise(everything)), "sorted, not touching"


def test_clears_alone_do_not_make_the_map_grow_without_bound() -> None:
    extents = ExtentMap(most=8)
    extents.add(0, 1 << 20)
    for start in range(PAGE, 1 << 20, 2 * PAGE):
        extents.remove(start, start + PAGE)
        assert len(extents) <= 8


def test_a_full_extent_map_closes_its_smallest_gaps() -> None:
    extents = ExtentMap(most=4)
    for start in (0, 4096, 8192, 12288, 1 << 30):
        extents.add(start, start + PAGE)
    assert extents.within(0, 2 << 30) == [(0, 12800), (1 << 30, PAGE)]
