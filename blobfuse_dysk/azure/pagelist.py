"""The answers of Get Page Ranges, read by their whole grammar.

A range that is overlooked here reads as zeros, and a document without any makes the disk a blank one, which mount
formats. So a document is either a page list from its first byte to its last, or a damaged answer:

    document = [byte order mark] [XML declaration] list
    list     = "<PageList/>" | "<PageList>" range* [marker] "</PageList>"
    range    = "<PageRange><Start>" digits "</Start><End>" digits "</End></PageRange>"
    marker   = "<NextMarker/>" | "<NextMarker>" text "</NextMarker>"

with blanks between the tags. Comments, attributes and other elements are none of it. A list of differences (asked for
with prevsnapshot) has `ClearRange`s as well, of the same form as a PageRange, among the others or behind them; a list
of what is allocated has none.
Source: https://learn.microsoft.com/rest/api/storageservices/get-page-ranges, "Response body".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

from blobfuse_dysk.azure.wire import Buffer, DamagedAnswerError, Extent, PageList, xml_text
from blobfuse_dysk.disk import MAX_SIZE

__all__ = ["Change", "ChangedList", "parse_changed_list", "parse_page_list"]

PAGE = 512  # bytes

Change: TypeAlias = tuple[int, int, bool]
"""(offset, length, whether it was cleared): bytes that differ from those of a snapshot; cleared ones read as zeros."""

_DIGITS = rb"(\d{1,19})"  # more than any blob has, fewer than int() refuses
_BLANKS = rb"[ \t\r\n]*"


def _grammar(text: bytes) -> re.Pattern[bytes]:
    """text: with `_` for blanks, and `0` for digits."""
    return re.compile(text.replace(b"_", _BLANKS).replace(b"0", _DIGITS))


_PROLOG = _grammar(rb"(?:\xef\xbb\xbf)?_(?:<\?xml[ \t\r\n][^<>]*\?>_)?")
_EMPTY = _grammar(rb"<PageList_/>_\Z")
_BEGIN = _grammar(rb"<PageList>_")
_RANGE = _grammar(rb"<PageRange>_<Start>_0_</Start>_<End>_0_</End>_</PageRange>_")
_CHANGE = _grammar(rb"<(Page|Clear)Range>_<Start>_0_</Start>_<End>_0_</End>_</\1Range>_")
_END = _grammar(rb"(?:<NextMarker_/>_|<NextMarker>[^<>]*</NextMarker>_)?</PageList>_\Z")


@dataclass(frozen=True, slots=True)
class ChangedList:
    """A piece of the list of what changed since a snapshot, sorted; marker is None when the list is complete."""

    ranges: list[Change]
    marker: str | None


def parse_page_list(body: Buffer) -> PageList:
    """Read it; raises DamagedAnswerError unless all of it is understood, and a list that a blob can have."""
    text = bytes(body)
    at = _begin(text)
    if at is None:
        return PageList([], None)
    ranges: list[Extent] = []
    previous = 0
    while found := _RANGE.match(text, at):
        offset, end = int(found[1]), int(found[2]) + 1
        if offset < previous or end <= offset or offset % PAGE or end % PAGE or end > MAX_SIZE:
            raise DamagedAnswerError(f"page list with an impossible range from {offset} to {end - 1}")
        ranges.append((offset, end - offset))
        at, previous = found.end(), end
    return PageList(ranges, _marker(text, at))


def parse_changed_list(body: Buffer) -> ChangedList:
    """Read a list of differences; raises DamagedAnswerError unless all of it is understood, and one that can be.

    The ranges of each kind must be sorted, and no page may be in two of them. They come back in one order.
    """
    text = bytes(body)
    at = _begin(text)
    if at is None:
        return ChangedList([], None)
    ranges: list[Change] = []
    reached = {b"Page": 0, b"Clear": 0}
    while found := _CHANGE.match(text, at):
        kind, offset, end = found[1], int(found[2]), int(found[3]) + 1
        if offset < reached[kind] or end <= offset or offset % PAGE or end % PAGE or end > MAX_SIZE:
            raise DamagedAnswerError(f"list of changes with an impossible range from {offset} to {end - 1}")
        ranges.append((offset, end - offset, kind == b"Clear"))
        at, reached[kind] = found.end(), end
    marker = _marker(text, at)
    ranges.sort()
    for (offset, length, _), (following, _, _) in pairwise(ranges):
        if offset + length > following:
            raise DamagedAnswerError(f"list of changes in which the page at {following} was written and cleared")
    return ChangedList(ranges, marker)


def _begin(text: bytes) -> int | None:
    """Where the first range is to stand; None: it is a list without ranges, and whole."""
    at = _after(_PROLOG, text, 0)
    if _EMPTY.match(text, at):
        return None
    return _after(_BEGIN, text, at)


def _marker(text: bytes, at: int) -> str | None:
    """The marker of the list that has its last range before `at`, and ends there."""
    _after(_END, text, at)
    return xml_text(text[at:], "NextMarker") or None


def _after(grammar: re.Pattern[bytes], text: bytes, at: int) -> int:
    """Where what has to stand at `at` ends."""
    found = grammar.match(text, at)
    if found is None:
        raise DamagedAnswerError(f"no page list, or one that is cut or malformed (at byte {at} of {len(text)})")
    return found.end()
