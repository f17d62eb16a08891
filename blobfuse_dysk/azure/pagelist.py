"""The answer of Get Page Ranges, read by its whole grammar.

A range that is overlooked here reads as zeros, and a document without any makes the disk a blank one, which mount
formats. So a document is either a page list from its first byte to its last, or a damaged answer:

    document = [byte order mark] [XML declaration] list
    list     = "<PageList/>" | "<PageList>" range* [marker] "</PageList>"
    range    = "<PageRange><Start>" digits "</Start><End>" digits "</End></PageRange>"
    marker   = "<NextMarker/>" | "<NextMarker>" text "</NextMarker>"

with blanks between the tags. Comments, attributes and other elements (ClearRange is of a list of differences, which
nobody asks for here) are none of it.
Source: https://learn.microsoft.com/rest/api/storageservices/get-page-ranges, "Response body".
"""

from __future__ import annotations

import re

from blobfuse_dysk.azure.wire import Buffer, DamagedAnswerError, Extent, PageList, xml_text
from blobfuse_dysk.disk import MAX_SIZE

__all__ = ["parse_page_list"]

PAGE = 512  # bytes

_DIGITS = rb"(\d{1,19})"  # more than any blob has, fewer than int() refuses
_BLANKS = rb"[ \t\r\n]*"


def _grammar(text: bytes) -> re.Pattern[bytes]:
    """text: with `_` for blanks, and `0` for digits."""
    return re.compile(text.replace(b"_", _BLANKS).replace(b"0", _DIGITS))


_PROLOG = _grammar(rb"(?:\xef\xbb\xbf)?_(?:<\?xml[ \t\r\n][^<>]*\?>_)?")
_EMPTY = _grammar(rb"<PageList_/>_\Z")
_BEGIN = _grammar(rb"<PageList>_")
_RANGE = _grammar(rb"<PageRange>_<Start>_0_</Start>_<End>_0_</End>_</PageRange>_")
_END = _grammar(rb"(?:<NextMarker_/>_|<NextMarker>[^<>]*</NextMarker>_)?</PageList>_\Z")


def parse_page_list(body: Buffer) -> PageList:
    """Read it; raises DamagedAnswerError unless all of it is understood, and a list that a blob can have."""
    text = bytes(body)
    at = _after(_PROLOG, text, 0)
    if _EMPTY.match(text, at):
        return PageList([], None)
    at = _after(_BEGIN, text, at)
    ranges: list[Extent] = []
    previous = 0
    while found := _RANGE.match(text, at):
        offset, end = int(found[1]), int(found[2]) + 1
        if offset < previous or end <= offset or offset % PAGE or end % PAGE or end > MAX_SIZE:
            raise DamagedAnswerError(f"page list with an impossible range from {offset} to {end - 1}")
        ranges.append((offset, end - offset))
        at, previous = found.end(), end
    _after(_END, text, at)
    return PageList(ranges, xml_text(text[at:], "NextMarker") or None)


def _after(grammar: re.Pattern[bytes], text: bytes, at: int) -> int:
    """Where what has to stand at `at` ends."""
    found = grammar.match(text, at)
    if found is None:
        raise DamagedAnswerError(f"no page list, or one that is cut or malformed (at byte {at} of {len(text)})")
    return found.end()
