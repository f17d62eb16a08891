"""The server's page storage against a plain model: a byte array and a set of allocated pages."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from blobfuse_dysk.testing.server.pages import CHUNK, PAGE, Pages

SIZE = 3 * CHUNK + 5 * PAGE
TOTAL = SIZE // PAGE

extents = st.tuples(st.integers(0, TOTAL - 1), st.integers(1, TOTAL)).map(
    lambda pair: (pair[0], min(pair[1], TOTAL - pair[0]))
)
steps = st.lists(st.tuples(st.sampled_from(["write", "clear"]), extents, st.integers(0, 255)), max_size=12)


def joined(pages: set[int]) -> list[tuple[int, int]]:
    """Runs of page numbers as byte ranges, end exclusive."""
    found: list[tuple[int, int]] = []
    for page in sorted(pages):
        if found and found[-1][1] == page * PAGE:
            found[-1] = (found[-1][0], (page + 1) * PAGE)
        else:
            found.append((page * PAGE, (page + 1) * PAGE))
    return found


def apply(pages: Pages, actions: list[tuple[str, tuple[int, int], int]]) -> tuple[bytearray, set[int]]:
    """Do the same to the storage and to the model; returns the model."""
    data, allocated = bytearray(SIZE), set[int]()
    for action, (first, count), fill in actions:
        start, end = first * PAGE, (first + count) * PAGE
        if action == "write":
            content = bytes([fill]) * (end - start)
            pages.write(start, content)
            data[start:end] = content
            allocated |= set(range(first, first + count))
        else:
            pages.clear(start, end - start)
            data[start:end] = bytes(end - start)
            allocated -= set(range(first, first + count))
    return data, allocated


@settings(max_examples=150, deadline=None)
@given(steps, extents)
def test_pages_hold_what_a_plain_model_holds(
    actions: list[tuple[str, tuple[int, int], int]], window: tuple[int, int]
) -> None:
    pages = Pages(SIZE)
    data, allocated = apply(pages, actions)
    assert pages.read(0, SIZE) == data
    assert list(pages.ranges(0, SIZE)) == joined(allocated)
    first, count = window
    inside = {page for page in allocated if first <= page < first + count}
    assert list(pages.ranges(first * PAGE, count * PAGE)) == joined(inside)
    assert pages.allocated == len(allocated) * PAGE
    twin = pages.copy()
    pages.clear(0, SIZE)
    assert twin.read(0, SIZE) == data
    assert list(twin.ranges(0, SIZE)) == joined(allocated)
    pages.close()
    twin.close()


def test_file_is_taken_up_again(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    first = Pages(1 << 43, path)
    for offset in (0, 7 * PAGE, CHUNK - PAGE, (1 << 43) - PAGE, 5 << 40):
        first.write(offset, b"\x01" * PAGE)
    first.clear(7 * PAGE, PAGE)
    found = list(first.ranges(0, 1 << 43))
    first.close()
    again = Pages(1 << 43, path)
    assert list(again.ranges(0, 1 << 43)) == found
    assert [start for start, _ in found] == [0, CHUNK - PAGE, 5 << 40, (1 << 43) - PAGE]
    assert again.read((1 << 43) - PAGE, PAGE) == b"\x01" * PAGE
    again.remove()
    assert list(tmp_path.iterdir()) == []


def test_what_was_cut_off_comes_back_as_zeros() -> None:
    pages = Pages(4 * PAGE)
    pages.write(0, b"a" * 4 * PAGE)
    pages.resize(2 * PAGE)
    pages.resize(4 * PAGE)
    assert pages.read(0, 4 * PAGE) == b"a" * 2 * PAGE + bytes(2 * PAGE)
    assert list(pages.ranges(0, 4 * PAGE)) == [(0, 2 * PAGE)]
    pages.close()


def test_cleared_pages_give_their_memory_back(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    pages = Pages(1 << 20, path)
    pages.write(0, b"a" * (1 << 20))
    full = path.stat().st_blocks
    pages.clear(0, 1 << 20)
    assert path.stat().st_blocks < full // 4
    pages.close()
