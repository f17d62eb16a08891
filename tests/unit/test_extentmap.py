"""ExtentMap: a set of ranges that may name too much when it is full, never too little."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from blobfuse_dysk.store.extentmap import ExtentMap


@settings(max_examples=300)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 60), st.integers(1, 20)), max_size=40), st.integers(0, 60))
def test_the_extent_map_is_a_set(steps: list[tuple[bool, int, int]], probe: int) -> None:
    extents, pages = ExtentMap(), set[int]()
    for add, first, count in steps:
        if add:
            extents.add(first * 512, (first + count) * 512)
            pages.update(range(first, first + count))
        else:
            extents.remove(first * 512, (first + count) * 512)
            pages.difference_update(range(first, first + count))
    everything = extents.within(0, 100 * 512)
    assert {at // 512 for o, n in everything for at in range(o, o + n, 512)} == pages
    assert all(a + b < c for (a, b), (c, _) in itertools.pairwise(everything)), "sorted, not touching"
    clipped = extents.within(probe * 512, (probe + 7) * 512)
    assert all(n > 0 for _, n in clipped), "nothing is named that is empty"
    found = {at // 512 for o, n in clipped for at in range(o, o + n, 512)}
    assert found == pages & set(range(probe, probe + 7))
    assert extents.covers(probe * 512, (probe + 7) * 512) == (set(range(probe, probe + 7)) <= pages)


@settings(max_examples=100)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 400), st.integers(1, 20)), max_size=200))
def test_a_full_extent_map_names_too_much_never_too_little(steps: list[tuple[bool, int, int]]) -> None:
    extents, pages = ExtentMap(most=8), set[int]()
    for add, first, count in steps:
        if add:
            extents.add(first * 512, (first + count) * 512)
            pages.update(range(first, first + count))
        else:
            extents.remove(first * 512, (first + count) * 512)
            pages.difference_update(range(first, first + count))
        assert len(extents) <= 8
    found = {at // 512 for o, n in extents.within(0, 1 << 20) for at in range(o, o + n, 512)}
    assert pages <= found


def test_a_full_extent_map_closes_its_smallest_gaps() -> None:
    extents = ExtentMap(most=4)
    for start in (0, 4096, 8192, 12288, 1 << 30):
        extents.add(start, start + 512)
    assert extents.within(0, 2 << 30) == [(0, 12800), (1 << 30, 512)]
