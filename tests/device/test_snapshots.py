"""Snapshots of disks that are in use: what is in them, and that nothing stays frozen, whoever dies when.

Frozen is told from thawed by a write that is waited for: nothing else tells it.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blobfuse_dysk import attachment
from blobfuse_dysk.attachment import Attachment
from blobfuse_dysk.device.attacher import freezing
from blobfuse_dysk.device.ipc import state
from blobfuse_dysk.device.ipc.control import Control
from blobfuse_dysk.device.ipc.freezerecord import FreezeRecord
from blobfuse_dysk.device.kernel import freeze
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.disks.snapshot import Snapshot, create_snapshot, list_snapshots
from blobfuse_dysk.mount.helper import mount_main
from blobfuse_dysk.options import AttachOptions
from tests.device.conftest import MIB, Node, fill, wait_for
from tests.device.freezesteps import freezers
from tests.device.test_worker_death import direct_read

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
ROOT = Path(__file__).resolve().parents[2]


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


def snapshot_with_deaths(whom: str, at: int) -> tuple[int, list[str]]:
    """Exit status and lines of freezesteps.py."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.device.freezesteps", whom, str(at)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    return done.returncode, done.stdout.splitlines()


SOME = [pytest.param(whom, marks=pytest.mark.long) for whom in ("c", "g", "cg", "fg")]


@pytest.mark.parametrize("whom", ["f", "cf", *SOME])
def test_nothing_stays_frozen_whoever_is_killed_at_whichever_step(mounted: Callable[..., Mounted], whom: str) -> None:
    there = mounted()
    at, names = 0, [""]
    while True:
        at += 1
        code, lines = snapshot_with_deaths(whom, at)
        names = [line for line in lines if line[0].isdigit()]
        there.assert_thaws()
        if len(names) < at:
            break
        assert (code == -signal.SIGKILL) is ("c" in whom), lines
        if "c" not in whom and "f" in whom and names[at - 1].split()[1:] == ["expect", "frozen"]:
            assert lines[-1].startswith("crash"), lines
    assert at > 10
    assert lines[-1].startswith("file-system"), lines


@pytest.fixture
def slow_to_freeze(node: Node, monkeypatch: pytest.MonkeyPatch) -> Callable[[Mounted], None]:
    """To be called with what is mounted: from then on freezing it waits for the service, which is away from then on.

    `node.server.clear_faults()` and `release()` end that.
    """
    order = freezing._Process.order

    def use(there: Mounted) -> None:
        def hooked(self: freezing._Process, word: str) -> None:
            if word == "freeze":
                node.server.fault("delay", operation="write")
                (there.directory / "dirty").write_bytes(os.urandom(MIB))
            order(self, word)

        monkeypatch.setattr(freezing._Process, "order", hooked)

    return use


def test_a_freeze_that_takes_longer_than_its_bound_is_thawed_at_once(
    node: Node, mounted: Callable[..., Mounted], slow_to_freeze: Callable[..., None]
) -> None:
    there = mounted(cache="none", io_timeout_s=40.0)
    slow_to_freeze(there)
    made = create_snapshot("data", OPTIONS, freeze_s=1.0)
    assert (made.consistent, made.why) == ("crash", "it was not frozen within 1 s")
    assert not there.is_over()  # it is on its way into the freeze still
    assert not there.can_write(0.5)
    service_is_back(node)
    there.assert_thaws()
    assert (there.directory / "dirty").stat().st_size == MIB


def test_a_freezer_that_is_killed_while_the_kernel_freezes(
    node: Node, mounted: Callable[..., Mounted], slow_to_freeze: Callable[..., None]
) -> None:
    there = mounted(cache="none", io_timeout_s=40.0)
    slow_to_freeze(there)
    assert create_snapshot("data", OPTIONS, freeze_s=1.0).consistent == "crash"
    (freezer,) = freezers(there.record)
    os.kill(freezer, signal.SIGKILL)
    assert not there.can_write(0.5)
    assert freezers(there.record) == [freezer]  # it cannot die before it has frozen
    service_is_back(node)
    there.assert_thaws()
    assert freezers(there.record) == []


def test_a_freezer_that_is_stopped_has_its_freeze_thawed_by_the_guard(
    mounted: Callable[..., Mounted], monkeypatch: pytest.MonkeyPatch
) -> None:
    there = mounted()
    monkeypatch.setattr(freezing, "_START_S", 1.0)
    check = freezing.Freezing.check
    stopped: list[int] = []

    def hooked(self: freezing.Freezing) -> None:
        stopped.extend(freezers(there.record))
        os.kill(stopped[0], signal.SIGSTOP)
        check(self)

    monkeypatch.setattr(freezing.Freezing, "check", hooked)
    try:
        made = create_snapshot("data", OPTIONS, freeze_s=1.0)
        assert made.consistent == "crash"
        wait_for(lambda: not there.is_frozen(), "the guard's thaw", 15)
        assert there.can_write(5)
    finally:
        os.kill(stopped[0], signal.SIGCONT)
    there.assert_thaws()


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


def test_what_is_thawed_by_somebody_else_is_not_called_clean(
    mounted: Callable[..., Mounted], monkeypatch: pytest.MonkeyPatch
) -> None:
    there = mounted()
    ask = Control.ask

    def hooked(self: Control, op: str, **arguments: object) -> dict[str, object]:
        answer = ask(self, op, **arguments)
        if op == "barrier":
            run("fsfreeze", "-u", there.directory)
        return answer

    monkeypatch.setattr(Control, "ask", hooked)
    made = create_snapshot("data", OPTIONS)
    assert (made.consistent, made.why) == ("crash", "somebody thawed it meanwhile")
    there.assert_thaws()


def test_what_is_written_after_the_barrier_has_no_clean_snapshot(
    node: Node, mounted: Callable[..., Mounted], monkeypatch: pytest.MonkeyPatch
) -> None:
    there = mounted(cache="none")
    ask = Control.ask

    def hooked(self: Control, op: str, **arguments: object) -> dict[str, object]:
        if op == "snapshot" and arguments["etag"]:
            run("fsfreeze", "-u", there.directory)  # between the check and the request
            path = there.directory / "late"
            path.write_bytes(b"late")
            run("sync", path)
        return ask(self, op, **arguments)

    monkeypatch.setattr(Control, "ask", hooked)
    made = create_snapshot("data", OPTIONS)
    assert made.consistent == "crash" and made.why.startswith("somebody thawed it")
    assert list_snapshots(made.disk, OPTIONS) == [made]
    there.assert_thaws()


def test_a_disk_with_two_file_systems_has_both_frozen(node: Node, tmp_path: Path) -> None:
    attached = node.attach(node.create(size=256 * MIB), partscan=True)
    subprocess.run(["sfdisk", "-q", attached.device], input="size=100M\n;\n", text=True, check=True)
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
