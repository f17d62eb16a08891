"""What tests in a mount namespace of their own need of this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

__all__ = ["need_private_mounts"]


def need_private_mounts() -> None:
    """Skip the test in a plain chroot, under CI as well.

    Making a namespace's mounts private starts at `/`, which must be a mount point for that (EINVAL in mount(2)). With
    shared ones, what the test hides would be hidden from the whole machine.
    """
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    if not any(line.split()[4] == "/" for line in mounts):  # os.path.ismount("/") is true in every chroot
        pytest.skip("/ is no mount point (a plain chroot), so a mount namespace cannot be made private")
