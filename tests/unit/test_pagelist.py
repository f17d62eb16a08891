"""pagelist.py: what is a page list, and what is not: a range that is overlooked reads as zeros."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blobfuse_dysk.azure.pagelist import ChangedList, parse_changed_list, parse_page_list
from blobfuse_dysk.azure.wire import DamagedAnswerError, PageList
from blobfuse_dysk.disk import MAX_SIZE


def page_list(ranges: list[tuple[int, int]], marker: str | None, space: str = "") -> bytes:
    items = "".join(
        f"<PageRange>{space}<Start>{offset}</Start>{space}<End>{offset + length - 1}</End>{space}</PageRange>{space}"
        for offset, length in ranges
    )
    tail = "" if marker is None else f"<NextMarker>{marker}</NextMarker>{space}"
    return f'\ufeff<?xml version="1.0" encoding="utf-8"?>{space}<PageList>{space}{items}{tail}</PageList>'.encode()


@given(
    st.lists(st.tuples(st.integers(0, 100), st.integers(1, 100)), max_size=30),
    st.sampled_from([None, "", "abc", "2!16!MDAwMDA0ITEwMjQh", "a&amp;b"]),
    st.sampled_from(["", "\n  ", "\r\n\t"]),
)
def test_a_page_list_is_read_however_it_is_spaced(gaps: list[tuple[int, int]], marker: str | None, space: str) -> None:
    at, ranges = 0, []
    for gap, pages in gaps:
        ranges.append((at + gap * 512, pages * 512))
        at += (gap + pages) * 512
    found = parse_page_list(page_list(ranges, marker, space))
    assert found.ranges == ranges
    assert found.marker == ((marker or "").replace("&amp;", "&") or None)


@given(st.integers(1, 400))
def test_a_cut_page_list_is_never_taken_for_a_shorter_one(cut: int) -> None:
    whole = page_list([(0, 512), (4096, 1024), (1 << 40, 512)], "")
    with pytest.raises(DamagedAnswerError):
        parse_page_list(whole[: max(len(whole) - cut, 0)])


@pytest.mark.parametrize(
    "body",
    [
        page_list([(1024, 512), (0, 512)], None),  # not sorted
        page_list([(0, 1024), (512, 512)], None),  # overlapping
        page_list([(0, 100)], None),  # no whole page
        page_list([(512, -511)], None),  # ends before it starts
        page_list([(1024, -512)], None),
        page_list([(512, 0)], None),  # nothing in it
        page_list([(100, 512)], None),  # begins within a page
        page_list([(100, 412)], None),  # begins within a page, and ends with it
        page_list([(MAX_SIZE - 512, 1024)], None),  # beyond the end of the largest blob
        b"<PageList><PageRange><Start>0</Start><End>%s</End></PageRange></PageList>" % (b"1" * 5000),  # int() raises
        b"<PageList><PageRange><Start>0</Start></PageRange></PageList>",
        b'<PageList><PageRange x="1"><Start>0</Start><End>511</End></PageRange></PageList>',
        b"<html></html>",
        b"",
    ],
)
def test_an_impossible_page_list_is_damaged(body: bytes) -> None:
    with pytest.raises(DamagedAnswerError):
        parse_page_list(body)


@pytest.mark.parametrize(
    "body",
    [
        b"<PageList><html>oops</html></PageList>",
        b"<html><body>the proxy says: <PageList></PageList></body></html>",
        b"<html><body>the proxy says: <PageList/>",
        b"<PageList></PageList><PageList><PageRange><Start>0</Start><End>511</End></PageRange></PageList>",
        b"<PageList></PageList>and more",
        b"<PageList>and more</PageList>",
        b"<PageList><!-- <PageRange> --></PageList>",
        b"<PageList><pagerange><start>0</start><end>511</end></pagerange></PageList>",
        b"<PageList><x:PageRange><x:Start>0</x:Start><x:End>511</x:End></x:PageRange></PageList>",
        b"<PageList><ClearRange><Start>0</Start><End>511</End></ClearRange></PageList>",  # of a list of differences
        b"<PageList><NextMarker>a</NextMarker><PageRange><Start>0</Start><End>511</End></PageRange></PageList>",
        b"<PageList><NextMarker>a</NextMarker><NextMarker/></PageList>",
        b"<PageList><NextMarker>a<b/></NextMarker></PageList>",
        b"<PageList><PageRange><Start>+0</Start><End>511</End></PageRange></PageList>",
        "<PageList><PageRange><Start>\u0660</Start><End>511</End></PageRange></PageList>".encode(),
        b"<!DOCTYPE PageList><PageList></PageList>",
        b"<EnumerationResults><PageList></PageList></EnumerationResults>",
        b"<PageList></PageList>\0",
    ],
)
def test_what_is_more_or_less_than_a_page_list_is_damaged(body: bytes) -> None:
    """Read as a list without ranges, such an answer makes a disk with data a blank one, which mount formats."""
    with pytest.raises(DamagedAnswerError):
        parse_page_list(body)


@pytest.mark.parametrize(
    "body",
    [
        b"<PageList/>",
        b'<?xml version="1.0"?>\n<PageList />\n',
        b"<PageList></PageList>",
        b"<PageList><NextMarker/></PageList>",
        b'<?xml version="1.0" encoding="UTF-8" standalone="yes"?><PageList><NextMarker /></PageList>',
    ],
)
def test_an_empty_page_list(body: bytes) -> None:
    assert parse_page_list(body) == PageList([], None)


# Lists of changes.

PAGE = "<PageRange><Start>%d</Start><End>%d</End></PageRange>"
CLEAR = "<ClearRange><Start>%d</Start><End>%d</End></ClearRange>"


def changed_list(items: list[str], marker: str = "<NextMarker/>") -> bytes:
    return f'<?xml version="1.0"?><PageList>{"".join(items)}{marker}</PageList>'.encode()


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(1, 100), st.booleans()), max_size=30), st.booleans())
def test_a_list_of_changes_is_read_in_order_whether_or_not_the_kinds_come_apart(
    gaps: list[tuple[int, int, bool]], apart: bool
) -> None:
    at, ranges = 0, []
    for gap, pages, cleared in gaps:
        ranges.append((at + gap * 512, pages * 512, cleared))
        at += (gap + pages) * 512
    sent = sorted(ranges, key=lambda each: each[2]) if apart else ranges
    items = [(CLEAR if cleared else PAGE) % (offset, offset + length - 1) for offset, length, cleared in sent]
    found = parse_changed_list(changed_list(items, "<NextMarker>more</NextMarker>"))
    assert (found.ranges, found.marker) == (ranges, "more")


def test_an_empty_list_of_changes() -> None:
    assert parse_changed_list(b"<PageList/>") == ChangedList([], None)
    assert parse_changed_list(changed_list([])) == ChangedList([], None)


@given(st.integers(1, 200))
def test_a_cut_list_of_changes_is_never_taken_for_a_shorter_one(cut: int) -> None:
    whole = changed_list([PAGE % (0, 511), CLEAR % (512, 1023), PAGE % (1024, 2047)])
    with pytest.raises(DamagedAnswerError):
        parse_changed_list(whole[: len(whole) - cut])


@pytest.mark.parametrize(
    "items",
    [
        [PAGE % (1024, 1535), PAGE % (0, 511)],  # not sorted
        [CLEAR % (1024, 1535), CLEAR % (0, 511)],
        [PAGE % (0, 1023), PAGE % (512, 1023)],  # twice
        [PAGE % (0, 1023), CLEAR % (512, 1023)],  # both written and cleared
        [CLEAR % (0, 511), PAGE % (0, 511)],
        [PAGE % (1024, 2047), CLEAR % (0, 1535)],
        [PAGE % (0, 100)],  # no whole page
        [CLEAR % (100, 511)],
        [PAGE % (512, 511)],  # nothing in it
        [CLEAR % (1024, 511)],
        [CLEAR % (MAX_SIZE, MAX_SIZE + 511)],
        ["<PageRange><Start>0</Start><End>511</End></ClearRange>"],
        ["<ClearRange><Start>0</Start></ClearRange>"],
        ["<Range><Start>0</Start><End>511</End></Range>"],
        ["<NextMarker>a</NextMarker>", PAGE % (0, 511)],
        [PAGE % (0, 511), "<!-- -->"],
    ],
)
def test_an_impossible_list_of_changes_is_damaged(items: list[str]) -> None:
    with pytest.raises(DamagedAnswerError):
        parse_changed_list(changed_list(items))
