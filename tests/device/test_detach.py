"""Detaching what is in use, what does not answer, and what is dead."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from blobfuse_dysk import attachment
from blobfuse_dysk.device.attacher import force
from blobfuse_dysk.device.ipc import state
from blobfuse_dysk.device.kernel import fuse, loop
from blobfuse_dysk.errors import AttachedError, BusyError, DeviceError, DyskError, NotFoundError
from tests.conftest import entries
from tests.device.conftest import MIB, Node, fill, flush, wait_end, wait_for
from tests.namespaces import need_private_mounts


@contextlib.contextmanager
def file_system(device: str, path: Path, kind: str = "ext4", *, make: bool = True) -> Iterator[None]:
    if make:
        subprocess.run([f"mkfs.{kind}", "-q", device], check=True)
    subprocess.run(["mount", device, str(path)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(path)], check=True)


def test_a_disk_that_is_mounted_is_not_detached(node: Node, tmp_path: Path) -> None:
    attached = node.attach(node.create())
    with (
        file_system(attached.device, tmp_path),
        pytest.raises(BusyError, match=f"in use: it is mounted on {tmp_path}") as caught,
    ):
        attachment.detach("data")
    assert caught.value.remedy
    attachment.detach("data")
    node.assert_nothing_left()


def test_mounted_in_another_mount_namespace(node: Node, tmp_path: Path) -> None:
    need_private_mounts()
    attached = node.attach(node.create())
    subprocess.run(["mkfs.ext4", "-q", attached.device], check=True)
    command = [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        'mount "$0" "$1" && echo done && read line',
    ]
    with subprocess.Popen(
        [*command, attached.device, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout
        assert other.stdout.readline() == b"done\n"
        assert attachment.get("data").mountpoints == []
        with pytest.raises(BusyError, match=f"process {other.pid} has it mounted on {tmp_path}"):
            attachment.detach("data")
        other.communicate(b"\n")
    attachment.detach("data")


def test_a_disk_that_is_swap_space_is_not_detached(node: Node) -> None:
    attached = node.attach(node.create())
    subprocess.run(["mkswap", attached.device], check=True, capture_output=True)
    subprocess.run(["swapon", attached.device], check=True)
    try:
        with pytest.raises(BusyError, match="is swap space"):
            attachment.detach("data")
    finally:
        subprocess.run(["swapoff", attached.device], check=True)
    attachment.detach("data")


def test_a_disk_that_a_process_has_open_is_not_detached(node: Node) -> None:
    attached = node.attach(node.create())
    with Path(attached.device).open("rb") as device, subprocess.Popen(["sleep", "1000"], stdin=device) as user:
        device.close()
        with pytest.raises(BusyError, match=rf"sleep \(process {user.pid}\) has it open"):
            attachment.detach("data")
        user.kill()
    attachment.detach("data")


def test_claimed_out_of_sight(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    attached = node.attach(node.create())
    claim = os.open(attached.device, os.O_RDONLY | os.O_EXCL)
    with pytest.raises(BusyError, match="the kernel has it in use"):
        attachment.detach("data")
    os.close(claim)
    attachment.detach("data")


def test_a_program_that_looks_at_the_device_for_a_moment(node: Node) -> None:
    """As udev does with every new device: detach waits for it."""
    attached = node.attach(node.create())
    user = os.open(attached.device, os.O_RDONLY | os.O_EXCL)
    threading.Timer(0.2, os.close, (user,)).start()
    attachment.detach("data")
    node.assert_nothing_left()


def test_a_program_that_writes_and_closes_while_it_is_let_go(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody but us has the device open when it is let go, and what the program wrote is in the page cache only."""
    attached = node.attach(disk := node.create())
    real = fcntl.ioctl

    def ioctl(fd: int, request: int, *arguments: object) -> object:
        if request == loop._LOOP_CLR_FD:
            with Path(attached.device).open("r+b", buffering=0) as late:
                late.write(b"late" * 1024)
        return real(fd, request, *arguments)  # type: ignore[call-overload]

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "ioctl", ioctl)
        attachment.detach("data")
    again = node.attach(disk, read_only=True)
    assert Path(again.device).read_bytes()[:4096] == b"late" * 1024
    attachment.detach("data")


def test_what_is_not_attached_cannot_be_detached(node: Node) -> None:
    with pytest.raises(NotFoundError, match="not attached here"):
        attachment.detach("nothing")
    with pytest.raises(NotFoundError, match="not attached here"):
        attachment.detach("nothing", force=True)


def test_the_service_does_not_answer(node: Node) -> None:
    """detach says what it waits for, goes on by itself, and ends once the service is back."""
    attached = node.attach(node.create())
    fill(attached.device, 1, MIB)
    node.server.outage("silent")
    detaching = threading.Thread(target=attachment.detach, args=("data",))
    detaching.start()
    wait_for(lambda: attachment.status("data")["requests"]["in_flight"], "the first write")
    with pytest.raises(BusyError, match="not detached after 0 s"):
        wait_end(timeout_s=0.1)
    node.server.outage(None)
    detaching.join(60)
    assert node.blob()["allocated"] == MIB
    node.assert_nothing_left()


def test_force_with_a_dead_service(node: Node, tmp_path: Path) -> None:
    """I/O waits, a file system is mounted, the service is silent: all comes free, without a reboot."""
    attached = node.attach(node.create(), io_timeout_s=None)
    with file_system(attached.device, tmp_path):
        node.server.outage("silent")
        # A process of its own, since it will wait in a way that no signal ends.
        stuck = subprocess.Popen(
            ["dd", "if=/dev/zero", f"of={tmp_path}/file", "bs=1M", "count=8", "conv=fsync"], stderr=subprocess.DEVNULL
        )
        wait_for(lambda: in_state(stuck.pid, "D"), "the wait for the service")
        with pytest.raises(BusyError, match=f"mounted on {tmp_path}") as refused:
            attachment.detach("data", force=True)
        assert refused.value.remedy and refused.value.remedy.startswith(f"umount {tmp_path};")
        started = time.monotonic()
        attachment.detach("data", force=True, lose_data=True)
        assert time.monotonic() - started < 30
        assert stuck.wait(20) != 0
        assert entries(node.dirs.run) == []
        assert list(node.dirs.dev.iterdir()) == []
        assert attachment.attachments() == []
    wait_for(lambda: loop.backing_file(attached.device) is None, "the loop device's release")
    node.server.outage(None)


def in_state(pid: int, letter: str) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == letter


def test_force_with_a_service_that_answers_writes_everything_and_releases_the_lease(node: Node) -> None:
    """What lies in the page cache and in the worker's ring; a program has the device open."""
    attached = node.attach(node.create(), write_delay_s=60.0)
    with Path(attached.device).open("r+b", buffering=0) as device:
        device.write(b"data" * (MIB // 4))
        attachment.detach("data", force=True)
    assert node.blob()["allocated"] == MIB
    node.assert_nothing_left()


def test_force_on_a_mounted_disk_writes_what_its_file_system_has(node: Node, tmp_path: Path) -> None:
    attached = node.attach(disk := node.create(), write_delay_s=60.0)
    with file_system(attached.device, tmp_path):
        (tmp_path / "file").write_bytes(b"data" * (MIB // 4))
        attachment.detach("data", force=True, lose_data=True)
    wait_for(lambda: loop.backing_file(attached.device) is None, "the loop device's release")
    again = node.attach(disk)
    with file_system(again.device, tmp_path, make=False):
        assert (tmp_path / "file").read_bytes() == b"data" * (MIB // 4)
    attachment.detach("data")


def test_force_says_what_was_lost(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(force, "_STILL_S", 0.5)
    attached = node.attach(node.create(), io_timeout_s=None)
    node.server.outage("silent")
    with Path(attached.device).open("r+b", buffering=0) as device:
        device.write(b"data" * (MIB // 4))
        with pytest.raises(DyskError, match=r"data is detached, but data was lost: up to [1-9]") as lost:
            attachment.detach("data", force=True)
    assert lost.value.remedy == "attach it and check its file system (fsck)"
    assert entries(node.dirs.run) == []
    node.server.outage(None)


@pytest.mark.parametrize("which", ["holder", "worker"])
def test_force_with_a_process_that_is_stopped(node: Node, which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    node.attach(node.create())
    monkeypatch.setattr(force, "_STILL_S", 0.5)
    os.kill(node.state("data")[which]["pid"], signal.SIGSTOP)
    attachment.detach("data", force=True)
    assert entries(node.dirs.run) == []


def test_an_aborted_connection_ends_the_attachment(node: Node) -> None:
    """As the kernel does by itself when fs.fuse.max_request_timeout passes."""
    attached = node.attach(node.create())
    user = os.open(attached.device, os.O_RDONLY)
    number = fuse.connection(state.mount_path(str(node.dirs.run), "data"))
    assert number is not None
    fuse.abort(number)
    wait_for(lambda: attachment.get("data").state == "failed", "the failure")
    assert "the FUSE connection was aborted: what was not flushed" in str(attachment.get("data").detail)
    with pytest.raises(OSError, match="Input/output error"):
        os.pread(user, 4096, MIB)
    os.close(user)
    node.wait_gone()
    node.assert_nothing_left()


def kill_holder(node: Node) -> None:
    found = node.state("data")
    os.kill(found["holder"]["pid"], signal.SIGKILL)
    wait_for(lambda: not state.alive(found["worker"]), "the worker's end")


def test_a_killed_holder(node: Node) -> None:
    """The worker releases the lease and ends; what is left is shown as dead, and goes with detach."""
    disk = node.create()
    attached = node.attach(disk)
    written = fill(attached.device, 1, MIB)
    flush(attached.device)
    kill_holder(node)
    assert attachment.get("data").state == "dead"
    with pytest.raises(OSError, match="Input/output error"), Path(attached.device).open("rb", buffering=0) as device:
        device.seek(32 * MIB)
        device.read(4096)
    with pytest.raises(DeviceError, match="does not answer"):
        attachment.status("data")
    attachment.detach("data")
    node.assert_nothing_left()
    assert loop.backing_file(attached.device) is None
    again = node.attach(disk)
    assert Path(again.device).read_bytes()[:MIB] == written
    attachment.detach("data")


def test_attach_clears_a_dead_attachment_away(node: Node) -> None:
    disk = node.create()
    node.attach(disk)
    kill_holder(node)
    assert node.attach(disk).state == "attached"
    assert [found.name for found in attachment.attachments()] == ["data"]
    attachment.detach("data")


def test_both_processes_killed(node: Node) -> None:
    """Nobody released the lease, yet this node can attach again at once, since it knows the lease's id."""
    disk = node.create()
    node.attach(disk)
    found = node.state("data")
    os.kill(found["holder"]["pid"], signal.SIGSTOP)
    os.kill(found["worker"]["pid"], signal.SIGKILL)
    os.kill(found["holder"]["pid"], signal.SIGKILL)
    wait_for(lambda: not state.alive(found["holder"]), "the holder's end")
    assert node.blob()["lease"]["state"] == "leased"
    attached = node.attach(disk)
    assert attached.state == "attached"
    assert node.lease("data")["id"] == found["lease"]["id"]
    attachment.detach("data")
    node.assert_nothing_left()


def test_a_dead_attachment_that_is_mounted(node: Node, tmp_path: Path) -> None:
    disk = node.create()
    attached = node.attach(disk)
    with file_system(attached.device, tmp_path):
        kill_holder(node)
        with pytest.raises(AttachedError, match=r"dead, but its device .* still used"):
            node.attach(disk)
        with pytest.raises(BusyError, match="is mounted on"):
            attachment.detach("data")
    attachment.detach("data")
    node.assert_nothing_left()


@pytest.mark.parametrize("content", ["{", '{"version": 99}'])
def test_a_state_that_cannot_be_read(node: Node, content: str) -> None:
    """It is in nobody's way, says what to do, and goes by force."""
    node.attach(node.create("other"))
    node.attach(node.create())
    (node.dirs.run / "data" / "state.json").write_text(content)
    assert [found.name for found in attachment.attachments()] == ["other"]
    with pytest.raises(DeviceError, match=r"state\.json") as caught:
        attachment.detach("data")
    assert caught.value.remedy
    attachment.detach("data", force=True)
    attachment.detach("other")
    assert entries(node.dirs.run) == []


def test_a_connection_without_fusectl(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it cannot be aborted by its file, killing both processes does the same."""
    node.attach(node.create())
    monkeypatch.setattr(fuse, "_CONNECTIONS", "/run/no-such-directory")
    attachment.detach("data", force=True)
    assert entries(node.dirs.run) == []
