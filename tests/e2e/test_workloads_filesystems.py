"""What people do with a file system, on each of the three; then a check of it, and a look from a new mount."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import blobfuse_dysk
from tests.e2e.kit import Node, node, service_node
from tests.e2e.loads import FSCK, MIB, call, used

__all__ = ["node", "service_node"]


def use(root: Path) -> None:
    """Copy a tree, make many small files, links, holes; truncate, rename, remove, allocate ahead."""
    source = Path(blobfuse_dysk.__file__).parent
    shutil.copytree(source, root / "tree", ignore=shutil.ignore_patterns("__pycache__"))
    small = root / "small"
    small.mkdir()
    for number in range(400):
        (small / f"{number:04d}").write_bytes(f"{number} ".encode() * (number + 1))
    for number in range(0, 400, 4):
        (small / f"{number:04d}").unlink()
    for number in range(1, 400, 4):
        (small / f"{number:04d}").rename(small / f"renamed-{number}")
    (root / "hard").hardlink_to(root / "tree" / "errors.py")
    (root / "soft").symlink_to("tree/errors.py")
    os.setxattr(root / "hard", "user.colour", b"blue")
    _holes(root / "holes")
    with (root / "shortened").open("wb") as file:
        file.write(os.urandom(3 * MIB))
        file.truncate(MIB + 77)
        file.truncate(2 * MIB)
    with (root / "ahead").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 4 * MIB)
        os.pwrite(file.fileno(), b"end", 4 * MIB - 3)
    with (root / "appended").open("ab", buffering=0) as file:
        for number in range(200):
            file.write(f"line {number}\n".encode())
            if number % 40 == 0:
                os.fsync(file.fileno())


def _holes(path: Path) -> None:
    """A sparse file: data at its start, in its middle, after 64 MiB; and a hole that was data once."""
    with path.open("wb") as file:
        for offset in (0, 10 * MIB, 64 * MIB):
            os.pwrite(file.fileno(), os.urandom(64 << 10), offset)
    call("fallocate", "--punch-hole", "--offset", "16384", "--length", "16384", str(path))


@pytest.mark.parametrize("fstype", ["ext4", "xfs", "btrfs"])
def test_use_check_and_mount_again(service_node: Node, fstype: str) -> None:
    node = service_node
    disk = node.create()
    assert node.mount(disk, f"fstype={fstype}").code == 0
    use(node.mountpoint)
    before = used(node.mountpoint)
    assert before["hard"] == before["tree/errors.py"]
    assert before["hard"][1] == 2
    assert node.umount().code == 0
    assert node.nothing_left()

    device = node.ok("attach", disk, "--read-only").strip()
    call(*FSCK[fstype], device)
    node.ok("detach", disk)

    assert node.mount(disk, "ro").code == 0
    assert used(node.mountpoint) == before
    assert (node.mountpoint / "soft").resolve() == node.mountpoint / "tree" / "errors.py"
    assert os.getxattr(node.mountpoint / "hard", "user.colour") == b"blue"
    assert (node.mountpoint / "holes").stat().st_blocks * 512 < MIB
    assert node.umount().code == 0

    assert node.mount(disk).code == 0  # and it goes on
    shutil.rmtree(node.mountpoint / "small")
    (node.mountpoint / "more").write_bytes(bytes(MIB))
    assert node.umount().code == 0
    device = node.ok("attach", disk, "--read-only").strip()
    call(*FSCK[fstype], device)
    node.ok("detach", disk)
    assert node.nothing_left()


def test_a_file_system_that_is_full(node: Node) -> None:
    """The last block of the disk is written, too."""
    disk = node.create(size="24MiB")
    assert node.mount(disk, 'fstype=ext4,mkfs.options="-m 0"').code == 0
    written = 0
    with pytest.raises(OSError, match="No space left"), (node.mountpoint / "filler").open("wb", buffering=0) as file:
        while True:
            written += file.write(os.urandom(MIB))
            os.fsync(file.fileno())
    before = used(node.mountpoint)
    assert before["filler"][0] >= written > 16 * MIB
    assert node.umount().code == 0
    device = node.ok("attach", disk, "--read-only").strip()
    call(*FSCK["ext4"], device)
    node.ok("detach", disk)
    assert node.mount(disk, "ro").code == 0
    assert used(node.mountpoint) == before
    assert node.umount().code == 0
