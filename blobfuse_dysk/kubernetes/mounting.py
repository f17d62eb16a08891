"""mount(8) and umount(8), for volumes."""

from __future__ import annotations

from collections.abc import Sequence

from blobfuse_dysk.errors import BusyError, DyskError, UsageError
from blobfuse_dysk.kubernetes.refusals import UnsuitableError
from blobfuse_dysk.mount.options import split_options
from blobfuse_dysk.mount.tools import find_tool, run_tool

__all__ = ["check_flags", "mount", "unmount"]

# What mount(8) would do something else for than mounting this device here.
_NOT_OURS = frozenset(
    {"remount", "bind", "rbind", "move", "loop", "offset", "sizelimit", "helper", "uhelper", "subdir", "fake"}
)
_DUPLICATES = {"xfs": ("nouuid",)}  # a clone has its source's UUID, and both may be on one node
_UNCLEAN = {"ext4": "noload", "xfs": "norecovery", "btrfs": "rescue=nologreplay"}


def check_flags(flags: Sequence[str]) -> tuple[str, ...]:
    """The mount options of a volume, one each. Raises UsageError for what is no file system's to know."""
    words = [word for flag in flags for word in split_options(flag)]
    for word in words:
        name = word.partition("=")[0]
        if name in _NOT_OURS or name.startswith(("x-", "X-")):
            raise UsageError(f"mount option {name} is not for volumes", remedy="leave it out of mountOptions")
    return tuple(words)


def mount(device: str, fstype: str, path: str, flags: Sequence[str], *, read_only: bool) -> None:
    """Mount a device. Raises UnsuitableError with mount(8)'s words."""
    own = [flag for flag in flags if flag not in ("ro", "rw")]
    options = ",".join(["ro" if read_only else "rw", *_DUPLICATES.get(fstype, ()), *own])
    result = run_tool([find_tool("mount"), "-i", "-t", fstype, "-o", options, device, path])
    if result.returncode:
        words = result.stderr.strip().partition("\n")[0].removeprefix("mount: ") or f"exit code {result.returncode}"
        remedy = "the node's dmesg says more"
        if read_only and fstype in _UNCLEAN:
            remedy = f"if it was mounted elsewhere at that time: mountOptions [{_UNCLEAN[fstype]}]; {remedy}"
        raise UnsuitableError(f"mounting {device} ({fstype}) failed: {words.rstrip('.')}", remedy=remedy)


def unmount(path: str, *, lazy: bool = False) -> None:
    """Unmount what is uppermost there. lazy: also if it is used. Raises BusyError, DyskError."""
    result = run_tool([find_tool("umount"), "-i", *(["-l"] if lazy else []), path])
    if result.returncode:
        words = result.stderr.strip().partition("\n")[0].removeprefix("umount: ").rstrip(".")
        if "busy" in words:
            raise BusyError(f"{path} is in use by a process of the node", remedy=f"fuser -vm {path} shows which")
        raise DyskError(f"unmounting {path} failed: {words or result.returncode}")
