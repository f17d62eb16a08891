"""Names of attachments, where the user gives none."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator

from blobfuse_dysk.disk import DiskAddress

__all__ = ["candidates"]

_LONGEST = 50  # leaves room for a number; see options.AttachOptions for what a name may be
_TRIES = 1000


def candidates(address: DiskAddress, wanted: str | None, *, taken: Iterable[str]) -> Iterator[str]:
    """The names to try: the one that is wanted; else the blob's last part without .vhd, and that with a number."""
    if wanted is not None:
        yield wanted
        return
    in_use = set(taken)
    base = re.sub(r"[^A-Za-z0-9_.-]", "-", address.blob.rpartition("/")[2]).removesuffix(".vhd").strip("._-")
    base = base[:_LONGEST] or "disk"
    for name in itertools.islice(itertools.chain([base], (f"{base}-{n}" for n in itertools.count(2))), _TRIES):
        if name not in in_use:
            yield name
