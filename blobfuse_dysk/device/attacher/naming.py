"""Names of attachments, and the symbolic link that makes a name a device: /dev/dysk/NAME -> ../loopN."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable, Iterator

from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.errors import AttachedError, DeviceError

__all__ = ["candidates", "link"]

_LONGEST = 50  # leaves room for a number; see disk.AttachOptions for what a name may be
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


def link(directory: str, name: str, device: str) -> None:
    """Make `directory`/`name` point to the device, in one step. Raises AttachedError if something else is there."""
    path = os.path.join(directory, name)
    try:
        os.makedirs(directory, mode=0o755, exist_ok=True)
        if os.path.lexists(path) and not os.path.islink(path):
            raise AttachedError(f"{path} exists and is not a link of ours", remedy="remove it, or choose another name")
        os.symlink(os.path.relpath(device, directory), f"{path}.new")
        os.rename(f"{path}.new", path)
    except OSError as error:
        raise DeviceError(f"cannot make {path}: {error.strerror}") from None
