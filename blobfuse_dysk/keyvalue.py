"""Files of lines `key = value`, as credential files and those in /etc/dysk/disks.d are, and what a mistyped word meant.

A line that is empty or begins with '#' is skipped; a value may stand in quotes; keys are given once. A key that does
not look like one is not repeated in a message: what stands there may be a bare secret.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from blobfuse_dysk.errors import DyskError, UsageError

if TYPE_CHECKING:
    from pathlib import Path
    from typing import TextIO

__all__ = ["Entry", "open_text", "read_entries", "suggest"]

_KEY = re.compile(r"[a-z._-]{1,24}\Z")


@dataclass(frozen=True, slots=True)
class Entry:
    """A value, and for messages where it stands: `FILE, line N`."""

    where: str
    line: int
    value: str = field(repr=False)


def open_text(path: Path) -> TextIO:
    """Open a file to read, which then is to be looked at: a FIFO opens at once as well, without one who writes."""
    return open(
        path, encoding="utf-8-sig", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK | os.O_NOCTTY)
    )


def read_entries(
    text: str,
    source: object,
    known: Collection[str],
    *,
    expected: str,
    fold: Callable[[str], str] = str.lower,
    error: type[DyskError] = UsageError,
) -> dict[str, Entry]:
    """The entries by their keys, as `fold` spells these.

    source: the file's name. known: all keys that there are. expected: the remedy that tells which. Raises `error`,
    which names the line and holds no value.
    """
    found: dict[str, Entry] = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        where = f"{source}, line {number}"
        name, equals, value = (part.strip() for part in line.partition("="))
        name = name.lower()
        if not equals or not _KEY.match(name):
            raise error(f"{where}: expected 'key = value'", remedy=expected)
        key = fold(name)
        if key not in known:
            raise error(f"{where}: unknown key {name!r}", remedy=suggest(key, known, most=1) or expected)
        if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
            value = value[1:-1]
        if not value:
            raise error(f"{where}: expected a value behind '{name} ='", remedy="fill it in, or remove the line")
        if key in found:
            raise error(f"{where}: {name} is given in line {found[key].line} already", remedy="remove one of them")
        found[key] = Entry(where, number, value)
    return found


def suggest(word: str, known: Collection[str], *, most: int = 2, cutoff: float = 0.6) -> str | None:
    """`did you mean ...?` for the nearest known words, or None if nothing is near. Dashes in front do not count.

    most: words to name. cutoff: difflib's ratio, from which on a word counts as near.
    """
    import difflib  # only for words that are not known; what reads options at its start is faster without it

    bare = {each.lstrip("-"): each for each in known}
    near = [bare[each] for each in difflib.get_close_matches(word.lstrip("-"), bare, n=most, cutoff=cutoff)]
    return f"did you mean {' or '.join(near)}?" if near else None
