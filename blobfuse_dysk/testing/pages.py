"""Pages that say of themselves which write they come from, and the model of what each page of a disk may hold.

**The rule.** A call that changes pages begins, and ends if it returned well; one that failed, was cancelled or was cut
off never ends: it may have been done, may be done yet, or never. Call `a` is older than `b` for certain if it ended
before `b` began. Else they ran at the same time and either may be the last one to be done, unless the store is one
that does overlapping calls in the order of arrival (`ordered`): then `a` is older if it began before `b`.

A call is *guaranteed* at a moment if it had ended by then: for a look at what a reader saw, the moment at which the
read began; after the crash of a node, the moment at which the last flush that returned had begun; after the crash of
a worker, that of the crash. A page may hold what any call put there that had begun, unless a guaranteed one is newer
for certain. What it held at first counts as put there before everything.

**The stamp.** A page is 31 times the same cell (space, page, version, checksum) and an end mark, so that a page that
lies elsewhere, is torn between two writes, or is shifted shows at once. Version 0 is a page of zeros. A space is a disk
(0) or one file on it (its number). Of version, space and page alone the content follows, so the model may speak of
versions instead of bytes.

Standard library only; nothing here knows what a store, a device or a test is.
"""

from __future__ import annotations

import itertools
import math
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["FOREIGN", "PAGE", "Doubt", "PageModel", "Write", "stamped", "versions"]

PAGE = 512
FOREIGN = -1  # neither zeros nor a page that was ever meant for this place
_BODY = struct.Struct("<IIQ")  # space and page together, checksum, version
_CELLS = PAGE // 16 - 1
_END = b"end of a page.  "
_ZEROS = bytes(PAGE)
_MOST_TOLD = 10  # pages named in one error; more of the same tell nothing

Place = TypeVar("Place")
Content = TypeVar("Content")


def stamped(version: int, page: int, space: int = 0) -> bytes:
    """The content of one page; `page` counts from the beginning of the space."""
    if version == 0:
        return _ZEROS
    place = (space << 20) ^ page
    check = zlib.crc32(struct.pack("<IQ", place, version))
    return _BODY.pack(place, check, version) * _CELLS + _END


def versions(data: bytes | bytearray | memoryview, page: int = 0, *, space: int = 0) -> list[int]:
    """The version of each page from `page` on, FOREIGN where it is none.

    A last page that is not whole counts if it is zeros.
    """
    found = []
    view = memoryview(data)
    for number, at in enumerate(range(0, len(view), PAGE), page):
        content = bytes(view[at : at + PAGE])
        if content == _ZEROS[: len(content)]:
            found.append(0)
            continue
        version = _BODY.unpack_from(content)[2] if len(content) == PAGE else FOREIGN
        found.append(version if version > 0 and content == stamped(version, number, space) else FOREIGN)
    return found


@dataclass(slots=True, eq=False)
class Write(Generic[Place, Content]):
    """A call that changes pages: what it puts where, the moments at which it began and ended."""

    contents: Mapping[Place, Content]
    begun: int
    ended: float = math.inf


@dataclass(frozen=True, slots=True)
class Doubt:
    """Why a page may not hold what it holds. lost: it is older than what is guaranteed; else it was never put there.

    since: the moment at which the newest guaranteed write of the page began; -1 if there is none.
    """

    lost: bool
    since: int
    text: str


class PageModel(Generic[Place, Content]):
    """Told of each call that changes pages as it begins and ends, it knows what a reader may find.

    Moments are whole numbers that grow with each call of `now`, `begin` and `end`; who has numbers that grow already,
    such as those of the lines of a journal, gives them as `at`. Calls about different pages may come from several
    threads.

    Places and contents are whatever can be compared and hashed: number of a page and version, or a page's bytes.
    """

    def __init__(
        self, blank: Content, initial: Mapping[Place, Content] | None = None, *, ordered: bool = False
    ) -> None:
        """initial: what pages hold at first; others hold `blank`. ordered: see the top of this file."""
        self.blank = blank
        self._initial = dict(initial or {})
        self._ordered = ordered
        self._moments = itertools.count(1)
        self._writes: dict[Place, list[Write[Place, Content]]] = {}

    def now(self) -> int:
        """This moment: what ended before is guaranteed from here on."""
        return next(self._moments)

    def begin(self, contents: Mapping[Place, Content], at: int | None = None) -> Write[Place, Content]:
        """Before the call."""
        write = Write(contents, self.now() if at is None else at)
        for place in contents:
            self._writes.setdefault(place, []).append(write)
        return write

    def end(self, write: Write[Place, Content], at: int | None = None) -> None:
        """After the call returned well."""
        write.ended = self.now() if at is None else at

    @contextmanager
    def writing(self, contents: Mapping[Place, Content]) -> Iterator[None]:
        """Around the call, which must be the first thing inside; an exception leaves it without an end."""
        write = self.begin(contents)
        yield
        self.end(write)

    def places(self) -> set[Place]:
        """Every page that a call was about, or that held something at first."""
        return {*self._writes, *self._initial}

    def floor(self, place: Place, since: float) -> int:
        """The moment at which the newest write of a page began that is guaranteed at the moment `since`; -1: none."""
        writes = reversed(self._writes.get(place, ()))  # in the order in which they began
        return next((write.begun for write in writes if write.ended < since), -1)

    def allowed(self, place: Place, since: float, until: float = math.inf) -> set[Content]:
        """What a page may hold: `since` says what is guaranteed, `until` what can have been begun at all."""
        floor = self.floor(place, since)
        found = {
            write.contents[place]
            for write in self._writes.get(place, ())
            if write.begun < until and (write.begun >= floor if self._ordered else write.ended > floor)
        }
        if floor < 0:
            found.add(self._initial.get(place, self.blank))
        return found

    def settled(self, place: Place) -> Content:
        """What a page holds if of the calls about it those that ended are done and no others."""
        ended = (write for write in reversed(self._writes.get(place, ())) if write.ended < math.inf)
        write = next(ended, None)
        return self._initial.get(place, self.blank) if write is None else write.contents[place]

    def doubt(self, place: Place, content: Content, since: float, until: float = math.inf) -> Doubt | None:
        """None if a page may hold this, else why not."""
        allowed = self.allowed(place, since, until)
        if content in allowed:
            return None
        ever = [write for write in self._writes.get(place, ()) if write.contents[place] == content]
        lost = any(write.begun < until for write in ever) or content == self._initial.get(place, self.blank)
        why = "older than what was guaranteed" if lost else "never put there by then"
        wanted = ", ".join(sorted(map(_short, allowed)))
        return Doubt(lost, self.floor(place, since), f"page {place} holds {_short(content)}, {why}; allowed: {wanted}")

    def check(
        self, found: Iterable[tuple[Place, Content]], since: float, until: float = math.inf, when: str = ""
    ) -> None:
        """AssertionError unless each of these pages may hold what was found in it. when: for the error's text."""
        doubts = [doubt.text for place, content in found if (doubt := self.doubt(place, content, since, until))]
        assert not doubts, "\n".join([*([f"{when}:"] if when else []), *doubts[:_MOST_TOLD]])

    def forget(self, places: Iterable[Place]) -> None:
        """Keep memory bounded: drop the writes of these pages that are too old to be seen now.

        To be called when no read of them is under way, and nobody will ask for what was guaranteed earlier.
        """
        for place in places:
            writes = self._writes.get(place, [])
            floor = self.floor(place, math.inf)
            writes[:] = [write for write in writes if (write.begun >= floor if self._ordered else write.ended > floor)]


def _short(content: object) -> str:
    """For an error's text: a page's bytes are too many."""
    return f"{content[:16].hex(' ', 8)}..." if isinstance(content, bytes) else str(content)
