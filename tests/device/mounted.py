"""A file system on an attached disk, for tests that freeze it.

Frozen is told from thawed by a write that is waited for, and by FIFREEZE: nothing else tells it.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blobfuse_dysk import attachment
from blobfuse_dysk.attachment import Attachment
from blobfuse_dysk.device.ipc import state
from blobfuse_dysk.device.ipc.freezerecord import FreezeRecord
from blobfuse_dysk.device.kernel import freeze
from tests.device.conftest import MIB, Node, wait_for

__all__ = ["MKFS", "Mounted", "mounted", "run", "service_is_back"]

MKFS = {
    "ext4": ["mkfs.ext4", "-q"],
    "xfs": ["mkfs.xfs", "-q"],
    "btrfs": ["mkfs.btrfs", "-q"],
}


def run(*command: object) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


def service_is_back(node: Node) -> None:
    node.server.clear_faults()
    node.server.release()


class Mounted:
    """A file system on an attached disk."""

    def __init__(self, node: Node, attached: Attachment, directory: Path, fstype: str) -> None:
        self.node = node
        self.device = attached.device
        self.disk = attached.disk
        self.directory = directory
        self.fstype = fstype
        self._probes: list[subprocess.Popen[bytes]] = []

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
            self._probes.append(probe)

    def close(self) -> None:
        """Unmount and detach it."""
        self.thaw()
        for probe in self._probes:
            probe.wait(20)
        run("umount", self.directory)
        attachment.detach("data")

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

    def is_over(self) -> bool:
        """Whether nobody freezes anything, or has to thaw anything. A record may be left of those who died."""
        record = FreezeRecord.open(str(self.node.dirs.run), "data")
        if record is None:
            return True
        try:
            fcntl.flock(record.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return not record.to_thaw(record.read()[0])
        except BlockingIOError:
            return False
        except ValueError:  # nothing was written into it
            return True
        finally:
            record.close()

    def assert_thaws(self, within_s: float = 5.0) -> None:
        """It is, or is soon, as if nothing had been frozen."""
        try:
            wait_for(self.is_over, "the end of the freeze", within_s)
            assert not self.is_frozen()
            assert self.can_write(5)
        finally:
            self.thaw()

    def thaw(self) -> None:
        """So that a test that fails can be tidied up."""
        for each in freeze.file_systems(self.device):
            fd = freeze.open_root(each)
            freeze.thaw(fd)
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
    service_is_back(node)  # without it nothing of this ends
    for each in made:
        each.close()
