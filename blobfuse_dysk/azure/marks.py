"""What this package writes into a blob's metadata about the blob itself, and what it means to find it there.

All of it is in names that begin with `dysk_`; nobody else's begin so. None of it is true of a copy of the blob, so a
clone starts without any.

`dysk_incomplete` says that a disk is not whole yet, and what it is to become a clone of. Such a disk reads as zeros
where nothing has come yet, which is a blank disk to those who make file systems on them. Its name in metadata is what
other versions look for: it stays.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import quote, unquote

from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.errors import DyskError

__all__ = [
    "INCOMPLETE",
    "CloneMark",
    "found_in",
    "incomplete",
    "is_unfinished",
    "not_complete",
    "of_others",
    "without_mark",
]

INCOMPLETE = "dysk_incomplete"
_CLONE = "dysk_clone"
_OWN = "dysk_"
_WRITTEN = re.compile(r"([0-9a-f]{32});([0-9]{1,19});([0-9]{1,19});([01]{3});([!-~]+)")
_TEXT = "/?=:-._~"  # what a source's name keeps in a header, beside letters and digits


@dataclass(frozen=True, slots=True)
class CloneMark:
    """What a clone is to become, so that whoever finds it unfinished can go on.

    source: the disk's address, with the snapshot that is copied. temporary: that was made for the clone, and goes with
    it. clone_id: drawn for each clone, to know one's own request again whose answer was lost. size, source_size: bytes
    of the blobs. vhd: the source ends with a VHD's footer, which is to be at the clone's end. copied: all of the source
    is there, so that it may be gone.
    """

    source: str
    temporary: bool
    clone_id: str
    size: int
    source_size: int
    vhd: bool
    copied: bool = False

    def to_metadata(self) -> dict[str, str]:
        """For a clone that is not complete before this package took the mark off again."""
        return {INCOMPLETE: quote(self.source, safe=_TEXT), **self.origin()}

    def origin(self) -> dict[str, str]:
        """For a clone that is complete when the service has copied it."""
        flags = "".join(str(int(flag)) for flag in (self.vhd, self.temporary, self.copied))
        return {_CLONE: f"{self.clone_id};{self.size};{self.source_size};{flags};{quote(self.source, safe=_TEXT)}"}


def found_in(metadata: Mapping[str, str]) -> CloneMark | None:
    """The mark of a clone, finished or not; None if there is none, or none that this version can read."""
    written = {name.lower(): value for name, value in metadata.items()}.get(_CLONE, "")
    found = _WRITTEN.fullmatch(written)
    if found is None:
        return None
    clone_id, size, source_size, flags, source = found.groups()
    vhd, temporary, copied = (flag == "1" for flag in flags)
    return CloneMark(unquote(source), temporary, clone_id, int(size), int(source_size), vhd, copied)


def incomplete(metadata: Mapping[str, str]) -> str | None:
    """What the blob is to become a clone of; None if it is whole. The case of names makes no difference."""
    for name, value in metadata.items():
        if name.lower() == INCOMPLETE:
            return unquote(value)
    return None


class _Copy(Protocol):
    """What is known of the last copy to a blob; its status is None where there was none."""

    @property
    def status(self) -> str | None: ...


def is_unfinished(metadata: Mapping[str, str], copy: _Copy | None) -> bool:
    """Whether a copy or clone to the blob has not been completed: it is under way, or was given up."""
    return incomplete(metadata) is not None or (copy is not None and copy.status not in (None, "success"))


def of_others(metadata: Mapping[str, str]) -> dict[str, str]:
    """What is not ours, as it is spelled."""
    return {name: value for name, value in metadata.items() if not name.lower().startswith(_OWN)}


def without_mark(metadata: Mapping[str, str]) -> dict[str, str]:
    """What is left when a clone is complete."""
    return {name: value for name, value in metadata.items() if name.lower() not in (INCOMPLETE, _CLONE)}


def not_complete(address: DiskAddress, source: str) -> DyskError:
    """The error for a disk that is not whole. source: as `incomplete` tells it."""
    if address.snapshot:
        return DyskError(
            f"{address} was made of a clone of {source or 'another disk'} that was not complete, so it never will be",
            remedy="delete it, and use another snapshot",
        )
    return DyskError(
        f"{address} is an unfinished clone of {source or 'another disk'}",
        remedy=f"finish it with dyskctl clone {source or 'SOURCE'} {address}, or give it up with --abort added to that",
    )
