"""Showing a directory or a file in a second place (a bind mount), in one step.

mount(8) makes a read-only one in two: for a moment, and for good if it is killed between them, what is to be read only
can be written. Here a copy of the mount is made that is in no place yet, looked at, made read-only, and put in its
place whole. What is looked at is what is put there, whatever becomes of the path meanwhile.

Sources: open_tree(2), mount_setattr(2) (Linux 5.12), move_mount(2); include/uapi/linux/mount.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Callable

from blobfuse_dysk.errors import DeviceError

__all__ = ["bind"]

# The same on all architectures that came after 2019's numbering, and on x86 and ARM; source: asm-generic/unistd.h.
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_AT_FDCWD, _AT_EMPTY_PATH, _AT_SYMLINK_NOFOLLOW = -100, 0x1000, 0x100
_CLONE = 1  # OPEN_TREE_CLONE; OPEN_TREE_CLOEXEC is O_CLOEXEC
_FROM_EMPTY_PATH = 4  # MOVE_MOUNT_F_EMPTY_PATH
_READ_ONLY = struct.pack("=QQQQ", 1, 0, 0, 0)  # struct mount_attr: attr_set (MOUNT_ATTR_RDONLY), attr_clr, ...


def bind(source: str, target: str, *, read_only: bool, is_it: Callable[[os.stat_result], bool]) -> None:
    """Show `source` at `target`, which is a file if that one is one. Raises DeviceError, OSError.

    is_it: whether this is what was meant. If not, nothing is mounted.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    tree = _checked(
        libc.syscall(
            _OPEN_TREE, _AT_FDCWD, os.fsencode(source), ctypes.c_uint(_CLONE | os.O_CLOEXEC | _AT_SYMLINK_NOFOLLOW)
        ),
        source,
    )
    try:
        if not is_it(os.fstat(tree)):
            raise DeviceError(f"{source} is not what it was a moment ago", remedy="try again")
        if read_only:
            changed = libc.syscall(
                _MOUNT_SETATTR, tree, b"", ctypes.c_uint(_AT_EMPTY_PATH), _READ_ONLY, len(_READ_ONLY)
            )
            _checked(changed, source)
        moved = libc.syscall(_MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(target), ctypes.c_uint(_FROM_EMPTY_PATH))
        _checked(moved, target)
    finally:
        os.close(tree)


def _checked(result: int, path: str) -> int:
    if result >= 0:
        return result
    number = ctypes.get_errno()
    if number == errno.ENOSYS:
        raise DeviceError("this kernel has no mount_setattr(2)", remedy="it needs Linux 5.12 or later")
    raise OSError(number, os.strerror(number), path)
