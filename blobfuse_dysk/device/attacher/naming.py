"""Names of attachments, where the user gives none."""

from __future__ import annotations

import re
from collections.abc import Iterator

from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.options import is_name

__all__ = ["candidates"]

_LONGEST = 63  # characters; see options.py for what a name may be
_TRIES = 1000
_KEPT = re.compile(r"[A-Za-z0-9_.-]")


def candidates(address: DiskAddress, wanted: str | None, *, any_name: bool) -> Iterator[str]:
    """The names to try: the one that is wanted, else the disk's own; with any_name also that and a number."""
    first = wanted or _own_name(address)
    yield first
    for number in range(2, _TRIES if any_name else 2):
        yield f"{first[: _LONGEST - 4]}-{number}"


def _own_name(address: DiskAddress) -> str:
    """The blob's last part. What a name cannot have in it is _XX of its UTF-8; snapshots have their time behind it.

    So blobs of different names have different ones, but for those that are made to look like another's.
    """
    name = _spelled(address.blob.rpartition("/")[2])
    if address.snapshot:
        name += f"-{re.sub('[-:]', '', address.snapshot)}"
    if not name[0].isalnum():
        name = f"x{name}"
    if len(name) > _LONGEST:
        import hashlib

        name = f"{name[: _LONGEST - 13]}_{hashlib.sha256(str(address).encode()).hexdigest()[:12]}"
    return name if is_name(name) else f"{name[: _LONGEST - 1]}_"


def _spelled(text: str) -> str:
    pieces = (c if _KEPT.match(c) else "".join(f"_{byte:02X}" for byte in c.encode()) for c in text)
    return "".join(pieces)
