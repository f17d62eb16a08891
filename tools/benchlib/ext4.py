"""An ext4 on a device, mounted for as long as a `with` block lasts."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

__all__ = ["make", "mounted", "read_ahead", "set_read_ahead"]


def make(device: str) -> None:
    """mkfs.ext4 as mount.dysk runs it: with its own defaults."""
    subprocess.run(["mkfs.ext4", "-q", "-F", device], stdin=subprocess.DEVNULL, capture_output=True, check=True)


@contextlib.contextmanager
def mounted(device: str, directory: Path) -> Iterator[Path]:
    """The mount point, made in `directory`. Unmounting writes everything to the device."""
    point = directory / "mnt"
    point.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "ext4", device, str(point)], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", str(point)], check=True)


def read_ahead(device: str) -> int:
    """How far the kernel itself reads ahead on this device (KiB)."""
    return int(_read_ahead_of(device).read_text())


def set_read_ahead(device: str, kib: int) -> int:
    """Set that; returns what it was (KiB)."""
    before = read_ahead(device)
    _read_ahead_of(device).write_text(f"{kib}\n")
    return before


def _read_ahead_of(device: str) -> Path:
    return Path("/sys/block") / Path(device).name / "queue" / "read_ahead_kb"
