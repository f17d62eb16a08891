"""What is written onto a disk for people and programs: metadata and tags. Checked here, before anything is made.

Metadata comes back with the blob's properties; tags are an index of the account's, by which blobs can be found.
Source: https://learn.microsoft.com/rest/api/storageservices/naming-and-referencing-containers--blobs--and-metadata,
https://learn.microsoft.com/azure/storage/blobs/storage-manage-find-blobs
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from blobfuse_dysk.azure.explain import HOLDER_NODE, HOLDER_SINCE, HOLDER_TAG
from blobfuse_dysk.azure.marks import without_mark
from blobfuse_dysk.errors import UsageError

__all__ = ["check_metadata", "check_tags", "parse_pairs"]

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_MOST_METADATA = 8 << 10  # bytes, names and values together
_TAG = re.compile(r"[A-Za-z0-9 +\-./:=_]*\Z")
_MOST_TAGS, _MOST_KEY, _MOST_VALUE = 10, 128, 256
_HOLDER = (HOLDER_NODE, HOLDER_SINCE, HOLDER_TAG)


def parse_pairs(words: Iterable[str], what: str) -> dict[str, str]:
    """Read `name=value` words; UsageError for anything else. what: metadata or tags, for the message."""
    pairs: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise UsageError(f"{what}: {word!r} is not NAME=VALUE", remedy=f"write --{what} NAME=VALUE")
        if name in pairs:
            raise UsageError(f"{what}: {name!r} is given twice", remedy="give it once")
        pairs[name] = value
    return pairs


def check_metadata(metadata: Mapping[str, str]) -> None:
    """Raise UsageError for what the service would refuse, or silently change, and for the names of a holder or a clone.

    A disk that only looks like an unfinished clone could be neither attached nor given up.
    """
    seen = set()
    for name, value in metadata.items():
        if not _NAME.match(name):
            raise UsageError(
                f"metadata cannot be named {name!r}", remedy="use letters, digits and _, and no digit in front"
            )
        if name.lower() in seen:
            raise UsageError(f"metadata: {name!r} is there twice", remedy="upper and lower case are the same")
        if name.lower() in _HOLDER:
            raise UsageError(f"metadata: {name} is written by whoever attaches the disk", remedy="use another name")
        if not without_mark({name: value}):
            raise UsageError(f"metadata: {name} marks an unfinished clone", remedy="use another name")
        if not (value.isascii() and value.isprintable()) or value != value.strip() or not value:
            raise UsageError(
                f"metadata: {name} cannot be {value!r}", remedy="use printable ASCII, with no blank at either end"
            )
        seen.add(name.lower())
    if sum(len(name) + len(value) for name, value in metadata.items()) > _MOST_METADATA:
        raise UsageError("the metadata is too long", remedy="it may have 8 KiB, names and values together")


def check_tags(tags: Mapping[str, str]) -> None:
    """Raise UsageError for what the service would refuse."""
    if len(tags) > _MOST_TAGS:
        raise UsageError(f"{len(tags)} tags are too many", remedy=f"a blob has {_MOST_TAGS} at most")
    for name, value in tags.items():
        if not 0 < len(name) <= _MOST_KEY or len(value) > _MOST_VALUE:
            remedy = f"a name has 1 to {_MOST_KEY} characters, a value up to {_MOST_VALUE}"
            raise UsageError(f"tag {name!r} is too long", remedy=remedy)
        if not _TAG.match(name) or not _TAG.match(value):
            raise UsageError(
                f"a tag cannot be {name}={value!r}", remedy="use letters, digits, blanks and + - . / : = _"
            )
