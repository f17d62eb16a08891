"""The symbolic link that makes a name a device: /dev/dysk/NAME -> ../loopN."""

from __future__ import annotations

import contextlib
import os

from blobfuse_dysk.errors import AttachedError, DeviceError

__all__ = ["link", "unlink"]


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


def unlink(directory: str, name: str) -> None:
    """Take the link away, and nothing but a link; what cannot be taken away stays."""
    path = os.path.join(directory, name)
    with contextlib.suppress(OSError):
        if os.path.islink(path):
            os.unlink(path)
