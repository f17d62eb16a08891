"""Snapshots of disks that are in use: what is in them, and that nothing stays frozen, whoever dies when.

Frozen is told from thawed by a write that is waited for: nothing else tells it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blobfuse_dysk import attachment
from blobfuse_dysk.attachment import Attachment
from blobfuse_dysk.device.ipc import state
from blobfuse_dysk.device.kernel import freeze
from blobfuse_dysk.disks.snapshot import Snapshot, create_snapshot, list_snapshots
from blobfuse_dysk.options import AttachOptions
from tests.device.conftest import MIB, Node, wait_for

OPTIONS = AttachOptions()
MKFS = {
    "ext4": ["mkfs.ext4", "-q"],
    "xfs": ["mkfs.xfs", "-q"],
    "btrfs": ["mkfs.btrfs", "-q"],
}
CHECK = {
    "ext4": ["e2fsck", "-f", "-n"],
    "xfs": ["xfs_repair", "-n"],
    "btrfs": ["btrfs", "check", "--readonly"],
}
LOOK = {"ext4": "ro,noload", "xfs": "ro,norecovery,nouuid", "btrfs": "ro"}
COMMAND = [sys.executable, "-m", "blobfuse_dysk.cli.main", "-o", "json", "snapshot", "create"]


def run(*command: object) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


class Mounted:
    """A file system on an attached disk."""

    def __init__(self, node: Node, attached: Attachment, directory: Path, fstype: str) -> None:
        self.node = node
        self.device = attached.device
        self.disk = attached.disk
        self.directory = directory
        self.fstype = fstype
        self._descriptors: list[int] = []

    @property
    def record(self) -> Path:
        return Path(state.freeze_path(str(self.node.dirs.run), "data"))

    def can_write(self, within_s: float) -> bool:
        """Whether a write to the file system ends in that time. It is made by a process that may be left behind."""
        path = self.directory / "probe"
        probe = subprocess.Popen([sys.executable, "-S", "-c", f"open({str(path)!r}, 'ab').write(b'x')"])
        try:
            return probe.wait(within_s) == 0
        except subprocess.TimeoutExpired:
            return False
        finally:
            probe.kill()

    def is_frozen(self) -> bool:
        """By the kernel: FIFREEZE finds it so. A file system that is not frozen is left as it was."""
        (each,) = freeze.file_systems(self.device)
        fd = freeze.open_root(each)
        try:
            if freeze.freeze(fd):
                freeze.thaw(fd)
                return False
            return True
        finally:
            os.close(fd)

    def assert_thaws(self, within_s: float = 5.0) -> None:
        """It is, or is soon, as if nothing had been frozen; and nothing is left of that."""
        try:
            wait_for(lambda: not self.record.exists(), "the end of the freeze", within_s)
            assert not self.is_frozen()
            assert self.can_write(5)
        finally:
            for each in freeze.file_systems(self.device):
                fd = freeze.open_root(each)
                freeze.thaw(fd)  # so that a test that fails can be tidied up
                os.close(fd)


@pytest.fixture
def mounted(node: Node, tmp_path: Path) -> Iterator[Callable[..., Mounted]]:
    """Attaches, makes a file system, mounts it; takes all back at the end."""
    made: list[Mounted] = []

    def make(fstype: str = "ext4", size: int = 512 * MIB, **options: object) -> Mounted:
        attached = node.attach(node.create(size=size), **options)
        run(*MKFS[fstype], attached.device)
        directory = tmp_path / "mnt"
        directory.mkdir()
        run("mount", "-t", fstype, attached.device, directory)
        made.append(Mounted(node, attached, directory, fstype))
        return made[0]

    yield make
    for each in made:
        run("umount", each.directory)
        attachment.detach("data")


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
