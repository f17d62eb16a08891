"""Mount namespaces: what tests in one of their own need of this machine, and one for each process of a parallel run."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest

__all__ = ["need_private_mounts", "separate_mounts"]

_CLONE_NEWNS = 0x20000
_MS_PRIVATE = 1 << 18 | 1 << 14  # with MS_REC


def separate_mounts() -> None:
    """Give this thread, and what it starts, mounts of its own from here on, where that is possible.

    A mount namespace begins as a copy, and what is mounted in the copy is in use: a test that makes one would keep the
    devices busy that a test beside it unmounts. Source: mount_namespaces(7).
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if os.geteuid() != 0 or not _is_mount_point() or libc.unshare(_CLONE_NEWNS):
        return
    if libc.mount(None, b"/", None, _MS_PRIVATE, None):
        raise OSError(ctypes.get_errno(), "the mounts cannot be made private")


def _is_mount_point() -> bool:
    """Whether `/` is one. os.path.ismount("/") is true in every chroot."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    return any(line.split()[4] == "/" for line in mounts)


def need_private_mounts() -> None:
    """Skip the test in a plain chroot, under CI as well.

    Making a namespace's mounts private starts at `/`, which must be a mount point for that (EINVAL in mount(2)). With
    shared ones, what the test hides would be hidden from the whole machine.
    """
    if not _is_mount_point():
        pytest.skip("/ is no mount point (a plain chroot), so a mount namespace cannot be made private")
