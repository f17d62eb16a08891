"""Snapshots of disks that are in use: what is in them, and what they say of it."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from blobfuse_dysk import attachment
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.disks.snapshot import Snapshot, create_snapshot, list_snapshots
from blobfuse_dysk.mount.helper import mount_main
from blobfuse_dysk.options import AttachOptions
from tests.device.conftest import MIB, Node, fill, wait_for
from tests.device.mounted import MKFS, Mounted, mounted, run
from tests.device.test_worker_death import direct_read

__all__ = ["mounted"]

OPTIONS = AttachOptions()
CHECK = {
    "ext4": ["e2fsck", "-f", "-n"],
    "xfs": ["xfs_repair", "-n"],
    "btrfs": ["btrfs", "check", "--readonly"],
}
LOOK = {"ext4": "ro,noload", "xfs": "ro,norecovery,nouuid", "btrfs": "ro"}


def look_into(node: Node, taken: Snapshot, fstype: str, directory: Path) -> dict[str, bytes]:
    """Check the snapshot's file system, mount it, and return what is in it."""
    attached = node.attach(str(taken.disk), name="look")
    directory.mkdir()
    try:
        if fstype == "xfs":
            repair_a_copy(attached.device, directory)
        else:
            run(*CHECK[fstype], attached.device)
        run("mount", "-t", fstype, "-o", LOOK[fstype], attached.device, directory)
        try:
            return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}
        finally:
            run("umount", directory)
    finally:
        attachment.detach("look")


def repair_a_copy(device: str, directory: Path) -> None:
    """xfs freezes with a log that is to be replayed, though nothing of its metadata is in there alone."""
    copy = directory.with_suffix(".copy")
    run("dd", f"if={device}", f"of={copy}", "bs=1M", "conv=sparse", "status=none")
    run("mount", "-t", "xfs", "-o", "loop,nouuid", copy, directory)
    run("umount", directory)
    run(*CHECK["xfs"], copy)


class Load:
    """Writes files, each of which is whole or not there: a name is given to what was written and synced before."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.done: list[int] = []
        self.failures: list[BaseException] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(3)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
        assert self.failures == []

    def _run(self, first: int) -> None:
        try:
            number = first
            while not self._stop.is_set():
                path = self.directory / f"{number % 300}"
                with path.with_suffix(".new").open("wb") as file:
                    file.write(content(number))
                    if number % 3 == 0:
                        file.flush()
                        os.fsync(file.fileno())
                path.with_suffix(".new").rename(path)
                self.done.append(number)
                number += 3
        except BaseException as error:
            self.failures.append(error)


def content(number: int) -> bytes:
    return number.to_bytes(8, "little") * 2048


@pytest.mark.parametrize("fstype", MKFS)
def test_a_mounted_file_system_is_clean_in_a_snapshot_under_load(
    node: Node, mounted: Callable[..., Mounted], tmp_path: Path, fstype: str
) -> None:
    there = mounted(fstype)
    with Load(there.directory) as load:
        wait_for(lambda: len(load.done) > 50, "some load")
        before = list(load.done)
        taken = create_snapshot("data", OPTIONS, metadata={"dysk_snapshot": "first"})
        later = len(load.done)
        wait_for(lambda: len(load.done) > later + 50, "the load going on")
    assert (taken.consistent, taken.why) == ("file-system", f"frozen: {there.directory} ({fstype})")
    there.assert_thaws()
    assert list_snapshots(taken.disk, OPTIONS) == [taken]
    found = look_into(node, taken, fstype, tmp_path / "look")
    newest: dict[str, int] = {}
    for number in before:
        newest[f"{number % 300}"] = max(number, newest.get(f"{number % 300}", 0))
    for name, least in newest.items():  # whatever was written before, synced or not
        number = int.from_bytes(found[name][:8], "little")
        assert found[name] == content(number) and number >= least


def test_what_somebody_else_froze_is_used_as_it_is_and_stays_frozen(
    node: Node, mounted: Callable[..., Mounted], tmp_path: Path
) -> None:
    there = mounted()
    (there.directory / "file").write_bytes(b"content")
    run("fsfreeze", "-f", there.directory)
    made = create_snapshot("data", OPTIONS)
    assert made.consistent == "file-system"
    assert there.is_frozen()
    assert not there.can_write(0.3)
    run("fsfreeze", "-u", there.directory)
    there.assert_thaws()
    assert look_into(node, made, "ext4", tmp_path / "look")["file"] == b"content"


def test_a_disk_with_two_file_systems_has_both_frozen(node: Node, tmp_path: Path) -> None:
    attached = node.attach(node.create(size=256 * MIB), partscan=True)
    subprocess.run(["sfdisk", "-q", "--no-tell-kernel", attached.device], input="size=100M\n;\n", text=True, check=True)
    wait_for(
        lambda: len(attachment.get("data").partitions) == 2 or not run("partx", "-u", attached.device), "partitions"
    )
    parts = attachment.get("data").partitions
    directories = [tmp_path / "one", tmp_path / "two"]
    for part, directory in zip(parts, directories, strict=True):
        run("mkfs.ext4", "-q", part)
        directory.mkdir()
        run("mount", part, directory)
    again = tmp_path / "again"
    again.mkdir()
    run("mount", "--bind", directories[0], again)
    try:
        made = create_snapshot("data", OPTIONS)
        why = f"frozen: {directories[1]} (ext4), {directories[0]} (ext4)"
        assert (made.consistent, made.why) == ("file-system", why)
        for directory in directories:
            (directory / "after").write_bytes(b"x")
    finally:
        run("umount", again, *directories)
        attachment.detach("data")
    attached = node.attach(str(made.disk), name="look", partscan=True)
    for part in attachment.get("look").partitions:
        run("e2fsck", "-f", "-n", part)
    attachment.detach("look")


def test_a_file_system_that_holds_our_own_log_is_not_frozen(
    mounted: Callable[..., Mounted], monkeypatch: pytest.MonkeyPatch
) -> None:
    there = mounted()
    with monkeypatch.context() as patch:
        patch.setenv("DYSK_LOG_DIR", str(there.directory))
        made = create_snapshot("data", OPTIONS)
    assert made.consistent == "crash"
    assert made.why == f"{there.directory} is on it, where attachments write their log"


def test_what_was_written_to_a_device_is_in_its_snapshot(node: Node) -> None:
    attached = node.attach(node.create(), write_delay_s=60.0)
    data = fill(attached.device, 3, 8 * MIB)
    run("blockdev", "--flushbufs", attached.device)
    made = create_snapshot(attached.device, OPTIONS)
    assert (made.consistent, made.why) == ("crash", "no file system on it is mounted")
    fill(attached.device, 4, 8 * MIB)
    attachment.detach("data")
    node.attach(str(made.disk), name="look")
    assert direct_read(attachment.get("look").device, MIB) == data[:MIB]
    attachment.detach("look")


def test_a_disk_that_is_read_here_only_is_asked_of_the_service(node: Node) -> None:
    disk = node.create()
    node.attach(disk, read_only=True)
    made = create_snapshot(DiskAddress.parse(disk), OPTIONS)
    assert made.why == "attached here to be read only"
    attachment.detach("data")
    assert create_snapshot(disk, OPTIONS).why == "not attached here"


def test_a_snapshot_without_a_freeze_is_as_after_a_power_cut(
    node: Node, mounted: Callable[..., Mounted], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    there = mounted()
    path = there.directory / "synced"
    with Load(there.directory) as load:
        wait_for(lambda: len(load.done) > 20, "some load")
        path.write_bytes(b"s" * MIB)
        run("sync", path)
        made = create_snapshot("data", OPTIONS, freeze_s=None)
    assert (made.consistent, made.why) == ("crash", "it was not to be frozen")
    attached = node.attach(str(made.disk), name="look")
    copy = tmp_path / "copy"
    run("dd", f"if={attached.device}", f"of={copy}", "bs=1M", "conv=sparse", "status=none")
    attachment.detach("look")
    directory = tmp_path / "look"
    directory.mkdir()
    run("mount", "-o", "loop", copy, directory)  # which replays the journal
    assert (directory / "synced").read_bytes() == b"s" * MIB
    run("umount", directory)
    run(*CHECK["ext4"], copy)
    # Read-only there is no replay, and our mount says what to do.
    assert mount_main([str(made.disk), str(directory)]) == 32
    assert "add -o noload" in capfd.readouterr().err
    assert mount_main([str(made.disk), str(directory), "-o", "noload"]) == 0
    (found,) = (each.name for each in attachment.attachments() if each.disk == str(made.disk))
    with attachment.end_of(found) as wait:
        run("umount", "-i", directory)  # the helper that umount finds may be another clone's
        wait()
