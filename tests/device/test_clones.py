"""Clones of disks that are in use here: what is in them, and that an unfinished one is no disk."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from blobfuse_dysk import attachment
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.disks.clone import clone
from blobfuse_dysk.disks.snapshot import list_snapshots
from blobfuse_dysk.errors import DyskError
from blobfuse_dysk.options import AttachOptions
from tests.device.conftest import MIB, Node

OPTIONS = AttachOptions()


def run(*command: object) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, (command, done.stdout, done.stderr)


def test_a_clone_of_a_mounted_disk_has_a_clean_file_system_with_all_that_was_written(
    node: Node, tmp_path: Path
) -> None:
    source = DiskAddress.parse(node.create(size=256 * MIB))
    target = replace(source, blob="copy")
    device = node.attach(str(source)).device
    run("mkfs.ext4", "-q", device)
    run("mount", device, tmp_path)
    try:
        (tmp_path / "written").write_bytes(b"w" * MIB)  # and not synced
        made = clone(source, target, OPTIONS, OPTIONS, size=512 * MIB)
        (tmp_path / "later").write_bytes(b"l")
    finally:
        run("umount", tmp_path)
        attachment.detach("data")
    assert made.temporary and list_snapshots(source, OPTIONS) == []
    device = node.attach(str(target)).device
    try:
        run("e2fsck", "-f", "-n", device)
        run("mount", "-o", "ro,noload", device, tmp_path)
        assert (tmp_path / "written").read_bytes() == b"w" * MIB
        assert not (tmp_path / "later").exists()
        run("umount", tmp_path)
        assert int(Path(f"/sys/block/{Path(device).name}/size").read_text()) * 512 == 512 * MIB
    finally:
        attachment.detach("copy")


def test_an_unfinished_clone_cannot_be_attached(node: Node) -> None:
    """It reads as zeros where nothing has come yet: mount would make a file system on it."""
    source = DiskAddress.parse(node.create())
    target = replace(source, blob="copy")
    node.server.configure(copies="pending")
    clone(source, target, OPTIONS, OPTIONS, size=128 * MIB, wait=False)
    for read_only in (False, True):
        with pytest.raises(DyskError, match=f"copy is an unfinished clone of {source}"):
            node.attach(str(target), read_only=read_only)
    node.server.copy(node.container, "copy", "success", 64 * MIB)
    with pytest.raises(DyskError, match="unfinished clone"):
        node.attach(str(target))
    assert clone(source, target, OPTIONS, OPTIONS).complete
    node.attach(str(target))
    attachment.detach("copy")
